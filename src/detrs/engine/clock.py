"""The wall clock of a run: time used, time to keep for the last evaluation, and how far the run is."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from detrs.engine.runtime import Runtime
from detrs.engine.schedule import Pace

DRAWING_SECONDS = 2.0


class Clock:
    """Measures a run. With a time budget all processes go by the main process's clock.

    Args:
        pace: steps and minutes of the run.
        runtime: the processes that have to agree.
        began: ``time.monotonic()`` when the run began.
        steps_to_evaluate: images to evaluate, counted in batches of training.
    """

    def __init__(self, pace: Pace, runtime: Runtime, *, began: float, steps_to_evaluate: float) -> None:
        self.pace, self.runtime, self.began, self.steps_to_evaluate = pace, runtime, began, steps_to_evaluate
        self.seconds_before = 0.0
        """Used before the run was resumed."""
        self.step_began = self.saved_at = began
        self.steps = 0
        self.fastest_step = self.evaluation = self.saving = 0.0
        """Durations in seconds."""
        self.look()

    def used(self) -> float:
        """Seconds since the run began, those before it was resumed included."""
        return self.seconds_before + time.monotonic() - self.began

    def look(self) -> None:
        """Set ``seconds`` (used) and ``reserve`` (to keep for the last evaluation)."""
        # Before the first evaluation: a batch takes half of a training step, and drawing a second or two.
        evaluation = 1.25 * self.evaluation or 0.5 * self.fastest_step * self.steps_to_evaluate + DRAWING_SECONDS
        # It is saved before that evaluation, and after it.
        times = self.used(), evaluation + 2 * self.saving + self.fastest_step
        self.seconds, self.reserve = self.runtime.from_main(times) if self.pace.budget_seconds else times

    def state(self) -> dict[str, float]:
        """What was measured, for ``resume``: a run that was over by its time budget has to stay so."""
        durations = {"fastest_step": self.fastest_step, "evaluation": self.evaluation, "saving": self.saving}
        return {"seconds": self.used(), **durations}

    def resume(self, state: dict[str, float]) -> None:
        """The inverse of ``state``."""
        self.seconds_before = state["seconds"]
        self.fastest_step, self.evaluation = state["fastest_step"], state["evaluation"]
        self.saving = state["saving"]
        self.look()

    def begin_steps(self) -> None:
        """The first step begins: what came before (building, loading weights) is not part of it."""
        self.step_began = time.monotonic()

    def end_step(self) -> float:
        """Seconds since the step before, data loading included, evaluations and saves not."""
        now = time.monotonic()
        seconds, self.step_began = now - self.step_began, now
        self.steps += 1
        if self.steps > 1:  # the first one warms up
            self.fastest_step = min(seconds, self.fastest_step or math.inf)
        self.look()
        return seconds

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation and all that follows from it: note how long it takes."""
        began = time.monotonic()
        yield
        self.step_began = time.monotonic()
        self.evaluation = self.step_began - began
        self.look()

    @contextmanager
    def saving_state(self) -> Iterator[None]:
        """Around a save: note how long it takes, and when it ended."""
        began = time.monotonic()
        yield
        self.saved_at = self.step_began = time.monotonic()
        self.saving = self.saved_at - began

    def progress(self, step: int) -> float:
        """Share of the run that is over after ``step`` steps, in [0, 1]."""
        return self.pace.progress(step, self.seconds, self.reserve)

    def allows_evaluation(self) -> bool:
        """Whether an evaluation now would leave enough time for the last one."""
        return self.pace.allows(self.seconds, self.reserve)

    def seconds_since_save(self) -> float:
        return time.monotonic() - self.saved_at
