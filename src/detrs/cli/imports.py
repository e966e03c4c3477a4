"""Imports in less time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Inside, Python does not search for garbage, and later not among the objects that were created inside.

    PyTorch and its companions create many objects that live as long as the process. By default, Python searches through
    them again and again, which takes half a second of the start of a command.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()
            gc.enable()


@contextmanager
def unfrozen_at_end() -> Iterator[None]:
    """At the end, Python searches for garbage everywhere again, unless objects were frozen before."""
    was_frozen = gc.get_freeze_count() > 0
    try:
        yield
    finally:
        if not was_frozen:
            gc.unfreeze()
