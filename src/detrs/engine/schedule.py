"""Learning-rate schedule, and the progress of a run with a time budget: pure functions of numbers."""

import math
from dataclasses import dataclass

from detrs.config import ScheduleConfig

WARMUP_BATCH = 16
"""Batch size that ``warmup_steps`` refers to."""
LONGEST_WARMUP = 0.1
"""Largest fraction of the run that warm-up takes."""


def lr_factor(config: ScheduleConfig, step: int, progress: float, batch_size: int) -> float:
    """Learning rate of one step, relative to the configured one.

    Args:
        config: which schedule.
        step: from 0, over the whole run.
        progress: fraction of the run done before the step, in [0, 1].
        batch_size: images per step.
    """
    warmup_steps = config.warmup_steps * WARMUP_BATCH / batch_size
    warmup = max((step + 1) / warmup_steps, progress / LONGEST_WARMUP) if warmup_steps > 1 else 1.0
    if config.kind == "cosine":
        decay = config.final_lr_factor + (1 - config.final_lr_factor) * (1 + math.cos(math.pi * progress)) / 2
    else:
        # rounding of a quotient must not move a drop by a step
        decay = 0.1 ** sum(progress + 1e-9 >= at for at in config.drop_at)
    return min(1.0, warmup) * decay


@dataclass(frozen=True)
class Pace:
    """Length of a run: a number of steps, or a time budget if it ends the run before."""

    total_steps: int
    budget_seconds: float | None
    """Wall-clock budget of the whole run, evaluations included; ``None``: no limit."""

    def remaining(self, step: int, seconds: float, reserve: float, step_seconds: float | None) -> float:
        """Optimizer steps that still fit; 0 at the end of the run.

        Args:
            step: optimizer steps done.
            seconds: wall-clock time used.
            reserve: seconds kept for the final evaluation; training ends before it.
            step_seconds: recent duration of a step, with its part of the evaluations; ``None``: unknown, so the time
                budget is assumed to suffice until it is used up.
        """
        steps = self.total_steps - step
        if self.budget_seconds is None:
            return steps
        left = self.budget_seconds - reserve - seconds
        if left <= 0:
            return 0.0
        return float(steps) if step_seconds is None else min(float(steps), left / step_seconds)

    def fraction(self, step: int, seconds: float, reserve: float) -> float:
        """Fraction of the run that is done, by steps or by time, whichever is larger; where no progress is known."""
        by_steps = step / self.total_steps
        if self.budget_seconds is None:
            return min(1.0, by_steps)
        training_seconds = self.budget_seconds - reserve
        by_time = seconds / training_seconds if training_seconds > 0 else 1.0
        return min(1.0, max(by_steps, by_time))

    def allows(self, seconds: float, reserve: float) -> bool:
        """Whether an evaluation of ``reserve`` seconds fits before the final one."""
        return self.budget_seconds is None or seconds + 2 * reserve <= self.budget_seconds


def advance(progress: float, remaining: float) -> float:
    """Progress after one more step, of which ``remaining`` still fit after it.

    At a constant pace this is steps / (steps + remaining). If the pace changes or the machine stalls, progress does not
    jump: what is left of it is divided equally among the steps that still fit. It never falls, and is 1 at the end.

    >>> advance(0.25, remaining=2)
    0.5
    >>> advance(0.5, remaining=0)
    1.0
    """
    return 1.0 if remaining <= 0 else progress + (1 - progress) / (remaining + 1)
