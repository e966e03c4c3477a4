"""Commands leave the garbage collector of the process as it was."""

import gc
from collections.abc import Iterator

import pytest

from detrs.cli.imports import unfrozen_at_end, without_collection


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()
    gc.unfreeze()


def test_what_is_created_inside_is_not_searched_until_the_end() -> None:
    with unfrozen_at_end():
        with without_collection():
            assert not gc.isenabled()
            created = [[]]
        assert gc.isenabled() and gc.get_freeze_count() > 0
        assert all(each is not created for each in gc.get_objects())
    assert gc.get_freeze_count() == 0
    assert any(each is created for each in gc.get_objects())


def test_errors_end_it_too() -> None:
    with pytest.raises(KeyError), unfrozen_at_end(), without_collection():
        raise KeyError
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_programs_that_collect_by_themselves_are_left_alone() -> None:
    gc.disable()
    with unfrozen_at_end(), without_collection():
        pass
    assert not gc.isenabled() and gc.get_freeze_count() == 0
    own: list[object] = []
    gc.freeze()
    with unfrozen_at_end():
        pass
    assert gc.get_freeze_count() > 0 and not any(each is own for each in gc.get_objects())  # which has no frozen ones
