"""Two processes on one CPU against one process."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from run_tiny import Tiny, training

from detrs.checkpoints import format
from detrs.engine.evaluate import evaluate_checkpoint
from detrs.engine.runtime import Runtime
from detrs.engine.train import training as detrs_training
from detrs.errors import UserError

SETTINGS: dict[str, Any] = {
    "model": {"dropout": 0.0},
    "data": {"augment": "flip", "min_scale": 1.0},
    "runtime": {"device": "cpu", "accumulate": 2, "log_every": 2},
}

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_two_processes_give_the_curve_of_one(
    tiny: ModuleType, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    curve = tmp_path / "curve.json"
    process = start(tmp_path / "two", "--curve", curve, json.dumps(SETTINGS), launcher=LAUNCHER)
    alone = tiny.experiment(**{**SETTINGS, "runtime": {"device": "cpu", "log_every": 2}})
    expected = list(training(alone, tmp_path / "one"))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    together = json.loads(curve.read_text())
    assert len(together) == len(expected) == 6
    for (loss, grad_norm, ap50), report in zip(together, expected, strict=True):
        assert loss == pytest.approx(report.loss, rel=1e-4)
        assert grad_norm == pytest.approx(report.grad_norm, rel=1e-3)
        assert (ap50 is None) == (report.evaluation is None)
        if report.evaluation is not None:
            assert ap50 == pytest.approx(report.evaluation.ap50, abs=0.02)
    steps = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in steps] == ["step", "step", "evaluation", "step", "step", "evaluation"]
    assert (tmp_path / "two" / "best.safetensors").exists() and not (tmp_path / "two" / "run.lock").exists()


def test_unreadable_images_of_all_processes_count(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One percent is that of all of them, also in the last epoch of a run."""
    experiment = tiny.experiment(schedule={"epochs": 1}, data={"val_split": "none"})
    monkeypatch.setattr(Runtime, "gather", lambda self, items: [*items, 3])  # of another process
    steps = detrs_training(experiment, tmp_path / "run", train_set=Tiny("train"))
    with pytest.raises(UserError, match=r"1 image of this epoch .* more than 1% of the 14 images cannot be read"):
        list(steps)


def test_best_promises_what_it_keeps_although_each_process_has_its_own_statistics(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """BatchNorm's running averages differ between processes; all have to evaluate those that are saved."""
    settings = {"model": {"backbone": {"norm": "batch"}}, "optimizer": {"ema_decay": 0.5}}
    found = tmp_path / "found.json"
    process = start(tmp_path / "run", "--results", found, json.dumps(settings), launcher=LAUNCHER)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    in_training = json.loads(found.read_text())
    best = tmp_path / "run" / "best.safetensors"
    alone = evaluate_checkpoint(best, data=Tiny("val"), device="cpu")
    assert len(alone.results) == len(in_training) == 5 * 100
    for ours, theirs in zip(alone.results, in_training, strict=True):
        assert ours["image_id"] == theirs["image_id"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
    assert alone.report.scalars()["ap50"] == pytest.approx(format.read_meta(best)["scores"]["ap50"], abs=1e-3)


def test_processes_without_objects_do_not_block_the_options_of_training(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """All options together; nearly every step has a process whose images have no objects."""
    criterion = {
        "quality": "varifocal",
        "look_forward": "twice",
        "denoising": {"kind": "ContrastiveDenoising", "pairs": 5},
        "assignment": {"kind": "OneToMany", "groups": 2, "queries": 20, "repeats": 2},
    }
    curve = tmp_path / "curve.json"
    arguments = ("--few-objects", "--curve", curve, json.dumps({"criterion": criterion}))
    process = start(tmp_path / "run", *arguments, launcher=LAUNCHER)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    losses = [loss for loss, _, _ in json.loads(curve.read_text())]
    assert len(losses) == 6 and all(0 < loss < 1e3 for loss in losses)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"class_denoising_0", "giou_denoising", "class_one_to_many", "box_one_to_many_0"} <= set(line["terms"])


@pytest.mark.slow  # two launches: half a minute and more
def test_two_processes_stop_together_and_go_on(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    settings = {
        "schedule": {"epochs": 40},
        "evaluation": {"every_epochs": 40},
        "runtime": {"device": "cpu", "log_every": 2},
    }
    output = tmp_path / "run"
    process = start(output, json.dumps(settings), launcher=LAUNCHER)
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists():  # it trains
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0, errors
    stopped_at = format.read_meta(output / "last.safetensors")["step"]
    assert 2 <= stopped_at < 120 and not (output / "run.lock").exists()

    settings["schedule"]["epochs"] = stopped_at // 3 + 1
    again = start(output, "--resume", json.dumps(settings), launcher=LAUNCHER)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    meta = format.read_meta(output / "last.safetensors")
    assert meta["step"] == meta["evaluated_step"] == 3 * (stopped_at // 3 + 1)
    assert json.loads((output / "experiment.json").read_text())["schedule"]["epochs"] == stopped_at // 3 + 1
