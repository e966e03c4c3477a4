import random
import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

from detrs.isolation import float32_by_default, random_streams, warnings_ignored


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_streams_are_functions_of_the_path() -> None:
    def drawn(*path: int) -> tuple[float, float, float]:
        with random_streams(*path):
            return draw()

    draws = {path: drawn(*path) for path in [(42,), (42, 1, 0), (42, 1, 1), (42, 2, 0), (43, 1, 0), (2**63 - 1, 0, 0)]}
    assert len(set(draws.values())) == len(draws)
    assert all(drawn(*path) == values for path, values in draws.items())


def test_streams_of_the_program_continue() -> None:
    def seed() -> None:
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = [draw(), draw()]
    seed()
    found = [draw()]
    with pytest.raises(ZeroDivisionError), random_streams(1, 2):
        draw()
        raise ZeroDivisionError
    assert [*found, draw()] == expected


def overlapping(enter: Callable[[], object], leave: Callable[[], object]) -> None:
    """Run ``enter`` in two threads one after the other, and then ``leave`` in the same order."""
    entered, may_leave = threading.Semaphore(0), [threading.Event(), threading.Event()]
    left = threading.Semaphore(0)

    def run(index: int) -> None:
        enter()
        entered.release()
        may_leave[index].wait()
        leave()
        left.release()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
        entered.acquire()
    for event in may_leave:
        event.set()
        left.acquire()
    for thread in threads:
        thread.join()


def test_threads_that_overlap_restore_the_warning_filters() -> None:
    local = threading.local()

    def enter() -> None:
        local.context = warnings_ignored()
        local.context.__enter__()
        warnings.warn("ignored in this thread", stacklevel=1)

    with pytest.warns(UserWarning, match="still shown") as shown:
        before = list(warnings.filters)
        overlapping(enter, lambda: local.context.__exit__(None, None, None))
        assert warnings.filters == before
        with warnings_ignored():
            thread = threading.Thread(target=warnings.warn, args=("still shown in other threads",))
            thread.start()
            thread.join()
        warnings.warn("still shown", stacklevel=1)
    assert len(shown) == 2


def test_filters_that_the_program_sets_meanwhile_are_kept() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        context = warnings_ignored()
        context.__enter__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.__exit__(None, None, None)
            assert warnings.filters[0][2] is DeprecationWarning
        with pytest.raises(UserWarning):
            warnings.warn("an error again", stacklevel=1)
        with warnings_ignored():
            pass
        assert warnings.filters == before


def test_default_dtype_is_restored_by_the_last_of_several_threads() -> None:
    local = threading.local()

    def enter() -> None:
        local.context = float32_by_default()
        local.context.__enter__()
        assert torch.get_default_dtype() == torch.float32

    torch.set_default_dtype(torch.float64)
    try:
        overlapping(enter, lambda: local.context.__exit__(None, None, None))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
