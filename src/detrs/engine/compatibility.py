"""Whether an experiment fits its data and its processes; checked before anything is written."""

import dataclasses

from detrs.config import Experiment
from detrs.config.criterion import OneToMany
from detrs.config.data import most_objects
from detrs.config.models import ModelSettings
from detrs.data.sample import Dataset
from detrs.engine.classes import check_same_classes
from detrs.errors import UserError


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
        UserError: the two splits have different classes, an image has more objects than the model can detect, or
            objects would be turned that must not be.
    """
    data, names = experiment.data, train_set.classes.names
    for name in ("vertical_flip", "rotate90"):
        if getattr(data, name) and not train_set.can_be_mirrored:
            raise UserError(
                f"data.{name} is True, but objects of this dataset have one orientation: mirrored or rotated, they "
                f"belong to another class or to none. Leave out --data.{name.replace('_', '-')}."
            )
    check_same_classes(names, val_set.classes.names, f"the split '{data.train_split}'", f"the split '{data.val_split}'")
    experiment.model.check_capacity(train_set.max_objects)
    assignment = experiment.criterion.assignment
    if isinstance(assignment, OneToMany) and assignment.queries < assignment.repeats * train_set.max_objects:
        raise UserError(
            f"An image of the dataset has {train_set.max_objects} objects, each of which is matched with "
            f"{assignment.repeats} of {assignment.queries} further queries: set criterion.assignment.queries to at "
            f"least {assignment.repeats * train_set.max_objects}, or criterion.assignment.repeats to fewer."
        )
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, num_classes=len(names)),
        data=dataclasses.replace(data, mirror=data.mirror and train_set.can_be_mirrored),
    )


def object_limit(experiment: Experiment, max_objects: int) -> int | None:
    """The number of objects that the model can detect in one image, if mosaic or mixup could make more.

    Args:
        experiment: settings that fit the data.
        max_objects: largest number of objects in one image of the data.
    """
    most = most_objects(experiment.data, max_objects)
    assignment = experiment.criterion.assignment
    if isinstance(assignment, OneToMany) and assignment.repeats * most > assignment.queries:
        most = assignment.queries // assignment.repeats
        return most if _can_detect(experiment.model, most) else _limit(experiment.model, max_objects, most)
    return None if _can_detect(experiment.model, most) else _limit(experiment.model, max_objects, most)


def _limit(model: ModelSettings, enough: int, too_many: int) -> int:
    """The largest number of objects that the model can detect, between one that it can and one that it cannot."""
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        enough, too_many = (middle, too_many) if _can_detect(model, middle) else (enough, middle)
    return enough


def _can_detect(model: ModelSettings, num_objects: int) -> bool:
    try:
        model.check_capacity(num_objects)
    except UserError:
        return False
    return True
