"""Datasets, and everything from image files to batches."""

from pathlib import Path
from typing import TYPE_CHECKING

from detrs.errors import UserError
from detrs.on_demand import on_demand

if TYPE_CHECKING:
    from detrs.data.digits import DigitsDataset
    from detrs.data.folder_dataset import FolderDataset
    from detrs.data.sample import Dataset, Sample
    from detrs.data.samples import SampleDataset, make_sample
    from detrs.structures import Classes

__all__ = [
    "Classes",
    "Dataset",
    "DigitsDataset",
    "FolderDataset",
    "Sample",
    "SampleDataset",
    "data_exists",
    "data_root",
    "make_sample",
    "open_dataset",
]

__getattr__ = on_demand(
    __name__,
    {
        "Classes": "detrs.structures",
        "Dataset": "detrs.data.sample",
        "DigitsDataset": "detrs.data.digits",
        "FolderDataset": "detrs.data.folder_dataset",
        "Sample": "detrs.data.sample",
        "SampleDataset": "detrs.data.samples",
        "make_sample": "detrs.data.samples",
    },
)


def open_dataset(
    path: str | None, split: str, *, keep_empty: bool = True, cache_gib: float = 0.0, cache_annotations: bool = True
) -> "Dataset":
    """One split of a dataset, read and checked.

    Args:
        path: a folder in one of the COCO layouts, or ``digits`` for the built-in demo set.
        split: ``train``, ``val``, ``test`` or a synonym.
        keep_empty: keep images without objects, as negatives.
        cache_gib: memory for decoded images in GiB; the demo set caches all of its 0.1 GiB.
        cache_annotations: use the checked annotations of an earlier opening if no file has changed, and keep them for
            the next one in the cache folder of the user, or in ``DETRS_CACHE``.

    Raises:
        UserError: there is no such dataset, or its annotations have errors; all of them are listed.
    """
    from detrs.data.detect import find_split
    from detrs.data.digits import DigitsDataset
    from detrs.data.folder_dataset import FolderDataset

    if path == "digits":
        return DigitsDataset(split)
    found, cache_bytes = find_split(data_root(path), split), int(cache_gib * 2**30)
    return FolderDataset(found, keep_empty=keep_empty, cache_bytes=cache_bytes, cache_annotations=cache_annotations)


def data_root(path: str | None) -> Path:
    """The path of a dataset on disk.

    Raises:
        UserError: no path was given, or it starts with an unknown user.
    """
    if not path:
        raise UserError("No dataset was given: use --data FOLDER, or --data digits for the demo set.")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # unknown ~user
        raise UserError(f"There is no data folder '{path}': {error}") from None


def data_exists(root: Path) -> bool:
    """Whether there is a file or folder at the path of a dataset.

    Raises:
        UserError: the path cannot be read: no permission, or a name that is too long.
    """
    try:
        return root.exists()
    except OSError as error:
        raise unreadable(root, error) from error


def unreadable(root: Path, error: OSError) -> UserError:
    """The error of a dataset that cannot be read."""
    return UserError(f"The data folder '{root}' cannot be read: {error.strerror}.")
