"""Data sets, and the way from a folder of pictures to batches."""

from pathlib import Path

from detrs.data.coco import CocoDataset
from detrs.data.detect import find_split
from detrs.data.digits import DigitsDataset
from detrs.data.sample import Dataset, Sample
from detrs.errors import UserError
from detrs.structures import Classes

__all__ = ["Classes", "CocoDataset", "Dataset", "DigitsDataset", "Sample", "open_dataset"]


def open_dataset(path: str, split: str, *, keep_empty: bool = True) -> Dataset:
    """One split of a data set, read and checked.

    Args:
        path: a folder in one of the COCO layouts, or ``digits`` for the built-in demo set.
        split: ``train``, ``val``, ``test`` or a synonym.
        keep_empty: keep pictures without objects, as negatives.

    Raises:
        UserError: nothing of that name is there, or the annotations have faults; all of them are listed.
    """
    if not path:
        raise UserError("No data set was given: name a folder with COCO annotations, or 'digits' for the demo set.")
    if path == "digits":
        return DigitsDataset(split)
    return CocoDataset(find_split(Path(path).expanduser(), split), keep_empty=keep_empty)
