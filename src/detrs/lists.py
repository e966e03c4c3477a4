"""Lists of successive items."""

from collections.abc import Generator, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def in_lists(items: Iterator[T], size: int) -> Generator[list[T], None, None]:
    """Lists of at most ``size`` items, each read when it is needed.

    If ``items`` raises an exception, the items before it are yielded first, so that they do not depend on ``size``.

    >>> [*in_lists(iter("abcde"), 2)]
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    while True:
        found: list[T] = []
        try:
            for item in islice(items, size):
                found.append(item)  # one by one: those before an exception are kept
        except Exception:
            if found:
                yield found
            raise
        if not found:
            return
        yield found
