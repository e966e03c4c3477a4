"""The wall clock of a run: time used, progress, and what is due."""

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from detrs.config import Experiment
from detrs.engine.runtime import Runtime
from detrs.engine.schedule import Pace, advance
from detrs.engine.state import TrainingState

logger = logging.getLogger("detrs")

DRAWING_SECONDS = 2.0
"""Time to draw the images of an evaluation, before the first one is measured."""
MAX_SAVING = 0.05
"""Largest fraction of the time for saves after epochs and before evaluations."""
RECENT_STEPS = 31
"""Steps whose median duration is the pace of the run: one that stalls does not change it."""
SLOW = 4.0
"""Pace, relative to the fastest step, that causes a warning. Images of different sizes cause smaller factors."""
ENOUGH_STEPS = 3
"""Steps to measure before there is a pace."""


class Clock:
    """Measures a run and decides what is due. With a time budget all processes use the main process's clock.

    Args:
        experiment: length of the run, intervals of evaluations and saves.
        runtime: the processes.
        steps_per_epoch: optimizer steps of one epoch.
        began: ``time.monotonic()`` when the run began.
        steps_to_evaluate: size of the validation split in training batches; ``None`` without validation.
    """

    def __init__(
        self,
        experiment: Experiment,
        runtime: Runtime,
        *,
        steps_per_epoch: int,
        began: float,
        steps_to_evaluate: float | None,
    ) -> None:
        minutes = experiment.schedule.max_minutes
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = experiment.schedule.epochs * steps_per_epoch
        self.pace = Pace(self.total_steps, None if minutes is None else 60 * minutes)
        self.evaluations, self.save_every_minutes = experiment.evaluation, experiment.runtime.save_every_minutes
        self.runtime, self.began, self.steps_to_evaluate = runtime, began, steps_to_evaluate
        self.seconds_before = 0.0
        """Used before the run was resumed."""
        self.step_began = self.saved_at = began
        self.steps = 0
        """Steps of this process, which may have resumed the run."""
        self.steps_before = 0
        self.recent: deque[float] = deque(maxlen=RECENT_STEPS)
        """Durations of the last steps, in seconds."""
        self.fastest_step = self.evaluation = self.saving = 0.0
        """Durations in seconds."""
        self.done = 0.0
        """Progress with a time budget."""
        self.epoch_began = 0.0
        """Progress at the beginning of the current epoch."""
        self.has_warned = False
        self.update()

    def used(self) -> float:
        """Seconds since the run began, including those before it was resumed."""
        return self.seconds_before + time.monotonic() - self.began

    def update(self) -> None:
        """Set ``seconds`` (used), ``reserve`` (kept for the last evaluation) and ``remaining`` (steps that fit)."""
        # Before the first evaluation: a batch takes half of a training step, plus the drawings.
        evaluation = 1.25 * self.evaluation
        if not evaluation and self.steps_to_evaluate is not None:
            evaluation = 0.5 * self.fastest_step * self.steps_to_evaluate + DRAWING_SECONDS
        # The state is saved before and after that evaluation.
        times = self.used(), evaluation + 2 * self.saving + self.fastest_step, self.evaluation, self.step_seconds()
        has_budget = self.pace.budget_seconds is not None
        self.seconds, self.reserve, evaluation, step_seconds = self.runtime.from_main(times) if has_budget else times
        if step_seconds is not None and self.allows_evaluation():
            step_seconds += evaluation / self.steps_between_evaluations
        self.remaining = self.pace.remaining(self.steps_before + self.steps, self.seconds, self.reserve, step_seconds)
        if has_budget and self.remaining <= 0:
            self.done = 1.0

    def step_seconds(self) -> float | None:
        """Recent duration of a step, without evaluations and saves; ``None`` if too few were measured."""
        return statistics.median(self.recent) if len(self.recent) >= ENOUGH_STEPS else None

    def warn_if_slow(self) -> None:
        """Log a warning, once per run, if recent steps on a CPU are several times slower than the fastest."""
        recent = self.step_seconds()
        if recent is None or len(self.recent) < RECENT_STEPS or recent < SLOW * self.fastest_step or self.has_warned:
            return
        self.has_warned = True
        if self.runtime.device.type != "cpu" or not self.runtime.is_main:
            return
        logger.warning(
            "Training steps now take %.2g s each; the fastest took %.2g s. If other programs use the CPU, stop them or "
            "train with fewer threads: --threads %d (runtime.threads), or set OMP_NUM_THREADS.",
            *(recent, self.fastest_step, max(torch.get_num_threads() // 2, 1)),
        )

    def state(self) -> dict[str, Any]:
        """The measurements, for ``resume``: a run that has used up its time budget stays finished."""
        durations = {"fastest_step": self.fastest_step, "evaluation": self.evaluation, "saving": self.saving}
        length = [self.pace.total_steps, self.pace.budget_seconds]
        steps = self.steps_before + self.steps
        progress = {"progress": self.done, "epoch_began": self.epoch_began}
        return {"seconds": self.used(), **durations, "steps": steps, **progress, "length": length}

    def resume(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``. If the length of the run has changed, its progress is determined anew."""
        self.seconds_before = state["seconds"]
        self.fastest_step, self.evaluation = state["fastest_step"], state["evaluation"]
        self.saving = state["saving"]
        self.steps_before = state.get("steps", 0)
        self.epoch_began = state.get("epoch_began", 0.0)
        self.done = 0.0
        self.update()
        if state.get("length") == [self.pace.total_steps, self.pace.budget_seconds]:
            self.done = max(self.done, state["progress"])
        else:
            self.done = self.pace.fraction(self.steps_before, self.seconds, self.reserve)

    def begin_steps(self) -> None:
        """Start measuring the first step, after the model was built and weights were loaded."""
        self.step_began = time.monotonic()

    def end_step(self) -> float:
        """Seconds since the previous step, including data loading, excluding evaluations and saves."""
        now = time.monotonic()
        seconds, self.step_began = now - self.step_began, now
        self.steps += 1
        if self.steps > 1:  # the first one includes warm-up
            self.fastest_step = min(seconds, self.fastest_step or math.inf)
            self.recent.append(seconds)
        self.update()
        self.done = advance(self.done, self.remaining)
        self.warn_if_slow()
        return seconds

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Measure the evaluation inside, with everything that follows from it."""
        began = time.monotonic()
        yield
        self.step_began = time.monotonic()
        self.evaluation = self.step_began - began
        self.update()

    @contextmanager
    def saving_state(self) -> Iterator[None]:
        """Measure the save inside."""
        began = time.monotonic()
        yield
        self.saved_at = self.step_began = time.monotonic()
        self.saving = self.saved_at - began

    def epoch(self, step: int) -> int:
        """Epoch of the step with number ``step``, both from 1."""
        return (step - 1) // self.steps_per_epoch + 1

    def progress(self, step: int) -> float:
        """Fraction of the run that is done, in [0, 1]: of its steps, or with a time budget that of the last step."""
        return self.pace.fraction(step, 0, 0) if self.pace.budget_seconds is None else self.done

    def begin_epoch(self, step: int) -> None:
        """Keep the progress after ``step`` steps, unless it is in the middle of an epoch, after a resume."""
        if step % self.steps_per_epoch == 0:
            self.epoch_began = self.progress(step)

    def is_finished(self, state: TrainingState) -> bool:
        """Whether the run is over: by epochs, by the time budget, or by patience."""
        patience = self.evaluations.patience
        is_stuck = patience is not None and state.evaluations_without_gain >= patience
        return state.step > 0 and (self.progress(state.step) >= 1 or is_stuck)

    def is_evaluation_due(self, state: TrainingState) -> bool:
        """Whether the weights after the last step are to be evaluated, and have not been."""
        is_due = state.step % self.steps_between_evaluations == 0 and self.allows_evaluation()
        has_validation = self.steps_to_evaluate is not None
        return has_validation and (is_due or self.is_finished(state)) and 0 < state.step != state.evaluated_step

    @property
    def steps_between_evaluations(self) -> int:
        return self.evaluations.every_steps or self.evaluations.every_epochs * self.steps_per_epoch

    def allows_evaluation(self) -> bool:
        """Whether there is time for an evaluation before the last one."""
        return self.pace.allows(self.seconds, self.reserve)

    def is_save_due(self, state: TrainingState) -> bool:
        """Whether the state is to be saved: after an epoch, after a while, or at the end."""
        seconds = self.seconds_since_save()
        is_epoch = state.step % self.steps_per_epoch == 0 and seconds >= self.saving / MAX_SAVING
        return is_epoch or seconds >= 60 * self.save_every_minutes or self.is_finished(state)

    def is_save_before_evaluation_due(self, state: TrainingState) -> bool:
        """Whether to save before an evaluation, which takes minutes and may fail."""
        return self.is_finished(state) or self.seconds_since_save() >= self.saving / MAX_SAVING

    def seconds_since_save(self) -> float:
        return time.monotonic() - self.saved_at
