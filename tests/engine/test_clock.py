import time

import pytest

from detrs.config import EvaluationConfig, Experiment, RuntimeConfig, ScheduleConfig
from detrs.engine import clock
from detrs.engine.clock import Clock
from detrs.engine.runtime import Runtime
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


def test_time_before_a_resume_counts(fake: Time) -> None:
    measured = make_clock(100, 60, steps_to_evaluate=1)
    measured.resume({"seconds": 30, "fastest_step": 0, "evaluation": 0, "saving": 0})
    fake.now += 15
    measured.update()
    assert measured.used() == 45 and measured.progress(1) == pytest.approx(45 / (60 - clock.DRAWING_SECONDS))


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
