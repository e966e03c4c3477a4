import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detrs.config import EvaluationConfig, Experiment, RuntimeConfig, ScheduleConfig
from detrs.engine import clock
from detrs.engine.clock import Clock
from detrs.engine.runtime import Runtime
from detrs.engine.schedule import lr_factor
from detrs.engine.state import TrainingState


class Time:
    """A clock that is advanced by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(clock, "time", fake)
    assert time is not fake
    return fake


def make_clock(
    total_steps: int,
    seconds: float | None,
    *,
    steps_to_evaluate: int,
    evaluation: EvaluationConfig | None = None,
    runtime: RuntimeConfig | None = None,
    epochs: int = 1,
) -> Clock:
    experiment = Experiment(
        schedule=ScheduleConfig(epochs=epochs, max_minutes=None if seconds is None else seconds / 60),
        evaluation=evaluation or EvaluationConfig(),
        runtime=runtime or RuntimeConfig(),
    )
    return Clock(
        experiment,
        Runtime(RuntimeConfig(device="cpu")),
        steps_per_epoch=total_steps // epochs,
        began=clock.time.monotonic(),
        steps_to_evaluate=steps_to_evaluate,
    )


def test_run_ends_within_its_budget_with_progress_one(fake: Time) -> None:
    """Steps of 2 s (the first 30 s), evaluations of 20 s every 50 steps, 600 s in all."""
    measured = make_clock(10_000, 600, steps_to_evaluate=25)
    seen = []
    step = 0
    while measured.progress(step) < 1:
        fake.now += 30 if step == 0 else 2
        step += 1
        assert measured.end_step() in (30, 2)
        seen.append(measured.progress(step))
        if step % 50 == 0 and measured.allows_evaluation():
            with measured.evaluating():
                fake.now += 20
        if step == 120:
            with measured.saving_state():
                fake.now += 3
    assert seen == sorted(seen) and seen[-1] == 1
    assert seen[0] < 0.1  # the slow first step did not frighten it
    assert 560 < measured.used() + 20 + 3 <= 600  # the last evaluation and save fit, and little is wasted


def test_before_any_evaluation_its_time_is_guessed_from_steps(fake: Time) -> None:
    measured = make_clock(10_000, 600, steps_to_evaluate=40)
    for seconds in (30, 2, 3):
        fake.now += seconds
        measured.end_step()
    assert measured.reserve == pytest.approx(0.5 * 40 * 2 + clock.DRAWING_SECONDS + 2)


def run_steps(measured: Clock, fake: Time, durations: Iterable[float]) -> list[float]:
    """Progress after each step, until the end of the run."""
    seen = []
    for seconds in durations:
        fake.now += seconds
        measured.end_step()
        seen.append(measured.progress(len(seen) + 1))
        if seen[-1] == 1:
            break
    return seen


STALL = 400
"""Step that stalls, after 2 of 8 minutes."""


def with_a_stall() -> Iterator[float]:
    """Steps of 0.3 s with some jitter; one takes three minutes."""
    for step in itertools.count():
        yield 180 if step == STALL else 0.3 + 0.05 * math.sin(step)


def test_learning_rate_falls_smoothly_after_a_stall(fake: Time) -> None:
    """It used to fall from 0.85 to 0.3 of its maximum in the step that stalled."""
    measured = make_clock(100_000, 480, steps_to_evaluate=10)
    seen = run_steps(measured, fake, with_a_stall())
    assert seen == sorted(seen) and seen[-1] == 1
    assert 460 < measured.used() <= 480
    left = len(seen) - STALL
    assert left > 500
    schedule = ScheduleConfig(kind="cosine", final_lr_factor=0.0)
    factors = [lr_factor(schedule, step, progress, 16) for step, progress in enumerate(seen)]
    before, after = seen[STALL - 1], seen[STALL:]
    assert before == pytest.approx(120 / 476, abs=0.02)
    expected = [before + (1 - before) * step / left for step in range(1, left + 1)]  # a straight line to the end
    assert after == pytest.approx(expected, abs=0.02)
    falls = [high - low for high, low in itertools.pairwise(factors[STALL - 1 : -1])]
    assert min(falls) >= 0 and max(falls) < 2 * factors[STALL - 1] / left


@pytest.mark.parametrize("stall", [1, 2, 5, 1500])
def test_stalls_early_and_late(fake: Time, stall: int) -> None:
    """Before there is a pace, and shortly before the end of a run of 1600 steps."""
    measured = make_clock(100_000, 480, steps_to_evaluate=10)
    seen = run_steps(measured, fake, (20.0 if step == stall else 0.3 for step in itertools.count()))
    increments = [high - low for low, high in itertools.pairwise([0, *seen])]
    assert seen == sorted(seen) and seen[-1] == 1
    assert max(increments) < 3 * increments[stall - 1] + 0.004


def test_run_that_slows_down_or_speeds_up_ends_with_progress_one(fake: Time) -> None:
    for first, second in ((0.2, 1.0), (1.0, 0.2)):
        measured = make_clock(100_000, 480, steps_to_evaluate=10)
        seen = run_steps(measured, fake, (first if measured.used() < 240 else second for _ in itertools.count()))
        increments = [high - low for low, high in itertools.pairwise([0, *seen])]
        assert seen == sorted(seen) and seen[-1] == 1
        assert max(increments[10:]) < 0.02


def test_evaluations_count_as_part_of_the_pace(fake: Time) -> None:
    """Evaluations take half of the time; without them, twice as many steps would seem to fit."""
    measured = make_clock(100_000, 1000, steps_to_evaluate=1, evaluation=EvaluationConfig(every_steps=50))
    seen: list[float] = []
    while not seen or seen[-1] < 1:
        seen += run_steps(measured, fake, [1.0] * 50)
        if measured.allows_evaluation():
            with measured.evaluating():
                fake.now += 50
    middle = len(seen) // 2
    assert seen[middle] == pytest.approx(0.5, abs=0.07)


def test_a_budget_that_is_not_reached_changes_nothing(fake: Time) -> None:
    measured = make_clock(50, 10_000, steps_to_evaluate=1)
    seen = run_steps(measured, fake, [9.0, *[1.0] * 49])
    assert seen == pytest.approx([step / 50 for step in range(1, 51)])


def test_time_before_a_resume_counts(fake: Time) -> None:
    measured = make_clock(100, 60, steps_to_evaluate=1)
    measured.resume({"seconds": 30, "fastest_step": 0, "evaluation": 0, "saving": 0})
    fake.now += 15
    measured.update()
    assert measured.used() == 45 and measured.progress(1) == pytest.approx(30 / (60 - clock.DRAWING_SECONDS))
    fake.now += 15
    measured.update()
    assert measured.progress(1) == 1


def test_progress_of_a_resumed_run_continues(fake: Time) -> None:
    durations = itertools.repeat(0.5, 1000)
    first = make_clock(100_000, 480, steps_to_evaluate=1)
    before = run_steps(first, fake, itertools.islice(durations, 300))
    state = json.loads(json.dumps(first.state()))
    fake.now += 10_000
    resumed = make_clock(100_000, 480, steps_to_evaluate=1)
    resumed.resume(state)
    assert resumed.progress(300) == before[-1]
    after = run_steps(resumed, fake, [20.0, *durations])
    assert before[-1] < after[0] < before[-1] + 0.01
    assert after == sorted(after) and after[-1] == 1
    other = make_clock(100_000, 960, steps_to_evaluate=1)
    other.resume(state)
    assert other.progress(300) == pytest.approx(150 / 960, abs=0.01)  # another budget: another schedule


def test_all_processes_use_the_clock_of_the_main_process(fake: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = (make_clock(100_000, 480, steps_to_evaluate=1) for _ in range(2))
    sent: list[Any] = []
    for measured, from_main in ((main, lambda value: sent.append(value) or value), (other, lambda value: sent[-1])):
        runtime = SimpleNamespace(from_main=from_main, device=torch.device("cpu"), is_main=measured is main)
        monkeypatch.setattr(measured, "runtime", runtime)
    other.began -= 3  # started before
    for step in range(1, 1000):
        fake.now += 0.5
        if step % 10 == 0:
            with main.evaluating():
                fake.now += 1
            with other.evaluating():
                fake.now += 0.7
        main.end_step()
        fake.now += 0.01 * (step % 7)
        other.end_step()
        assert main.progress(step) == other.progress(step)
        if main.progress(step) == 1:
            break
    assert main.progress(step) == 1


def test_step_time_leaves_out_evaluations_and_saves(fake: Time) -> None:
    measured = make_clock(100, None, steps_to_evaluate=1)
    fake.now += 5
    assert measured.end_step() == 5
    with measured.evaluating():
        fake.now += 70
    with measured.saving_state():
        fake.now += 11
    fake.now += 2
    assert measured.end_step() == 2
    assert measured.seconds_since_save() == 2 and measured.saving == 11


def test_run_that_was_over_stays_over_when_it_is_resumed(fake: Time) -> None:
    """Its evaluation and its saves are kept free although the new process has measured none yet."""
    first = make_clock(10_000, 600, steps_to_evaluate=1)
    with first.evaluating():
        fake.now += 100
    with first.saving_state():
        fake.now += 10
    while first.progress(1) < 1:
        fake.now += 5
        first.end_step()
    state = first.state()
    assert state["seconds"] < 500
    fake.now += 10_000
    again = make_clock(10_000, 600, steps_to_evaluate=1)
    again.resume(state)
    assert again.progress(1) == 1
    longer = make_clock(10_000, 900, steps_to_evaluate=1)
    longer.resume(state)
    assert longer.progress(1) < 1


def test_first_step_leaves_out_the_time_to_build(fake: Time) -> None:
    measured = make_clock(100, None, steps_to_evaluate=1)
    fake.now += 50
    measured.begin_steps()
    fake.now += 3
    assert measured.end_step() == 3
    assert measured.used() == 53


def state(**counts: int) -> TrainingState:
    return TrainingState(None, None, None, **counts)  # type: ignore[arg-type]


def test_what_is_due_after_which_step(fake: Time) -> None:
    measured = make_clock(40, None, steps_to_evaluate=1, epochs=4, evaluation=EvaluationConfig(every_epochs=2))
    with measured.saving_state():
        fake.now += 1
    due = {step for step in range(41) if measured.is_evaluation_due(state(step=step))}
    assert due == {20, 40}
    assert not measured.is_evaluation_due(state(step=20, evaluated_step=20))
    assert not measured.is_save_due(state(step=10))  # it would take more than a twentieth of the time
    fake.now += 20
    assert {step for step in range(41) if measured.is_save_due(state(step=step))} == {0, 10, 20, 30, 40}
    fake.now += 600
    assert measured.is_save_due(state(step=7))  # ten minutes after the last one
    assert [measured.epoch(step) for step in (1, 10, 11, 40)] == [1, 1, 2, 4]
    assert measured.is_finished(state(step=40)) and not measured.is_finished(state(step=39))


def test_every_steps_and_patience(fake: Time) -> None:
    measured = make_clock(40, None, steps_to_evaluate=1, evaluation=EvaluationConfig(every_steps=15, patience=2))
    assert {step for step in range(41) if measured.is_evaluation_due(state(step=step))} == {15, 30, 40}
    assert not measured.is_finished(state(step=15, evaluations_without_gain=1))
    assert measured.is_finished(state(step=15, evaluations_without_gain=2))


@pytest.mark.parametrize(("seconds", "warnings"), [(0.3, 0), (0.5, 1)])
def test_one_warning_when_steps_become_several_times_slower(
    fake: Time, caplog: pytest.LogCaptureFixture, seconds: float, warnings: int
) -> None:
    measured = make_clock(100_000, None, steps_to_evaluate=1)
    run_steps(measured, fake, [5.0, *[0.1] * 50, 60.0, *[0.1] * 20, *[seconds] * 100])
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == warnings
    assert all("0.5 s each; the fastest took 0.1 s" in text and "--threads" in text for text in messages)
