"""``best.safetensors``: one file that is enough to predict, and that says what score it promises."""

import importlib.metadata
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from detrs import config, models
from detrs.checkpoints import format
from detrs.config import Experiment
from detrs.errors import UserError
from detrs.structures import Classes


class SavedDetector(NamedTuple):
    """A detector and what belongs to it."""

    detector: nn.Module
    """On the CPU, in evaluation mode."""
    experiment: Experiment
    classes: Classes
    meta: dict[str, Any]
    """``scores``, ``step``, ``epoch``, ``preprocessing``, ... as saved."""


def save_detector(
    path: Path,
    detector: nn.Module,
    experiment: Experiment,
    classes: Classes,
    *,
    scores: dict[str, Any],
    step: int,
    epoch: int,
) -> None:
    """Write weights, configuration, classes, preprocessing and scores of a detector."""
    backbone = experiment.model.backbone
    meta = {
        "detrs": importlib.metadata.version("detrs"),
        "experiment": config.to_dict(experiment),
        "classes": {"names": list(classes.names), "category_ids": list(classes.category_ids)},
        "preprocessing": {
            "image_size": list(experiment.data.image_size),
            "mean": list(backbone.mean),
            "std": list(backbone.std),
        },
        "scores": scores,
        "step": step,
        "epoch": epoch,
    }
    format.save(path, detector.state_dict(), meta)


def load_detector(path: Path) -> SavedDetector:
    """Read what ``save_detector`` wrote.

    Raises:
        UserError: the file is no such checkpoint.
    """
    checkpoint = format.load(path)
    if "classes" not in checkpoint.meta:
        raise UserError(f"'{path}' is the state of a training run, not a detector: use best.safetensors beside it.")
    experiment: Experiment = config.from_dict(Experiment, checkpoint.meta["experiment"])
    detector = models.build(experiment.model)
    detector.load_state_dict(checkpoint.tensors)
    saved = checkpoint.meta["classes"]
    classes = Classes(tuple(saved["names"]), tuple(saved["category_ids"]))
    return SavedDetector(detector.eval(), experiment, classes, checkpoint.meta)
