"""Data sets, and the way from a folder of pictures to batches."""

from pathlib import Path

from detrs.data.coco import CocoDataset
from detrs.data.detect import find_split
from detrs.data.digits import DigitsDataset
from detrs.data.sample import Dataset, Sample
from detrs.errors import UserError
from detrs.structures import Classes

__all__ = ["Classes", "CocoDataset", "Dataset", "DigitsDataset", "Sample", "open_dataset"]


def open_dataset(path: str, split: str, *, keep_empty: bool = True, cache_gib: float = 0.0) -> Dataset:
    """One split of a data set, read and checked.

    Args:
        path: a folder in one of the COCO layouts, or ``digits`` for the built-in demo set.
        split: ``train``, ``val``, ``test`` or a synonym.
        keep_empty: keep pictures without objects, as negatives.

        cache_gib: memory for decoded pictures; the demo set keeps all of its 0.1 GiB.

    Raises:
        UserError: nothing of that name is there, or the annotations have faults; all of them are listed.
    """
    if not path:
        raise UserError(
            "No data set was given: --data FOLDER names one with COCO annotations, --data digits the demo set."
        )
    if path == "digits":
        return DigitsDataset(split)
    try:
        root = Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"There is no data folder '{path}': {error}") from None
    return CocoDataset(find_split(root, split), keep_empty=keep_empty, cache_bytes=int(cache_gib * 2**30))
