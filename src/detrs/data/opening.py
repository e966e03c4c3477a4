"""Opens the training and the validation part of a dataset, from its splits or by holding out a part of one split."""

import logging
from pathlib import Path
from typing import Any

from detrs.config.data import NO_SPLIT, DataConfig
from detrs.data import data_root, open_dataset
from detrs.data.content import Split, has_training_images
from detrs.data.detect import NoSplitError, choose_split, find_splits
from detrs.data.folder_dataset import FolderDataset
from detrs.data.sample import Dataset
from detrs.errors import UserError

logger = logging.getLogger("detrs")

SUGGESTED_FRACTION = 0.2
"""In messages."""


def open_splits(
    data: DataConfig, *, cache_gib: float = 0.0, cache_annotations: bool = True
) -> tuple[Dataset, Dataset | None]:
    """Opens the training and the validation part of ``data.path``; every annotation file is read once.

    Args:
        data: Names of the splits, or the fraction to hold out of the training split.
        cache_gib: Memory for decoded images of each part in GiB.
        cache_annotations: Use and keep checked annotations, as in ``open_dataset``.

    Returns:
        The training part and the validation part, which is ``None`` if ``data.val_split`` is ``none``.

    Raises:
        UserError: The dataset does not have the splits, or its annotations have errors. Both splits are searched before
            annotations are read.
    """
    if data.path is None or data.path == "digits":
        if data.path and data.val_fraction is not None:
            raise UserError(both_message(data.path, data.val_split))
        train: Dataset = open_dataset(data.path, data.train_split, keep_empty=data.keep_empty, cache_gib=cache_gib)
        return train, None if data.val_split == NO_SPLIT else open_dataset(data.path, data.val_split)
    root = data_root(data.path)
    options: dict[str, Any] = {"cache_bytes": int(cache_gib * 2**30), "cache_annotations": cache_annotations}
    found = find_splits(root)
    train_split = _train_split(found, root, data)
    if data.val_fraction is not None:
        check_unused(found, root, data)
        return FolderDataset(train_split, **options).divide(data.val_fraction, keep_empty=data.keep_empty)
    val_split = None if data.val_split == NO_SPLIT else _val_split(found, root, data)
    train = FolderDataset(train_split, keep_empty=data.keep_empty, **options)
    return train, None if val_split is None else FolderDataset(val_split, **options)


def open_training_part(data: DataConfig, *, cache_annotations: bool = True) -> Dataset:
    """Opens the training part that ``open_splits`` returns, without a search for the validation part.

    Args:
        data: The dataset and the name of the split, and the fraction to hold out.
        cache_annotations: Use and keep checked annotations, as in ``open_dataset``.

    Raises:
        UserError: There is no such split, or its annotations have errors.
    """
    if data.path is None or data.path == "digits":
        return open_dataset(data.path, data.train_split, keep_empty=data.keep_empty)
    root = data_root(data.path)
    split = _train_split(find_splits(root), root, data)
    if data.val_fraction is None:
        return FolderDataset(split, keep_empty=data.keep_empty, cache_annotations=cache_annotations)
    dataset = FolderDataset(split, cache_annotations=cache_annotations)
    return dataset.divide(data.val_fraction, keep_empty=data.keep_empty)[0]


def open_validation_part(data: DataConfig, *, cache_annotations: bool = True, warns: bool = False) -> Dataset:
    """Opens the images on which a detector with these settings is evaluated, without the training part.

    A dataset that is not divided into splits is used completely, unless ``data.val_fraction`` is set.

    Args:
        data: The dataset and the name of the split, or the fraction that is held out.
        cache_annotations: Use and keep checked annotations, as in ``open_dataset``.
        warns: Log a warning if images are held out.

    Raises:
        UserError: There is no such split, or its annotations have errors.
    """
    if data.path is None or data.path == "digits":
        return open_dataset(data.path, data.val_split)
    root = data_root(data.path)
    found = find_splits(root)
    try:
        return FolderDataset(
            choose_split(found, root, data.val_split, is_second=True), cache_annotations=cache_annotations
        )
    except NoSplitError:
        if data.val_fraction is not None:
            train_split = _train_split(found, root, data)
            whole = FolderDataset(train_split, cache_annotations=cache_annotations)
            part = whole.divide(data.val_fraction)[1]
            if warns:
                logger.warning(
                    "only %d of the %d images of '%s' are used, those that data.val_fraction %s holds out, as in "
                    "training; to use all, give the split: %s",
                    *(len(part), len(whole), data.path, data.val_fraction, train_split.name or train_split.path.stem),
                )
            return part
        if not is_undivided(found):
            raise
        return FolderDataset(choose_split(found, root, ""), cache_annotations=cache_annotations)


def is_undivided(found: list[Split]) -> bool:
    """Whether the images of a dataset are not divided into splits."""
    return bool(found) and not any(split.name for split in found)


def check_unused(found: list[Split], root: Path, data: DataConfig) -> None:
    """Checks that a dataset of which a part is held out has no validation split.

    Raises:
        UserError: It has one.
    """
    try:
        choose_split(found, root, data.val_split, is_second=True)
    except NoSplitError:
        return
    raise UserError(both_message(str(root), data.val_split))


def both_message(root: str, split: str) -> str:
    """The message for a held-out fraction of a dataset with a validation split."""
    return (
        f"data.val_fraction holds out training images, but {root} has the split '{split}' for validation: remove "
        f"data.val_fraction to evaluate on '{split}', or remove that split from the dataset."
    )


def _train_split(found: list[Split], root: Path, data: DataConfig) -> Split:
    if is_undivided(found):
        return choose_split(found, root, "")
    try:
        return choose_split(found, root, data.train_split)
    except NoSplitError as error:
        raise NoSplitError(f"{error} To train on another split, set data.train_split NAME.") from None


def _val_split(found: list[Split], root: Path, data: DataConfig) -> Split:
    try:
        return choose_split(found, root, data.val_split, is_second=True)
    except NoSplitError as error:
        used = _train_split(found, root, data)
        others = [each for each in found if each.name and each is not used and not has_training_images(each.name)]
        named = "evaluate on another split with data.val_split NAME, " if others else ""
        raise NoSplitError(
            f"{error} Set data.val_fraction {SUGGESTED_FRACTION} to hold out training images for validation, {named}"
            f"or train without validation with data.val_split {NO_SPLIT}"
        ) from None
