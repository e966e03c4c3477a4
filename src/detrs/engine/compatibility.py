"""Whether an experiment fits its data, its processes and its initial weights; checked before anything is written."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from detrs import models
from detrs.checkpoints import format
from detrs.checkpoints.detector import TrainedDetector, load_detector
from detrs.checkpoints.transfer import Transfer, transfer
from detrs.config import Experiment
from detrs.data.sample import Dataset
from detrs.engine.evaluate import check_same_classes
from detrs.engine.run import changes
from detrs.errors import UserError
from detrs.models import ModelSettings
from detrs.models.detector import Model
from detrs.presets import PRESETS
from detrs.schema import to_dict
from detrs.structures import Classes

logger = logging.getLogger("detrs")


def check_divisible(batch_size: int, world_size: int, accumulate: int) -> None:
    """Check that a batch can be divided into equal micro-batches.

    Raises:
        UserError: with the batch sizes that can.
    """
    parts = world_size * accumulate
    if batch_size % parts:
        processes = "1 process" if world_size == 1 else f"{world_size} processes"
        raise UserError(
            f"data.batch_size {batch_size} cannot be divided among {processes} with {accumulate} micro-batches each "
            f"(runtime.accumulate): choose a multiple of {parts}."
        )


def check_batch_norm(experiment: Experiment, images: int, *, is_synchronized: bool = False) -> None:
    """Check that BatchNorm in the backbone has more than one value per channel.

    Args:
        experiment: settings.
        images: images of one forward pass in one process.
        is_synchronized: statistics are those of all processes.

    Raises:
        UserError: with the settings to change.
    """
    backbone, data = experiment.model.backbone, experiment.data
    stride = max(16 if backbone.dilated and stage == 5 else 2**stage for stage in backbone.stages)
    if backbone.norm == "batch" and images == 1 and not is_synchronized and min(data.resize_to) <= stride:
        raise UserError(
            f"BatchNorm needs more than one value per channel, but one image of {min(data.resize_to)} pixels per "
            f"forward pass has a last feature map of 1 x 1. Use --batch-size 2 or more per process, "
            f"--image-size {2 * stride} or more, or --model.backbone.norm frozen."
        )


def for_data(experiment: Experiment, train_set: Dataset, val_set: Dataset) -> Experiment:
    """The experiment with the number of classes of its data, and without mirroring where that changes objects.

    Raises:
        UserError: the two splits have different classes, or an image has more objects than the model can detect.
    """
    data, names = experiment.data, train_set.classes.names
    check_same_classes(names, val_set.classes.names, f"the split '{data.train_split}'", f"the split '{data.val_split}'")
    models.check_capacity(experiment.model, train_set.max_objects)
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, num_classes=len(names)),
        data=dataclasses.replace(data, mirror=data.mirror and train_set.can_be_mirrored),
    )


FREE_TO_CHANGE = (
    *("num_classes", "num_queries", "dropout", "weights", "freeze_stem"),
    *("initial_queries", "decrease_images"),  # Efficient DETR
    *("num_proposals", "num_training_proposals", "num_samples", "min_score", "nms_iou"),  # Faster R-CNN
)
"""Settings of a model, and of its backbone, that may differ from those of its initial weights."""


def architecture(config: ModelSettings) -> dict[str, Any]:
    """The settings of a model that its weights depend on."""
    values: dict[str, Any] = {"kind": type(config).__name__, **to_dict(config)}
    values["classification"] = type(getattr(config, "classification", None)).__name__  # not its weights
    values["backbone"] = {name: value for name, value in values["backbone"].items() if name not in FREE_TO_CHANGE}
    return {name: value for name, value in values.items() if name not in FREE_TO_CHANGE}


def open_initial(source: str, config: ModelSettings) -> TrainedDetector:
    """The detector whose weights training starts from.

    Args:
        source: ``Experiment.initial``.
        config: settings of the model that is trained.

    Raises:
        UserError: it cannot be read, or its model has other settings than the number of classes and queries.
    """
    start = load_detector(Path(source).expanduser())
    trained = start.experiment
    kinds = type(trained.model).__name__, type(config).__name__
    if kinds[0] != kinds[1]:
        raise UserError(
            f"The initial weights '{source}' are of another model: {kinds[0]}, and this experiment trains {kinds[1]}. "
            f"{advice(trained)}"
        )
    if wrong := changes(architecture(trained.model), architecture(config), "model"):
        raise UserError(
            f"The initial weights '{source}' are of another model ({trained.name or kinds[0]}): "
            f"{format.abbreviated(wrong)}. {advice(trained)}"
        )
    return start


def advice(trained: Experiment) -> str:
    """How to train the model of a checkpoint."""
    same = f"Train '{trained.name}'" if trained.name in PRESETS else "Train the same preset"
    return f"{same} with the same settings of the model, or start without --weights."


def initialize(model: Model, start: TrainedDetector, experiment: Experiment, classes: Classes) -> None:
    """Initialize ``model`` with the weights of ``start``, and log which classes were kept.

    Raises:
        UserError: the name of a class matches several classes of ``start``.
    """
    done = transfer(start, model, experiment.model, classes)
    ap, source = start.scores.get("ap"), experiment.initial
    logger.info("initialized from %s (AP %s)", source, "-" if ap is None else f"{ap:.4f}")
    logger.info("%s", kept_classes(done))
    if done.kept_queries is not None:
        kept, given = done.kept_queries
        wanted = experiment.model.num_queries  # type: ignore[union-attr]
        logger.info(
            "%d object queries instead of %d: %s",
            *(wanted, given, f"{wanted - kept} are new" if wanted > given else f"the first {kept} were kept"),
        )
    sizes = [f"{short}, {long}" for short, long in (start.preprocessing.resize_to, experiment.data.resize_to)]
    if sizes[0] != sizes[1]:
        logger.info("image size %s; the initial weights were trained with %s", sizes[1], sizes[0])


def kept_classes(done: Transfer) -> str:
    """The classes whose weights were kept, and the new ones, as one line of text."""
    if not done.new:
        return f"kept all {len(done.kept)} classes"
    kept = f": {format.abbreviated(done.kept)}" if done.kept else ""
    return f"kept {len(done.kept)} of {len(done.kept + done.new)} classes{kept}; new: {format.abbreviated(done.new)}"
