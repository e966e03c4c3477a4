"""The dataset on which a detector is scored."""

import logging
import os
from dataclasses import replace
from pathlib import Path

from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.format import abbreviated
from detrs.config import Experiment
from detrs.config.data import NO_SPLIT
from detrs.data import open_dataset
from detrs.data.opening import open_validation_part
from detrs.data.protocol import check_protocol
from detrs.data.sample import Dataset
from detrs.engine.classes import check_classes
from detrs.errors import UserError

logger = logging.getLogger("detrs")


def validating(trained: Experiment, data: object, split: str | None) -> Experiment:
    """The settings of training with another dataset or another split to score, if they are given."""
    own = trained.data
    changed = replace(
        own,
        path=own.path if data is None else str(data) if isinstance(data, str | Path) else None,
        val_split=split or ("val" if own.val_split == NO_SPLIT else own.val_split),
        val_fraction=None if split else own.val_fraction,
    )
    return replace(trained, data=changed)


def dataset_to_score(
    path: Path | str,
    detector: TrainedDetector,
    experiment: Experiment,
    data: str | Path | Dataset | None,
    split: str | None,
    *,
    warns: bool = True,
) -> Dataset:
    """The images on which a detector is scored.

    Args:
        path: of the checkpoint, for messages.
        detector: it has all classes of the dataset.
        experiment: its settings, from ``validating``.
        data: as for ``evaluate_checkpoint``.
        split: as for ``evaluate_checkpoint``.
        warns: log a warning if the dataset does not have all classes of the detector.

    Raises:
        UserError: there is no such dataset or split, or classes are missing.
    """
    if data is None or isinstance(data, str | Path):
        is_other = warns and is_other_path(data, detector)
        dataset = open_validation(experiment, is_given=data is not None, is_exact=split is not None, is_other=is_other)
        name = f"the dataset '{experiment.data.path}'"
    else:
        dataset, name = data, "the dataset"
        check_protocol(dataset, "data")
        if split is not None:
            raise UserError("split: expected None with data in Python, which is one split.")
    others = check_classes(detector.classes.names, dataset.classes.names, f"the checkpoint '{path}'", name)
    if others and warns:
        logger.warning("classes that are not in %s are not scored: %s", name, abbreviated(others))
    return dataset


def is_other_path(data: str | Path | None, detector: TrainedDetector) -> bool:
    """Whether a dataset has another path than that of training: it may be another one, or have moved."""
    own = detector.experiment.data.path
    return data is not None and (own is None or _absolute(data) != _absolute(own))


def open_validation(experiment: Experiment, *, is_given: bool, is_exact: bool, is_other: bool = False) -> Dataset:
    """The validation split, without a cache since every image is used once.

    Args:
        experiment: settings.
        is_given: the caller gave the folder, not the checkpoint.
        is_exact: the caller gave the name of the split, not the checkpoint.
        is_other: log a warning if a part of the dataset is held out, since it may not be that of training.
    """
    folder, cache_annotations = experiment.data.path, experiment.runtime.cache_annotations
    try:
        if is_exact:
            return open_dataset(folder, experiment.data.val_split, cache_annotations=cache_annotations)
        return open_validation_part(experiment.data, cache_annotations=cache_annotations, warns=is_other)
    except UserError as error:
        if folder is None:
            raise UserError(
                "The checkpoint does not contain the path of a dataset, as published weights and detectors trained on "
                "data in Python: pass data=... (--data FOLDER)."
            ) from None
        if is_given or (folder is not None and os.path.isdir(os.path.expanduser(folder))):
            raise
        raise UserError(f"{error} This is the dataset of training: if it has moved, give --data.") from None


def _absolute(path: str | Path) -> str:
    return os.path.abspath(os.path.expanduser(path))
