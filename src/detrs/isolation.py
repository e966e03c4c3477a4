"""Global settings of PyTorch and Python that detrs needs, set for a block of code and then restored.

The program that uses the library keeps its own random generators and its own default dtype, also with several threads.
"""

import logging
import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_streams = threading.RLock()
_dtype = threading.Lock()
_filters = threading.Lock()
_num_float32 = 0
_dtype_before = torch.float32


@contextmanager
def random_streams(*path: int) -> Iterator[None]:
    """Inside, the random generators are a function of ``path`` alone; afterwards, those of the program continue.

    This includes Python, NumPy, and PyTorch on the CPU and on all devices that are initialized. Generators are global,
    so only one thread at a time is inside.
    """
    accelerators = [device for device in (torch.cuda, torch.xpu) if device.is_initialized()]
    mps = torch.backends.mps.is_available()
    with _streams:
        python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
        states = [device.get_rng_state_all() for device in accelerators]
        on_mps = torch.mps.get_rng_state() if mps else None
        try:
            seed = int(np.random.SeedSequence(path).generate_state(1)[0])
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            for device in accelerators:
                device.manual_seed_all(seed)
            if mps:
                torch.mps.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(cpu)
            for device, state in zip(accelerators, states, strict=True):
                device.set_rng_state_all(state)
            if on_mps is not None:
                torch.mps.set_rng_state(on_mps)


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Inside, the default dtype is float32. It is global: restored when the last thread leaves."""
    global _num_float32, _dtype_before
    with _dtype:
        if _num_float32 == 0:
            _dtype_before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float32)
        _num_float32 += 1
    try:
        yield
    finally:
        with _dtype:
            _num_float32 -= 1
            if _num_float32 == 0:
                torch.set_default_dtype(_dtype_before)


class _ThisThread:
    """The message pattern of a warning filter: matches all warnings of the current thread until it is disabled."""

    def __init__(self) -> None:
        self.thread: int | None = threading.get_ident()

    def match(self, text: str) -> bool:
        return threading.get_ident() == self.thread


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """Inside, warnings of this thread are ignored; other threads are not affected.

    ``warnings.catch_warnings`` is not thread-safe: two threads that overlap can disable the warnings of the program.
    """
    pattern = _ThisThread()
    _set_filters(pattern)
    try:
        yield
    finally:
        pattern.thread = None  # a copy of the list that another thread restores later has no effect
        _set_filters()


def _set_filters(*patterns: _ThisThread) -> None:
    """Add filters with ``patterns`` in front, and remove disabled ones; other threads may be reading the old list."""
    with _filters:
        found: list[tuple[Any, Any]] = [(entry[1], entry) for entry in warnings.filters]
        others = [entry for pattern, entry in found if not isinstance(pattern, _ThisThread) or pattern.thread]
        warnings.filters = [*(("ignore", pattern, Warning, None, 0) for pattern in patterns), *others]  # type: ignore


@contextmanager
def only_errors_logged(name: str) -> Iterator[None]:
    """Inside, the logger ``name`` ignores records of this thread below the level of errors."""
    thread = threading.get_ident()

    def is_shown(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.ERROR

    logger = logging.getLogger(name)
    logger.addFilter(is_shown)
    try:
        yield
    finally:
        logger.removeFilter(is_shown)
