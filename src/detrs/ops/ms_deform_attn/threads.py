"""A compiled function on several threads at once: on those of PyTorch, where they can be had.

PyTorch's threads wait for their next work by spinning. A second pool of threads would have to take the cores away from
them, which costs a millisecond after each change of sides; so our kernels run on the same pool, by the entry point that
compilers use for ``#pragma omp parallel``. Without one (Windows), new threads are started each time, which costs about
0.1 ms.
"""

import ctypes
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch

Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
"""A C function that takes the address of what it works on, and shares the work out among those that call it."""

_forked = False
"""Threads do not survive a fork, and GNU OpenMP waits for those of the parent for ever."""


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _openmp() -> Callable[[object, int, int, int], None] | None:
    """``GOMP_parallel`` of the OpenMP library that PyTorch is linked to, if it has one with this entry point."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        library = Path(torch.__file__).parent / "lib" / name
        if library.exists():
            try:
                parallel = ctypes.CDLL(str(library)).GOMP_parallel  # symbols of what it is linked to are found, too
            except AttributeError:
                return None
            parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
            parallel.restype = None
            return parallel
    return None


def run(kernel: Callable[[int], None], work: int, threads: int) -> None:
    """Call ``kernel(work)`` on ``threads`` threads, this one included, and wait for all. One in a forked process."""
    if threads == 1 or _forked:
        kernel(work)
    elif parallel := _openmp():
        parallel(kernel, work, threads, 0)
    else:
        others: list[threading.Thread] = []
        try:
            for _ in range(threads - 1):
                thread = threading.Thread(target=kernel, args=(work,))
                thread.start()
                others.append(thread)
        except RuntimeError:  # no more threads to be had: those that run share the work, whose memory they still need
            pass
        try:
            kernel(work)
        finally:
            for thread in others:
                thread.join()
