"""Large-scale jitter, mosaic and mixup in training: until when, for how many objects, and after a resume."""

import json
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from run_tiny import Tiny, training

from detrs.checkpoints import format
from detrs.config import Experiment, ScheduleConfig
from detrs.engine import clock, trainer
from detrs.engine.clock import Clock
from detrs.engine.compatibility import object_limit
from detrs.engine.runtime import Runtime, RuntimeConfig

STRONG: dict[str, Any] = {"color_jitter": 0.5, "large_scale_jitter": (0.5, 1.5), "mosaic": 0.5, "mixup": 0.3}


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """Epoch, first step and ``is_strong`` of each call of ``training_batches``."""
    calls: list[tuple[int, int, bool]] = []
    original = trainer.training_batches

    def spied(*arguments: Any, **options: Any) -> Any:
        calls.append((options["epoch"], options["first_step"], options["is_strong"]))
        return original(*arguments, **options)

    monkeypatch.setattr(trainer, "training_batches", spied)
    for name in ("save_training_batch", "save_predictions", "save_curves"):
        monkeypatch.setattr(trainer, name, lambda *arguments: None)
    return calls


@pytest.mark.parametrize(("until", "strong"), [(0.8, 4), (0.6, 3), (0.61, 4), (1.0, 5), (0.0, 0)])
def test_it_ends_with_the_first_epoch_that_begins_after_the_fraction(
    tiny: ModuleType,
    tmp_path: Path,
    epochs: list[tuple[int, int, bool]],
    caplog: pytest.LogCaptureFixture,
    until: float,
    strong: int,
) -> None:
    data = {**STRONG, "strong_until": until, "batch_size": 14}
    experiment = tiny.experiment(data=data, schedule={"epochs": 5}, evaluation={"every_epochs": 5})
    with caplog.at_level(logging.INFO):
        list(training(experiment, tmp_path / "run"))
    assert epochs == [(epoch, 0, epoch < strong) for epoch in range(5)]
    lines = [line for line in caplog.messages if "without large-scale jitter, mosaic and mixup" in line]
    assert lines == [f"epoch {strong + 1} begins without large-scale jitter, mosaic and mixup"] * (0 < strong < 5)


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_resume_continues_bit_exactly(
    tiny: ModuleType, tmp_path: Path, epochs: list[tuple[int, int, bool]], stop: int
) -> None:
    """In the middle of the first of two epochs, between them, and in the second, which has other images."""
    experiment = tiny.experiment(data={**STRONG, "strong_until": 0.4})
    whole = [report.loss for report in training(experiment, tmp_path / "whole")]
    assert epochs == [(0, 0, True), (1, 0, False)]
    steps = training(experiment, tmp_path / "run")
    losses = [next(steps).loss for _ in range(stop)]
    steps.close()
    epochs.clear()
    losses += [report.loss for report in training(experiment, tmp_path / "run", resume=True)]
    assert epochs == [(0, 2, True), (1, 0, False)][stop > 2 :] or epochs == [(1, 1, False)]
    assert losses == whole
    ours, theirs = (format.load(tmp_path / name / "last.safetensors").tensors for name in ("run", "whole"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_time_budget_decides_once_per_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the run is resumed in the middle of an epoch."""

    class Time:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    fake = Time()
    monkeypatch.setattr(clock, "time", fake)

    def make() -> Clock:
        experiment = Experiment(schedule=ScheduleConfig(epochs=100, max_minutes=5))
        runtime = Runtime(RuntimeConfig(device="cpu"))
        return Clock(experiment, runtime, steps_per_epoch=20, began=fake.now, steps_to_evaluate=None)

    measured, began = make(), []
    for step in range(110):
        if step % 20 == 0:
            measured.begin_epoch(step)
        began.append(measured.epoch_began)
        fake.now += 2
        measured.end_step()
        if step == 50:
            measured.begin_epoch(step + 1)  # changes nothing within an epoch
    assert sorted(set(began)) == [began[20 * epoch] for epoch in range(6)]
    assert began[0] == 0 and [round(began[20 * epoch], 1) for epoch in range(1, 6)] == [0.1, 0.3, 0.4, 0.5, 0.7]
    resumed = make()
    resumed.resume(json.loads(json.dumps(measured.state())))
    resumed.begin_epoch(110)
    assert resumed.epoch_began == measured.epoch_began == began[-1] < resumed.progress(110)
    resumed.begin_epoch(120)
    assert resumed.epoch_began == resumed.progress(120)


def test_the_limit_of_objects_is_the_capacity_of_the_model(tiny: ModuleType) -> None:
    limits = {}
    for queries in (7, 11, 27, 28, 34, 35):
        for name, data in (("mosaic", {"mosaic": 0.1}), ("mixup", {"mixup": 1.0}), ("both", STRONG), ("off", {})):
            limits[name, queries] = object_limit(tiny.experiment(model={"num_queries": queries}, data=data), 7)
    assert [limits["mosaic", queries] for queries in (7, 11, 27, 28)] == [7, 11, 27, None]
    assert [limits["mixup", queries] for queries in (7, 11, 27)] == [7, 11, None]
    assert [limits["both", queries] for queries in (28, 34, 35)] == [28, 34, None]
    assert {limits["off", queries] for queries in (7, 11, 27, 28, 34, 35)} == {None}


def test_training_keeps_what_the_model_can_detect(
    tiny: ModuleType, tmp_path: Path, epochs: list[tuple[int, int, bool]], caplog: pytest.LogCaptureFixture
) -> None:
    most = Tiny("train").max_objects
    experiment = tiny.experiment(model={"num_queries": most + 1}, data={"mosaic": 1.0}, schedule={"epochs": 1})
    seen: list[int] = []
    step = trainer.Trainer.step

    def spied(self: trainer.Trainer, batches: Any) -> Any:
        seen.extend(len(target.labels) for batch in batches for target in batch.targets)
        return step(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", spied)
        list(training(experiment, tmp_path / "run"))
    assert max(seen) == most + 1
    assert f"can have up to {4 * most} objects, but the model detects at most {most + 1}: the largest" in caplog.text
