import time

import pytest

from detrs.config import RuntimeConfig
from detrs.engine import clock
from detrs.engine.clock import Clock
from detrs.engine.runtime import Runtime
from detrs.engine.schedule import Pace


class Time:
    """A clock that stands still until told."""

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


def test_run_ends_within_its_budget_with_progress_one(fake: Time) -> None:
    """Steps of 2 s (the first 30 s), evaluations of 20 s every 50 steps, 600 s in all."""
    measured = Clock(Pace(10_000, 600), Runtime(RuntimeConfig(device="cpu")), began=fake.now, steps_to_evaluate=25)
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
    measured = Clock(Pace(10_000, 600), Runtime(RuntimeConfig(device="cpu")), began=fake.now, steps_to_evaluate=40)
    for seconds in (30, 2, 3):
        fake.now += seconds
        measured.end_step()
    assert measured.reserve == pytest.approx(0.5 * 40 * 2 + clock.DRAWING_SECONDS + 2)


def test_time_before_a_resume_counts(fake: Time) -> None:
    measured = Clock(Pace(100, 60), Runtime(RuntimeConfig(device="cpu")), began=fake.now, steps_to_evaluate=1)
    measured.resume({"seconds": 30, "fastest_step": 0, "evaluation": 0, "saving": 0})
    fake.now += 15
    measured.look()
    assert measured.used() == 45 and measured.progress(1) == pytest.approx(45 / (60 - clock.DRAWING_SECONDS))


def test_step_time_leaves_out_evaluations_and_saves(fake: Time) -> None:
    measured = Clock(Pace(100, 0), Runtime(RuntimeConfig(device="cpu")), began=fake.now, steps_to_evaluate=1)
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
    runtime = Runtime(RuntimeConfig(device="cpu"))
    first = Clock(Pace(10_000, 600), runtime, began=fake.now, steps_to_evaluate=1)
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
    again = Clock(Pace(10_000, 600), runtime, began=fake.now, steps_to_evaluate=1)
    again.resume(state)
    assert again.progress(1) == 1
    longer = Clock(Pace(10_000, 900), runtime, began=fake.now, steps_to_evaluate=1)
    longer.resume(state)
    assert longer.progress(1) < 1


def test_first_step_leaves_out_the_time_to_build(fake: Time) -> None:
    measured = Clock(Pace(100, 0), Runtime(RuntimeConfig(device="cpu")), began=fake.now, steps_to_evaluate=1)
    fake.now += 50
    measured.begin_steps()
    fake.now += 3
    assert measured.end_step() == 3
    assert measured.used() == 53
