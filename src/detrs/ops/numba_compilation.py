"""Kernels as C functions that numba compiles on first use, and caches on disk for the next process.

Kernels are closures over numbers, strings and types, which numba's cache recognizes in the next process; it does not
recognize functions.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

from numba import cfunc, types

from detrs.files import checksum
from detrs.ops import threads

Kernel = Callable[[int], None]
"""Takes the address of a problem."""


def version(sources: Iterable[str | None]) -> int:
    """A number of the content of files, which kernels capture: numba's cache only checks the file that defines one."""
    return checksum(map(str, sources))


def compiled(function: Callable[[Any], None], problem: Any, variant: str, options: dict[str, Any]) -> Kernel:
    """A kernel as a C function.

    Args:
        function: a new function each time; its argument is a pointer.
        problem: the type of the pointer.
        variant: the values that the function captures. numba has one index of cached kernels per function name, without
            a lock: two processes that add different kernels to an index at the same time could later load each other's.
            So each kernel has its own name.
        options: of ``numba.cfunc``.
    """
    function.__qualname__ += f"-{variant}"
    try:
        found = cfunc(types.void(problem), cache=True, **options)(function)
    except RuntimeError as error:
        warnings.warn(
            f"numba found no writable cache folder ({error}), so kernels are compiled again in each process, which "
            "takes a few seconds. Set the environment variable NUMBA_CACHE_DIR to a writable folder.",
            stacklevel=2,
        )
        found = cfunc(types.void(problem), **options)(function)
    kernel: Any = threads.Kernel(found.address or 0)
    kernel.compiled = found  # keeps the machine code alive
    result: Kernel = kernel
    return result
