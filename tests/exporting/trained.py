"""Detectors with initial weights, as they come from a checkpoint."""

from dataclasses import replace
from typing import Any

import torch

from detrs.checkpoints.detector import TrainedDetector, preprocessing_of
from detrs.config import Experiment
from detrs.models import build
from detrs.models.detector import Model
from detrs.presets import preset
from detrs.structures import Classes


def experiment(name: str, **model: Any) -> Experiment:
    """A preset for three classes, as training on a dataset with three sets it."""
    found = preset(name)
    return replace(found, model=replace(found.model, num_classes=3, **model))


def trained(experiment: Experiment, module: Model | None = None, **settings: Any) -> TrainedDetector:
    """``module`` with the settings of ``experiment``; by default its model with initial weights."""
    if module is None:
        torch.manual_seed(0)
        module = build(experiment.model)
    return TrainedDetector(
        module=module.eval(),
        classes=Classes(("red cell", "white cell", "platelet"), (1, 2, 3)),
        preprocessing=preprocessing_of(experiment),
        experiment=experiment,
        scores={},
        step=0,
        epoch=0,
        **settings,
    )
