"""Fine-tuning: the detector that training starts from, its settings, and what a new model keeps of it."""

import dataclasses
import logging
from typing import Any

from detrs.checkpoints import format
from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.sources import open_weights
from detrs.checkpoints.transfer import Transfer, transfer
from detrs.config import Experiment, RuntimeConfig
from detrs.config.data import OFFICIAL_SIZE, DataConfig
from detrs.config.models import ModelSettings
from detrs.engine.run import changes
from detrs.errors import UserError
from detrs.models.detector import Model
from detrs.presets import PRESETS, preset
from detrs.schema import to_dict
from detrs.structures import Classes

logger = logging.getLogger("detrs")

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
    start = open_weights(source)
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


def experiment_from(source: str) -> Experiment:
    """The experiment that fine-tunes a detector, without data.

    The settings of the model and the image size are those of the detector. The others are those of its preset, or, if
    it has none, of its own training.

    Args:
        source: becomes ``Experiment.initial``.

    Raises:
        UserError: the detector cannot be read.
    """
    start = open_weights(source)
    trained = start.experiment
    recipe = trained
    if trained.name in PRESETS and type(preset(trained.name).model) is type(trained.model):
        recipe = preset(trained.name)
    size, augment = start.preprocessing.resize_to, recipe.data.augment
    if augment == "official" and size != OFFICIAL_SIZE:
        augment = "crop"  # the same recipe at any size
    unset = DataConfig()
    data = dataclasses.replace(
        recipe.data,
        path=None,
        train_split=unset.train_split,
        val_split=unset.val_split,
        val_fraction=None,
        resize_to=size,
        augment=augment,
    )
    return dataclasses.replace(recipe, initial=source, model=trained.model, data=data, runtime=RuntimeConfig())


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
        wanted = getattr(experiment.model, "num_queries", 0)
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
