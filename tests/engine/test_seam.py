"""A model with its own losses and without queries passes through training, evaluation, checkpoints and prediction."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from run_tiny import BACKBONE, Tiny, training
from torch import Tensor, nn

import detrs
from detrs import models
from detrs.backbones.timm import BackboneConfig, TimmBackbone
from detrs.checkpoints.detector import load_detector
from detrs.criterion.objective import Objective
from detrs.engine.compatibility import for_data
from detrs.errors import UserError
from detrs.evaluation.speed import profile
from detrs.layers.neck import padding_at
from detrs.models import MODELS
from detrs.models.detector import Model
from detrs.structures import Batch, Boxes, Losses, Totals


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """One box and one class per cell of the last feature map, in the manner of YOLO: no queries, no matching."""

    num_classes: int = 1
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(stages=(5,)))
    capacity: int = 100

    def check(self) -> None:
        """No settings contradict each other."""

    def check_capacity(self, max_objects: int) -> None:
        if max_objects > self.capacity:
            raise UserError(f"{max_objects} objects, but {self.capacity} cells")


class Grid(Model):
    def __init__(self, config: GridConfig, pretrained: bool) -> None:
        super().__init__()
        self.backbone = TimmBackbone(config.backbone, pretrained)
        self.cells = nn.Conv2d(self.backbone.channels[-1], 5 + config.num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 5 + K, h, w): objectness, box, classes."""
        output: Tensor = self.cells(self.backbone(images)[-1])
        return output

    def objective(self, config: Any) -> Objective:
        return GridObjective(self)

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = 100) -> Boxes:
        output = self(images)
        hidden = padding_at(padding, (output.shape[-2], output.shape[-1])).flatten(1)
        objectness, boxes, classes = output.flatten(2).transpose(1, 2).split([1, 4, output.shape[1] - 5], dim=-1)
        scores = objectness[..., 0].sigmoid().masked_fill(hidden, 0.0)
        best = scores.topk(min(max_detections, scores.shape[1]), dim=1)
        labels = classes.argmax(-1).gather(1, best.indices)
        return Boxes(boxes.sigmoid().gather(1, best.indices[..., None].expand(-1, -1, 4)), best.values, labels)


class GridObjective(Objective):
    """The cell at the centre of an object predicts it."""

    def __init__(self, model: Grid) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, totals: Totals) -> Losses:
        output = self.model(batch.images)
        share = totals.processes / max(totals.objects, 1)
        wanted = torch.zeros_like(output[:, 0])
        box = classes = output.sum() * 0
        for i, target in enumerate(batch.targets):
            valid = ~batch.padding[i]
            sides = torch.stack([valid[0].sum() / valid.shape[1], valid[:, 0].sum() / valid.shape[0]])
            x, y = (target.boxes[:, :2] * sides * torch.tensor(output.shape[:1:-1])).long().unbind(-1)
            wanted[i, y, x] = 1.0
            found = output[i, :, y, x].T
            box = box + (found[:, 1:5].sigmoid() - target.boxes).abs().sum() * share
            classes = classes + F.cross_entropy(found[:, 5:], target.labels, reduction="sum") * share
        objects = F.binary_cross_entropy_with_logits(output[:, 0], wanted, reduction="sum") * share
        terms = {"objects": objects.detach(), "box": box.detach(), "class": classes.detach()}
        return Losses(objects + box + classes, terms)


grid = ModuleType("grid")
grid.build = Grid  # type: ignore[attr-defined]


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> GridConfig:
    """A configuration of the model, which is entered in the table of models."""
    monkeypatch.setitem(sys.modules, "grid", grid)
    monkeypatch.setitem(MODELS, GridConfig, "grid")
    return GridConfig(backbone=replace(BACKBONE, stages=(5,)))


def test_model_without_queries_is_trained_evaluated_saved_loaded_and_predicts(
    config: GridConfig, tiny: ModuleType, tmp_path: Path
) -> None:
    experiment = tiny.experiment(
        data={"augment": "none", "batch_size": 14},
        schedule={"epochs": 20},
        evaluation={"every_epochs": 20},
        optimizer={"lr": 5e-2, "backbone_lr_factor": 0.0, "clip_norm": None, "ema_decay": None},
    )
    experiment = replace(experiment, model=config)
    reports = list(training(experiment, tmp_path / "run"))
    assert set(reports[0].terms) == {"objects", "box", "class"}
    assert reports[-1].loss < 0.95 * reports[0].loss  # of the same images: a linear layer on constant features

    path = tmp_path / "run" / "best.safetensors"
    trained = load_detector(path)
    assert isinstance(trained.module, Grid) and trained.experiment.model == replace(config, num_classes=10)
    scores = detrs.evaluate(path, data=Tiny("val"), device="cpu")
    assert scores.report.scalars() == pytest.approx(reports[-1].evaluation.scalars(), abs=1e-3)  # type: ignore[union-attr]

    image = Tiny("val")[0].image
    (found,) = detrs.load(path, device="cpu")(image, threshold=0.0)
    own = [result for result in scores.results if result["image_id"] == Tiny("val").image_ids[0]]
    assert len(found) == len(own) > 0
    assert found.scores.tolist() == pytest.approx([result["score"] for result in own], abs=1e-6)


def test_its_run_is_resumed_bit_exactly(config: GridConfig, tiny: ModuleType, tmp_path: Path) -> None:
    experiment = replace(tiny.EXPERIMENT, model=config)
    expected = [report.loss for report in training(experiment, tmp_path / "whole")]
    stopped = training(experiment, tmp_path / "run")
    losses = [next(stopped).loss, next(stopped).loss]
    stopped.close()
    losses += [report.loss for report in training(experiment, tmp_path / "run", resume=True)]
    assert losses == expected


def test_it_is_profiled(config: GridConfig) -> None:
    report = profile(models.build(config), (64, 96), repeats=1)
    assert report.gflops > 0 and report.latency_ms > 0


def test_an_objective_with_parameters_that_are_not_in_its_training_parts_is_a_fault(
    config: GridConfig, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would not be optimized, averaged or saved."""

    def objective(self: Grid, settings: Any) -> Objective:
        made = GridObjective(self)
        made.extra = nn.Linear(3, 5)
        return made

    monkeypatch.setattr(Grid, "objective", objective)
    with pytest.raises(AssertionError, match="not in its training_parts"):
        next(training(replace(tiny.EXPERIMENT, model=config), tmp_path / "run"))


def test_its_capacity_is_its_own(config: GridConfig, tiny: ModuleType) -> None:
    experiment: Any = replace(tiny.EXPERIMENT, model=config)
    data: Any = SimpleNamespace(classes=Tiny("val").classes, max_objects=100, can_be_mirrored=True)
    assert for_data(experiment, data, data).model.num_classes == 10
    data.max_objects = 101
    with pytest.raises(UserError, match="101 objects, but 100 cells"):
        for_data(experiment, data, data)


def test_settings_that_need_layers_are_refused(config: GridConfig, tiny: ModuleType, tmp_path: Path) -> None:
    experiment = replace(tiny.experiment(runtime={"checkpoint_activations": True}), model=config)
    with pytest.raises(UserError, match="no encoder or decoder layers"):
        next(training(experiment, tmp_path / "run"))
