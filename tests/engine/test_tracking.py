import json
import logging
import os
import random
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.state import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detrs.checkpoints import format
from detrs.engine import tracking, trainer
from detrs.engine.run import RunFolder
from detrs.engine.runtime import Runtime
from detrs.errors import UserError

FAKE = """
import json, os, sys
from pathlib import Path

FILE = Path(os.environ["FAKE_LOG"])

def write(*values):
    with FILE.open("a") as file:
        file.write(json.dumps(values) + chr(10))

class Image:
    def __init__(self, image):
        self.size = getattr(image, "size", 0) if not hasattr(image, "shape") else image.shape

class Run:
    def log(self, values, step=None):
        write("log", step, {k: v if isinstance(v, float | int | str) else "image" for k, v in values.items()})
        if step == FAIL_AT:
            raise ConnectionError("no route to host")
    def finish(self):
        write("finish")

class Config:
    def update(self, values, allow_val_change):
        write("config", values)

config, run, FAIL_AT = Config(), None, None

def active_run():
    return run

def init(**options):
    import random
    random.random()
    os.environ["FAKE_SERVICE"] = "port"
    write("init", options)
    return Run()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[ModuleType, Path]]:
    """A package with the interface of wandb or trackio that accelerate uses, and the file to which it writes."""

    def install(name: str) -> tuple[ModuleType, Path]:
        folder = tmp_path / "packages" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(textwrap.dedent(FAKE))
        monkeypatch.syspath_prepend(folder.parent)
        monkeypatch.setenv("FAKE_LOG", str(tmp_path / f"{name}.log"))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return __import__(name), tmp_path / f"{name}.log"

    return install


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain images in the place of the figures of a run."""

    def predictions(dataset: Any, results: Any, path: Path, *others: Any) -> None:
        PIL.Image.new("RGB", (2000, 1000), (200, 30, 40)).save(path)

    def curves(metrics: Path, path: Path, *others: Any) -> None:
        PIL.Image.new("RGB", (300, 200), (20, 30, 240)).save(path)

    monkeypatch.setattr(trainer, "save_predictions", predictions)
    monkeypatch.setattr(trainer, "save_curves", curves)


def run(tiny: ModuleType, output: Path, *track: str, **options: Any) -> list[Any]:
    return [*tiny.training(tiny.experiment(runtime={"track": track}), output, **options)]


def metrics(output: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def events(output: Path) -> EventAccumulator:
    read = EventAccumulator(str(output / "tensorboard" / "detrs"), size_guidance={"images": 0, "scalars": 0})
    return read.Reload()


def test_tensorboard_receives_metrics_figures_and_settings(tiny: ModuleType, tmp_path: Path, figures: None) -> None:
    """Read back with TensorBoard's own reader; and the weights are those of a run without a tracker."""
    run(tiny, tmp_path / "run", "tensorboard")
    read = events(tmp_path / "run")
    for tag, name in (("train/loss", "loss"), ("train/lr", "lr"), ("train/grad_norm", "grad_norm")):
        logged = [(event.step, event.value) for event in read.Scalars(tag)]
        assert logged == [(line["step"], pytest.approx(line[name])) for line in metrics(tmp_path / "run", "step")], tag
    terms = metrics(tmp_path / "run", "step")[-1]["terms"]
    assert {f"train/loss_{term}" for term in terms} <= {*read.Tags()["scalars"]}
    evaluations = metrics(tmp_path / "run", "evaluation")
    assert [event.value for event in read.Scalars("val/AP50")] == pytest.approx([line["ap50"] for line in evaluations])
    defined = {name for name, scores in evaluations[-1]["per_class"].items() if scores["ap"] is not None}
    assert {tag for tag in read.Tags()["scalars"] if tag.startswith("val_per_class")} == {
        f"val_per_class/AP {name}" for name in defined
    }
    assert {*read.Tags()["images"]} == {"val_predictions", "results"}
    image = read.Images("val_predictions")[0]
    assert (image.step, image.width, image.height) == (3, 1600, 800) and read.Images("results")[-1].width == 300
    (settings,) = (tmp_path / "run" / "tensorboard" / "detrs").glob("*/hparams.yml")
    assert "optimizer.lr: 0.001" in settings.read_text() and "seed: 42" in settings.read_text()

    run(tiny, tmp_path / "plain")
    tracked, plain = (format.load(tmp_path / name / "last.safetensors").tensors for name in ("run", "plain"))
    assert tracked.keys() == plain.keys() and all(torch.equal(tracked[name], plain[name]) for name in plain)


def test_a_resumed_run_continues_the_same_tracker_runs(
    tiny: ModuleType, tmp_path: Path, fake: Callable[[str], tuple[ModuleType, Path]]
) -> None:
    _, log = fake("wandb")
    steps = tiny.training(tiny.experiment(runtime={"track": ("wandb", "tensorboard")}), tmp_path / "run")
    for _ in range(3):
        next(steps)
    steps.close()
    run(tiny, tmp_path / "run", "wandb", "tensorboard", resume=True)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    first, second = [line[1] for line in lines if line[0] == "init"]
    assert first == second and first["resume"] == "allow" and first["name"] == "run" and first["project"] == "detrs"
    assert len([line for line in lines if line[0] == "config"]) == 1, "the settings are logged once"
    logged = [step for kind, step, *_ in (line for line in lines if line[0] == "log")]
    assert logged == sorted(logged) and set(logged) == {2, 3, 4, 6}
    assert [event.step for event in events(tmp_path / "run").Scalars("train/loss")] == [2, 3, 4, 6]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_others_through_the_classes_of_accelerate(
    tiny: ModuleType, tmp_path: Path, fake: Callable[[str], tuple[ModuleType, Path]], figures: None, name: str
) -> None:
    _, log = fake(name)
    run(tiny, tmp_path / "run", name)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line[0] for line in lines[:2]] == ["init", "config"] and lines[-1] == ["finish"]
    assert lines[1][1]["optimizer.lr"] == 1e-3 and lines[1][1]["data.resize_to"] == "[64, 96]"
    values = [line[2] for line in lines if line[0] == "log"]
    assert values[0]["train/loss"] == metrics(tmp_path / "run", "step")[0]["loss"]
    assert any("val/AP" in each for each in values)
    images = [key for each in values for key, value in each.items() if value == "image"]
    assert images[0] == "val_predictions" and images[-1] == "results"


def test_the_program_keeps_its_state(
    tiny: ModuleType, tmp_path: Path, fake: Callable[[str], tuple[ModuleType, Path]]
) -> None:
    """Random generators, environment and accelerate's state; the fake tracker draws numbers and sets a variable."""
    fake("wandb")
    runtime, state = Runtime(tiny.EXPERIMENT.runtime), PartialState._shared_state
    before, drawn = dict(os.environ), random.getstate()
    tracker = tracking.Tracking(runtime, RunFolder(tmp_path))
    with tracker.open(tiny.experiment(runtime={"track": ("wandb",)}), step=0, is_new=True):
        assert os.environ["FAKE_SERVICE"] == "port"
        os.environ["OWN"] = "1"
        tracker.line({"kind": "step", "step": 1, "epoch": 1, "loss": 1.0})
        assert PartialState._shared_state is state
    assert random.getstate() == drawn and dict(os.environ) == {**before, "OWN": "1"}
    del os.environ["OWN"]


def test_a_tracker_that_fails_does_not_end_the_run(
    tiny: ModuleType,
    tmp_path: Path,
    fake: Callable[[str], tuple[ModuleType, Path]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, log = fake("wandb")
    monkeypatch.setattr(module, "FAIL_AT", 2)
    with caplog.at_level(logging.WARNING, "detrs"):
        assert len(run(tiny, tmp_path / "run", "wandb")) == 6
    *_, warning = [record.getMessage() for record in caplog.records]
    assert warning.startswith("wandb failed, nothing more is logged to it (no route to host)")
    assert sum(json.loads(line)[0] == "log" for line in log.read_text().splitlines()) == 1


def test_a_tracker_that_cannot_start_is_one_sentence(
    tiny: ModuleType,
    tmp_path: Path,
    fake: Callable[[str], tuple[ModuleType, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, _ = fake("wandb")

    def fail(**options: Any) -> None:
        os.environ["FAKE_SERVICE"] = "port"
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setattr(module, "init", fail)
    expected = "The tracker wandb could not be started: api_key not configured (no-tty)"
    with pytest.raises(UserError) as error:
        run(tiny, tmp_path / "run", "tensorboard", "wandb")
    assert str(error.value) == expected and "FAKE_SERVICE" not in os.environ
    assert len(run(tiny, tmp_path / "run", "tensorboard")) == 6, "the folder of the failed start can be used"


@pytest.mark.parametrize(("name", "end"), [("wandb", "wandb.finish()"), ("mlflow", "mlflow.end_run()")])
def test_an_open_run_of_the_program_is_left_alone(
    tiny: ModuleType, tmp_path: Path, fake: Callable[[str], tuple[ModuleType, Path]], name: str, end: str
) -> None:
    """``wandb.init`` would return that run, and it would be finished at the end of training."""
    module, log = fake(name)
    module.run = module.init()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=f"has a run open in it: call {re.escape(end)} before training"):
        run(tiny, tmp_path / "run", name)
    assert [json.loads(line)[0] for line in log.read_text().splitlines()] == ["init"]
    assert not (tmp_path / "run").exists()
    os.environ.pop("FAKE_SERVICE")  # of this test's own run


def test_a_missing_package_is_named_before_data_are_loaded(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = tracking.importlib.util.find_spec
    missing = {"mlflow", "tensorboard"}
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    monkeypatch.setattr(trainer, "Trainer", None)
    for name, command in (("mlflow", "pip install mlflow"), ("tensorboard", "pip install 'detrs[track]'")):
        with pytest.raises(UserError) as error:
            run(tiny, tmp_path / "run", name)
        assert str(error.value) == (f"runtime.track is '{name}', but the package {name} is not installed: {command}")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="not one of"):
        run(tiny, tmp_path / "run", "tensorbord")


def test_values_are_finite_and_named_for_people() -> None:
    line = {"kind": "evaluation", "step": 9, "epoch": 2, "ap": 0.5, "ap50": None, "ap_small": 0.25, "ar100": 0.75}
    table = {"a/b": {"ap": 0.125}, "unseen": {"ap": None}}
    assert tracking.scalars({**line, "per_class": table}) == {
        "val/AP": 0.5,
        "val/AP_small": 0.25,
        "val/AR100": 0.75,
        "val_per_class/AP a_b": 0.125,
        "epoch": 2,
    }
    skipped = {"kind": "step", "step": 2, "epoch": 1, "loss": None, "terms": {}, "lr": 0.1, "skipped": 2}
    assert tracking.scalars(skipped) == {"train/lr": 0.1, "train/skipped": 2, "epoch": 1}
    assert tracking._named_for("mlflow", {"val_per_class/AP <b>&(血)": 1.0}) == {"val_per_class/AP _b___血_": 1.0}


def test_images_of_mlflow_are_files(tmp_path: Path) -> None:
    stored = []

    class MLflow:
        def log_artifact(self, path: str) -> None:
            stored.append(path)

    figure = tracking.Image.fromarray(np.zeros((3, 5, 3), dtype=np.uint8))
    tracking._log_image("mlflow", MLflow(), "results", figure, tmp_path / "results.png", 3)
    assert stored == [str(tmp_path / "results.png")]
