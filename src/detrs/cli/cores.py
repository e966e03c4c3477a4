"""The number of CPU threads beside other programs."""

import logging
import os
import time
from collections.abc import Mapping

import psutil  # type: ignore[import-untyped,unused-ignore]
import torch

from detrs.config import RuntimeConfig
from detrs.devices import pick_device

logger = logging.getLogger("detrs")

WINDOWS, SECONDS = 5, 0.2
"""Number and length of the measurements of the load."""


def threads_beside_others(config: RuntimeConfig, environment: Mapping[str, str] = os.environ) -> int | None:
    """``config.threads``, or, if it is not set and other programs use cores of this machine, the number of free cores.

    In a parallel region all threads wait for the slowest, so a thread that shares its core with another program makes
    all of them several times slower.

    Args:
        config: device and threads of a run on one process.
        environment: a number of threads in the environment is not replaced.
    """
    is_set = config.threads is not None or "OMP_NUM_THREADS" in environment or "WORLD_SIZE" in environment
    threads = torch.get_num_threads()
    if is_set or threads == 1 or pick_device(config.device).type != "cpu":
        return config.threads
    free = max(1, round(max(free_cores() for _ in range(WINDOWS))))  # a short burst is not another program
    if free >= threads:
        return None
    logger.warning(
        "other programs use the CPU: training with %d thread%s instead of %d; --threads N chooses another number",
        *(free, "s" * (free > 1), threads),
    )
    return free


def free_cores() -> float:
    """Cores of this process that are idle, or used by processes of low priority only, in the next ``SECONDS``.

    From times, not from ``psutil.cpu_times_percent``, whose percentages are too small for less than a second.
    """
    began, before = time.monotonic(), _spare_seconds()
    time.sleep(SECONDS)
    elapsed = time.monotonic() - began
    return sum(min((new - old) / elapsed, 1.0) for old, new in zip(before, _spare_seconds(), strict=True))


def _spare_seconds() -> list[float]:
    """Seconds since the start of the machine in which each core of this process was free."""
    usable = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else None
    cores = [core for number, core in enumerate(psutil.cpu_times(percpu=True)) if usable is None or number in usable]
    return [core.idle + getattr(core, "nice", 0.0) + getattr(core, "iowait", 0.0) for core in cores]
