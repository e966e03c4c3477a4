"""Pictures that are in two splits: a detector scored on what it was trained on looks better than it is."""

import hashlib
import os
from pathlib import Path

from detrs.data.findings import Findings
from detrs.data.sample import Dataset


def overlap(train: Dataset, val: Dataset) -> list[str]:
    """A line with the pictures of ``val`` whose files are, byte by byte, files of ``train``; nothing if there are none.

    Only files of equal length are read.
    """
    train_files, val_files = _files(train), _files(val)
    lengths = set(train_files.values()) & set(val_files.values())
    known = {_digest(path): path for path, length in train_files.items() if length in lengths}
    found = Findings()
    for path, length in val_files.items():
        twin = known.get(_digest(path)) if length in lengths else None
        if twin:
            found.add("picture of the validation split that is a training picture, too", f"{path} is {twin}")
    return found.lines()


def _files(dataset: Dataset) -> dict[str, int]:
    """Length in bytes of each file; the pictures of the demo set have none."""
    paths = (dataset.path_of(index) for index in range(len(dataset)))
    return {path: os.path.getsize(path) for path in paths if os.path.isfile(path)}


def _digest(path: str) -> bytes:
    return hashlib.sha256(Path(path).read_bytes()).digest()
