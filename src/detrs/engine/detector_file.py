"""``best.safetensors``: one file that is enough to predict, and that says what score it promises."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

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
        UserError: the file is no such checkpoint, or this version of detrs builds another detector from its settings.
    """
    checkpoint = format.load(path)
    meta = checkpoint.meta
    if "classes" not in meta:
        raise UserError(f"'{path}' is the state of a training run, not a detector: use best.safetensors beside it.")
    origin = f"written by detrs {meta.get('detrs', 'unknown')}, this is {importlib.metadata.version('detrs')}"
    try:
        experiment: Experiment = config.from_dict(Experiment, meta["experiment"])
        classes = Classes(tuple(meta["classes"]["names"]), tuple(meta["classes"]["category_ids"]))
        detector = models.build(experiment.model)
    except UserError as error:
        raise UserError(f"The checkpoint '{path}' ({origin}) cannot be used: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"The checkpoint '{path}' ({origin}) lacks something or is malformed: {error}.") from error
    wrong = different(detector.state_dict(), checkpoint.tensors)
    if wrong:
        raise UserError(
            f"The checkpoint '{path}' ({origin}) is of another detector than its settings build here: "
            f"{format.some_of(wrong)}. Use the version of detrs that wrote it."
        )
    detector.load_state_dict(checkpoint.tensors)
    return SavedDetector(detector.eval(), experiment, classes, meta)


def different(built: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> list[str]:
    """What differs in name or shape between the weights that a detector has and those of a file."""
    missing = [f"{name} (missing)" for name in built if name not in saved]
    unknown = [f"{name} (unknown)" for name in saved if name not in built]
    shapes = [
        f"{name} ({tuple(tensor.shape)} instead of {tuple(built[name].shape)})"
        for name, tensor in saved.items()
        if name in built and tensor.shape != built[name].shape
    ]
    return missing + unknown + shapes
