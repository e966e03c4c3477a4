"""Successive items in lists."""

from collections.abc import Iterator

import pytest

from detrs.lists import in_lists


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_items_before_an_error_do_not_depend_on_the_size(size: int) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("the end")

    found: list[int] = []
    with pytest.raises(OSError, match="the end"):
        for each in in_lists(items(), size):
            found += each
    assert found == [0, 1, 2, 3, 4]


def test_no_item_is_read_before_it_is_needed() -> None:
    items = iter(range(10))
    assert next(in_lists(items, 3)) == [0, 1, 2] and next(items) == 3
