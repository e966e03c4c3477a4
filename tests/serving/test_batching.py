"""The thread of the model: what shares a forward pass, what is dropped, and what a failure affects."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from detrs.serving.batching import MAX_FAILURES, Resized, Worker
from detrs.serving.problems import RequestProblem

LATER = float("inf")


def image(value: int, size: tuple[int, int] = (3, 5)) -> Resized:
    return Resized(torch.full((3, *size), value, dtype=torch.uint8), size, None)


class Recorder:
    """A ``detect`` that returns the value of each image, and stops before it while ``is_open`` is cleared."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.is_open = threading.Event()
        self.is_open.set()
        self.entered = threading.Event()
        self.errors: dict[int, Exception] = {}

    def __call__(self, images: Sequence[Resized]) -> list[Any]:
        assert len({each.image.shape for each in images}) == 1
        values = [int(each.image[0, 0, 0]) for each in images]
        self.batches.append(values)
        self.entered.set()
        assert self.is_open.wait(30)
        for value in values:
            if value in self.errors:
                raise self.errors[value]
        return values


@contextmanager
def working(max_batch: int = 4, window: float = 0.0, **options: Any) -> Iterator[tuple[Worker, Recorder]]:
    recorder = Recorder()
    worker = Worker(recorder, max_batch, window, **options)
    try:
        yield worker, recorder
    finally:
        recorder.is_open.set()
        worker.close(30)
        assert not worker.is_ready


@contextmanager
def occupied(worker: Worker, recorder: Recorder) -> Iterator[None]:
    """Inside, the worker computes an image of its own; afterwards, what was submitted inside."""
    recorder.is_open.clear()
    (busy,) = worker.submit([image(0, (2, 2))], LATER)
    assert recorder.entered.wait(30)
    yield
    recorder.is_open.set()
    assert busy.result(30) == 0


def test_waiting_images_of_equal_size_share_a_forward_pass_in_order() -> None:
    with working(max_batch=3) as (worker, recorder):
        with occupied(worker, recorder):
            small = worker.submit([image(n) for n in (1, 2)], LATER)
            large = worker.submit([image(n, (7, 5)) for n in (3, 4)], LATER)
            more = worker.submit([image(n) for n in (5, 6)], LATER)
            assert worker.waiting == 6
        assert [each.result(30) for each in [*small, *large, *more]] == [1, 2, 3, 4, 5, 6]
    assert recorder.batches == [[0], [1, 2, 5], [3, 4], [6]]


def test_a_batch_of_one_has_no_window() -> None:
    with working(max_batch=1, window=20.0) as (worker, recorder):
        assert [each.result(10) for each in worker.submit([image(1), image(2)], LATER)] == [1, 2]
    assert recorder.batches == [[1], [2]]


def test_an_image_waits_for_others_until_the_batch_is_full() -> None:
    with working(max_batch=2, window=20.0) as (worker, recorder):
        first = worker.submit([image(1)], LATER)
        time.sleep(0.05)
        other = worker.submit([image(9, (7, 5))], LATER)
        second = worker.submit([image(2)], LATER)
        assert (first[0].result(10), second[0].result(10)) == (1, 2)  # long before the end of the window
        assert not other[0].done()
    assert other[0].result(0) == 9  # closing ends the window
    assert recorder.batches == [[1, 2], [9]]


def test_the_window_ends() -> None:
    with working(max_batch=2, window=0.05) as (worker, recorder):
        assert worker.submit([image(1)], LATER)[0].result(10) == 1
    assert recorder.batches == [[1]]


def test_cancelled_jobs_are_never_computed() -> None:
    with working() as (worker, recorder):
        with occupied(worker, recorder):
            jobs = worker.submit([image(n) for n in (1, 2, 3)], LATER)
            assert jobs[1].cancel()
            assert worker.waiting == 2  # its image occupies no memory
        assert (jobs[0].result(30), jobs[2].result(30)) == (1, 3)
    assert recorder.batches == [[0], [1, 3]]
    with pytest.raises(CancelledError):
        jobs[1].result(0)


def test_cancelling_in_the_window_starts_that_of_the_next_image() -> None:
    with working(max_batch=2, window=0.5) as (worker, recorder):
        (first,) = worker.submit([image(1)], LATER)
        time.sleep(0.05)
        assert first.cancel()
        time.sleep(0.05)  # the thread has nothing to do, and does not end
        assert [each.result(30) for each in worker.submit([image(2), image(3)], LATER)] == [2, 3]
    assert recorder.batches == [[2, 3]]


def test_jobs_past_their_deadline_are_never_computed() -> None:
    with working() as (worker, recorder):
        with occupied(worker, recorder):
            (late,) = worker.submit([image(1)], time.monotonic() - 1)
            (good,) = worker.submit([image(2)], LATER)
        assert good.result(30) == 2
        assert isinstance(late.exception(0), TimeoutError)
    assert recorder.batches == [[0], [2]]


def test_a_failing_image_does_not_harm_the_others_of_its_batch() -> None:
    with working() as (worker, recorder):
        recorder.errors[2] = ArithmeticError("of image 2")
        with occupied(worker, recorder):
            jobs = worker.submit([image(n) for n in (1, 2, 3)], LATER)
        assert (jobs[0].result(30), jobs[2].result(30)) == (1, 3)
        with pytest.raises(ArithmeticError, match="of image 2"):
            jobs[1].result(30)
        assert worker.is_ready
    assert recorder.batches == [[0], [1, 2, 3], [1], [2], [3]]


@pytest.mark.parametrize(("error", "is_ready"), [(ArithmeticError(), False), (RequestProblem(422, "no"), True)])
def test_a_model_that_always_fails_is_not_ready_until_it_works(error: Exception, is_ready: bool) -> None:
    with working() as (worker, recorder):
        recorder.errors[1] = error
        for _ in range(MAX_FAILURES):
            assert worker.is_ready
            with pytest.raises(type(error)):
                worker.submit([image(1)], LATER)[0].result(30)
        assert worker.is_ready == is_ready
        assert worker.submit([image(2)], LATER)[0].result(30) == 2
        assert worker.is_ready


def test_functions_are_called_alone_in_the_same_thread() -> None:
    with working() as (worker, recorder):
        with occupied(worker, recorder):
            jobs = worker.submit([image(1), threading.get_ident, threading.get_ident, image(2)], LATER)
        results = [job.result(30) for job in jobs]
    assert results[0] == 1 and results[3] == 2
    assert results[1] == results[2] != threading.get_ident()


def test_closing_finishes_what_was_submitted() -> None:
    with working(max_batch=1) as (worker, recorder):
        with occupied(worker, recorder):
            jobs = worker.submit([image(n) for n in (1, 2, 3)], LATER)
            closing = threading.Thread(target=worker.close)
            closing.start()
            while worker.is_ready:
                time.sleep(0.001)
            with pytest.raises(RuntimeError, match="closed"):
                worker.submit([image(4)], LATER)
        closing.join(30)
        assert [job.result(0) for job in jobs] == [1, 2, 3]


def test_measurements() -> None:
    seen: list[tuple[int, float]] = []
    record: Callable[[int, float], None] = lambda size, seconds: seen.append((size, seconds))  # noqa: E731
    with working(on_batch=record) as (worker, recorder):
        with occupied(worker, recorder):
            jobs = worker.submit([image(n) for n in (1, 2)], LATER)
            time.sleep(0.05)
        assert [job.result(30) for job in jobs] == [1, 2]
    assert [size for size, _ in seen] == [1, 2]
    assert seen[0][1] >= 0.05 and seen[1][1] > 0
