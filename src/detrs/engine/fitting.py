"""Whether an experiment fits its data and its processes, asked before anything is written."""

import dataclasses

from detrs.config import Experiment
from detrs.data.sample import Dataset
from detrs.engine.evaluate import check_same_classes
from detrs.errors import UserError


def check_divisible(batch_size: int, world_size: int, accumulate: int) -> None:
    """Refuse a batch that cannot be divided, before anything is written.

    Raises:
        UserError: saying which sizes can.
    """
    parts = world_size * accumulate
    if batch_size % parts:
        raise UserError(
            f"data.batch_size {batch_size} cannot be divided among {world_size} processes with {accumulate} "
            f"micro-batches each: choose a multiple of {parts}."
        )


def for_data(experiment: Experiment, train_set: Dataset, val_set: Dataset) -> Experiment:
    """The experiment with the number of classes of its data, without mirroring where that makes other objects.

    Raises:
        UserError: the two splits have different classes, or an image has more objects than the model has queries.
    """
    data, names = experiment.data, train_set.classes.names
    check_same_classes(names, val_set.classes.names, f"the split '{data.train_split}'", f"the split '{data.val_split}'")
    if train_set.max_objects > experiment.model.num_queries:
        multiple = getattr(experiment.model, "num_patterns", 1)
        raise UserError(
            f"An image of '{data.path}' has {train_set.max_objects} objects, but the model can find only "
            f"{experiment.model.num_queries} in one image: raise model.num_queries to "
            f"{-(-train_set.max_objects // multiple) * multiple} or more."
        )
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, num_classes=len(names)),
        data=dataclasses.replace(data, mirror=data.mirror and train_set.can_be_mirrored),
    )
