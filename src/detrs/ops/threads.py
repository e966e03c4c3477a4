"""Runs a compiled function on several threads: those of PyTorch where possible.

PyTorch's threads wait for work by spinning. A second pool of threads would compete with them for the cores, which costs
about a millisecond after each switch between the pools. So kernels run on PyTorch's pool, through the entry point that
compilers use for ``#pragma omp parallel``, and wait as its threads do (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``).
Where the entry point does not exist (Windows), each call starts new threads, which costs
about 0.1 ms.
"""

import ctypes
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
"""A C function of one address. All threads that call it with the same address share the work."""

_forked = False
"""Threads do not survive a fork, and GNU OpenMP would wait forever for those of the parent."""


def _after_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def num_threads(count: int | None) -> Iterator[None]:
    """Within the block, PyTorch and the kernels use ``count`` CPU threads; ``None`` changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


@functools.cache
def _openmp() -> Callable[[object, int, int, int], None] | None:
    """``GOMP_parallel`` of the OpenMP library that PyTorch is linked to; ``None`` if it does not export it."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        library = Path(torch.__file__).parent / "lib" / name
        if library.exists():
            try:
                parallel = ctypes.CDLL(str(library)).GOMP_parallel  # also finds symbols of the libraries it links to
            except AttributeError:
                return None
            parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
            parallel.restype = None
            return parallel
    return None


def run(kernel: Callable[[int], None], work: int, threads: int) -> None:
    """Calls ``kernel(work)`` on ``threads`` threads, including this one, and joins them. A forked process uses one."""
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
        except RuntimeError:  # no more threads are available: those that have started share the work
            pass
        try:
            kernel(work)
        finally:  # the threads still use the memory of this call
            for thread in others:
                thread.join()
