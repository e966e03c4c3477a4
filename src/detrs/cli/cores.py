"""The number of CPU threads beside other programs."""

import logging
import os
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
    """Cores of this process that are idle, or used by processes of low priority only, in the next ``SECONDS``."""
    usable = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else None
    cores = psutil.cpu_times_percent(interval=SECONDS, percpu=True)
    chosen = [core for number, core in enumerate(cores) if usable is None or number in usable]
    return sum(core.idle + getattr(core, "nice", 0.0) + getattr(core, "iowait", 0.0) for core in chosen) / 100
