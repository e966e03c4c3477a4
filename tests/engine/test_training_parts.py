"""Parameters that only training has, the embeddings of labels in denoising: trained, saved, resumed, and not in the
detector."""

import dataclasses
from pathlib import Path
from types import ModuleType

import pytest
import torch

from detrs.checkpoints import format
from detrs.config import Experiment
from detrs.config.criterion import ContrastiveDenoising, CriterionConfig
from detrs.config.dino import DINOConfig
from detrs.engine import trainer

LABELS = "objective/labels.weight"


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("save_training_batch", "save_predictions", "save_curves"):
        monkeypatch.setattr(trainer, name, lambda *arguments: None)


def denoising(tiny: ModuleType) -> Experiment:
    model = tiny.MODEL
    names = {field.name for field in dataclasses.fields(DINOConfig)} & {
        field.name for field in dataclasses.fields(model)
    }
    shared = {name: getattr(model, name) for name in names - {"classification", "proposals"}}
    experiment = dataclasses.replace(tiny.EXPERIMENT, model=DINOConfig(**shared))
    return dataclasses.replace(experiment, criterion=CriterionConfig(denoising=ContrastiveDenoising(pairs=10)))


def test_a_resumed_run_equals_the_undisturbed_one(tiny: ModuleType, tmp_path: Path) -> None:
    experiment, whole, stopped = denoising(tiny), tmp_path / "whole", tmp_path / "stopped"
    first = [report.loss for report in tiny.training(experiment, whole)]
    steps = tiny.training(experiment, stopped)
    losses = [next(steps).loss, next(steps).loss]
    steps.close()
    started = format.load(stopped / "last.safetensors").tensors[LABELS]
    losses += [report.loss for report in tiny.training(experiment, stopped, resume=True)]
    assert losses == first
    ours, theirs = (format.load(folder / "last.safetensors").tensors for folder in (stopped, whole))
    assert ours.keys() == theirs.keys()
    assert [key for key, tensor in ours.items() if not torch.equal(tensor, theirs[key])] == []
    assert not torch.equal(ours[LABELS], started), "the embeddings of labels must be trained"
    assert f"optimizer/{LABELS.replace('/', '.')}/exp_avg" in ours


def test_the_detector_that_is_saved_has_none_of_them(tiny: ModuleType, tmp_path: Path) -> None:
    for _ in tiny.training(denoising(tiny), tmp_path):
        pass
    names = format.load(tmp_path / "best.safetensors").tensors
    assert not any("labels" in name or name.startswith("objective") for name in names)
