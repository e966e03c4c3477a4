"""Runs without validation, and runs that are validated on held-out training images."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from test_train import assert_same_run, one_step

from detrs.checkpoints import format
from detrs.checkpoints.detector import load_detector
from detrs.cli import main
from detrs.cli.train import summary, to_json
from detrs.config import Experiment, save, validate
from detrs.data.digits import export_coco
from detrs.engine.evaluate import evaluate_checkpoint
from detrs.engine.train import train, training
from detrs.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of the demo set without a validation split."""
    root = tmp_path_factory.mktemp("data") / "digits"
    whole = tmp_path_factory.mktemp("whole")
    export_coco(whole)
    source = next(whole.rglob("*val*.json"))
    content = json.loads(source.read_text())
    content["images"] = content["images"][:30]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    (root / "images").mkdir(parents=True)
    for image in content["images"]:
        shutil.copy(next(whole.rglob(image["file_name"])), root / "images" / image["file_name"])
    (root / "train.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def without(tiny: ModuleType) -> Experiment:
    experiment: Experiment = tiny.experiment(data={"val_split": "none"})
    return experiment


def consume(tiny: ModuleType, experiment: Experiment, output: Path, **options: Any) -> list[Any]:
    return [*training(experiment, output, **{"train_set": tiny.Tiny("train"), **options})]


def test_a_run_without_validation_keeps_the_last_weights(
    tiny: ModuleType, without: Experiment, tmp_path: Path, drawings: None, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(without, tmp_path / "run", train_set=tiny.Tiny("train"))
    assert "14 training images, no validation, 10 classes" in capsys.readouterr().err
    assert (result.scores, result.best_step, result.steps) == ({}, 6, 6)
    assert summary(result).startswith("6 steps without validation, in ") and to_json(result)["best_step"] == 6
    best, last = load_detector(result.checkpoint), format.load(tmp_path / "run" / "last.safetensors")
    assert (best.scores, best.step) == ({}, 6)
    for name, tensor in best.module.state_dict().items():
        assert torch.equal(tensor, last.tensors[f"average/{name}"]), name
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"results.png", "best.safetensors", "metrics.jsonl"}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"step"}


def test_a_stopped_run_without_validation_resumes_bit_exactly(
    tiny: ModuleType, without: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consume(tiny, without, tmp_path / "finished")
    monkeypatch.setattr("test_train.consume", functools.partial(consume, tiny))
    for step in range(1, 5):
        one_step(without, tmp_path / "run", 15, "train")
        assert format.read_meta(tmp_path / "run" / "best.safetensors")["step"] == step
    (tmp_path / "run" / "best.safetensors").unlink()
    consume(tiny, without, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "finished")


def test_lost_weights_of_a_finished_run_without_validation_are_written_anew(
    tiny: ModuleType, without: Experiment, tmp_path: Path
) -> None:
    consume(tiny, without, tmp_path / "run")
    best = tmp_path / "run" / "best.safetensors"
    before = format.load(best)
    best.unlink()
    assert consume(tiny, without, tmp_path / "run", resume=True) == []
    after = format.load(best)
    assert after.meta == before.meta and all(torch.equal(after.tensors[k], before.tensors[k]) for k in before.tensors)


def test_a_time_budget_keeps_no_time_for_an_evaluation(tiny: ModuleType, without: Experiment, tmp_path: Path) -> None:
    budget = dataclasses.replace(without, schedule=dataclasses.replace(without.schedule, max_minutes=0.02))
    reports = consume(tiny, budget, tmp_path / "run")
    assert len(reports) == 6 or reports[-1].seconds > 0.6


@pytest.mark.parametrize(
    ("section", "setting", "value"), [("data", "val_fraction", 0.2), ("evaluation", "patience", 3)]
)
def test_settings_that_need_validation(without: Experiment, section: str, setting: str, value: float) -> None:
    changed: Any = {section: dataclasses.replace(getattr(without, section), **{setting: value})}
    with pytest.raises(UserError, match=rf"{section}.{setting} is .*, but data.val_split none trains without"):
        validate(dataclasses.replace(without, **changed))


def test_arguments_that_contradict_the_settings(tiny: ModuleType, without: Experiment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"val_set was given, but data.val_split none"):
        consume(tiny, without, tmp_path / "run", val_set=tiny.Tiny("val"))
    with pytest.raises(UserError, match=r"data.val_fraction is 0.2, but holds out images of data.path only"):
        consume(tiny, tiny.experiment(data={"val_fraction": 0.2}), tmp_path / "run")
    with pytest.raises(UserError, match=r"No val_set was given"):
        consume(tiny, tiny.experiment(data={"path": None}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def settings(tiny: ModuleType, dataset: Path, **data: Any) -> Experiment:
    experiment: Experiment = tiny.experiment(data={"path": str(dataset), **data}, schedule={"epochs": 1})
    return experiment


def test_a_detector_trained_without_validation_is_evaluated_on_other_data(
    tiny: ModuleType, dataset: Path, tmp_path: Path
) -> None:
    experiment = settings(tiny, dataset, val_split="none")
    best = [*training(experiment, tmp_path / "run")] and tmp_path / "run" / "best.safetensors"
    assert evaluate_checkpoint(best, data=str(dataset), split="train").report.num_images == 30
    assert evaluate_checkpoint(best, data=tiny.Tiny("val")).report.num_images == 5
    with pytest.raises(UserError, match=r"has no split 'val'. Available splits: train"):
        evaluate_checkpoint(best)


def test_held_out_images_are_evaluated_again_and_resumed(
    tiny: ModuleType, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = settings(tiny, dataset, val_fraction=0.2)
    result = train(experiment, tmp_path / "finished", quiet=True)
    assert 4 <= result.scores["num_images"] <= 8
    again = evaluate_checkpoint(result.checkpoint).report
    assert again.num_images == result.scores["num_images"] and again.ap == pytest.approx(result.scores["ap"], abs=1e-6)
    caplog.clear()
    assert evaluate_checkpoint(result.checkpoint, data=str(dataset)).report.ap == again.ap and not caplog.messages
    moved = shutil.copytree(dataset, tmp_path / "moved")
    assert evaluate_checkpoint(result.checkpoint, data=str(moved)).report.ap == again.ap
    assert caplog.messages == [
        f"only {again.num_images} of the 30 images of '{moved}' are used, those that data.val_fraction 0.2 holds out, "
        "as in training; to use all, give the split: train"
    ]
    assert evaluate_checkpoint(result.checkpoint, data=str(moved), split="train").report.num_images == 30
    assert evaluate_checkpoint(result.checkpoint, split="train").report.num_images == 30

    steps = training(experiment, tmp_path / "run")
    next(steps), next(steps)
    steps.close()
    [*training(experiment, tmp_path / "run", resume=True)]
    assert_same_run(tmp_path / "run", tmp_path / "finished")
    changed = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, val_fraction=0.3))
    with pytest.raises(UserError, match=r"cannot be resumed with other settings: data.val_fraction: 0.2 -> 0.3"):
        [*training(changed, tmp_path / "run", resume=True)]


def test_command_line(
    tiny: ModuleType, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import detrs.cli.train as command

    monkeypatch.setattr(command, "preset", lambda name: tiny.experiment(data={"path": None}, schedule={"epochs": 1}))
    words = ["train", "tiny", "--data", str(dataset), "--device", "cpu", "--output"]
    assert main([*words, str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert "has no split 'val'. Available splits: train. Set --val-fraction 0.2 to hold out" in error
    assert main([*words, str(tmp_path / "b"), "--val-fraction", "0.2", "--json"]) == 0
    assert "ap" in json.loads(capsys.readouterr().out)
    assert main([*words, str(tmp_path / "c"), "--data.val-split", "none", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"checkpoint", "output", "best_step", "steps", "seconds"}
    assert main([*words, str(tmp_path / "d"), "--val-fraction", "1.5"]) == 2
    assert "--val-fraction" in capsys.readouterr().err
    image = next((dataset / "images").iterdir())
    assert main(["predict", str(tmp_path / "c" / "best.safetensors"), str(image), "--output", str(tmp_path / "p")]) == 0


def test_settings_of_older_runs_have_no_fraction(tiny: ModuleType, tmp_path: Path) -> None:
    from detrs import config

    save(tiny.EXPERIMENT, tmp_path / "experiment.json")
    values = json.loads((tmp_path / "experiment.json").read_text())
    del values["data"]["val_fraction"]
    (tmp_path / "experiment.json").write_text(json.dumps(values))
    assert config.load(tmp_path / "experiment.json") == tiny.EXPERIMENT
