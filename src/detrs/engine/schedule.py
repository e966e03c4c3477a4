"""How the learning rate follows the run, and when a run with a time budget ends: pure functions of numbers."""

import math
from dataclasses import dataclass

from detrs.config import ScheduleConfig

WARMUP_BATCH = 16
"""Batch size at which ``warmup_steps`` counts."""
LONGEST_WARMUP = 0.1
"""Share of the run after which warm-up is over in any case."""


def lr_factor(config: ScheduleConfig, step: int, progress: float, batch_size: int) -> float:
    """Learning rate of one step, relative to the configured one.

    Args:
        config: which schedule.
        step: counts from 0 over the whole run.
        progress: share of the run that is over before the step, in [0, 1].
        batch_size: images per step.
    """
    warmup_steps = config.warmup_steps * WARMUP_BATCH / batch_size
    warmup = max((step + 1) / warmup_steps, progress / LONGEST_WARMUP) if warmup_steps > 1 else 1.0
    if config.kind == "cosine":
        decay = config.final_lr_factor + (1 - config.final_lr_factor) * (1 + math.cos(math.pi * progress)) / 2
    else:
        # the last bit of a quotient must not move a drop by a step
        decay = 0.1 ** sum(progress + 1e-9 >= at for at in config.drop_at)
    return min(1.0, warmup) * decay


@dataclass(frozen=True)
class Pace:
    """How far a run is: by steps, or by minutes where its time budget is nearer to its end."""

    total_steps: int
    budget_seconds: float
    """Wall-clock budget of the whole run, evaluations included; 0: none."""

    def progress(self, step: int, seconds: float, reserve: float) -> float:
        """Share of the run that is over, in [0, 1].

        Args:
            step: optimizer steps done.
            seconds: wall-clock time used.
            reserve: seconds that the final evaluation will take; training has to be over by then.
        """
        by_steps = step / self.total_steps
        if not self.budget_seconds:
            return min(1.0, by_steps)
        training_seconds = self.budget_seconds - reserve
        by_time = seconds / training_seconds if training_seconds > 0 else 1.0
        return min(1.0, max(by_steps, by_time))

    def allows(self, seconds: float, reserve: float) -> bool:
        """Whether something that takes ``reserve`` seconds, and after it the final evaluation, still fits."""
        return not self.budget_seconds or seconds + 2 * reserve <= self.budget_seconds
