"""Finds images that are in both the training and the validation split, which makes the scores too high."""

import hashlib
import os
from collections import defaultdict
from functools import cache
from pathlib import Path

from detrs.data.findings import Findings
from detrs.data.fingerprint import ends
from detrs.data.sample import Dataset

END_BYTES = 65536
"""Bytes at both ends of a file that are compared before whole files are read."""


def overlap(train: Dataset, val: Dataset) -> list[str]:
    """Compares the files of two splits byte by byte.

    Only files of equal length are read: first both ends, and the whole file if these are equal. Unreadable files are
    skipped here; loading them raises an error.

    Returns:
        One line that lists the first images of ``val`` that are also in ``train``, or an empty list.
    """
    train_files, val_files = _files(train), _files(val)
    lengths = set(train_files.values()) & set(val_files.values())
    candidates: dict[bytes, list[str]] = defaultdict(list)
    for path, length in train_files.items():
        if length in lengths and (content := ends(path, END_BYTES)):
            candidates[content].append(path)
    found = Findings()
    for path, length in val_files.items():
        content = ends(path, END_BYTES) if length in lengths else None
        for candidate in candidates.get(content, ()) if content else ():
            if candidate == path or (_digest(path) and _digest(path) == _digest(candidate)):
                found.add("validation image that is also a training image", f"{path} is {candidate}")
                break
    _digest.cache_clear()
    return found.lines()


def _files(dataset: Dataset) -> dict[str, int]:
    """Length in bytes of each file; the images of the demo set have no files."""
    paths = (dataset.path_of(index) for index in range(len(dataset)))
    return {path: os.path.getsize(path) for path in paths if os.path.isfile(path)}


@cache
def _digest(path: str) -> bytes | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest()
    except OSError:
        return None
