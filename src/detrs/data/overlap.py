"""Pictures that are in two splits: a detector scored on what it was trained on looks better than it is."""

import hashlib
import os
from collections import defaultdict
from functools import cache
from pathlib import Path

from detrs.data.findings import Findings
from detrs.data.sample import Dataset

END_BYTES = 65536
"""Compared at both ends of files of equal length before all of them is read."""


def overlap(train: Dataset, val: Dataset) -> list[str]:
    """A line with the pictures of ``val`` whose files are, byte by byte, files of ``train``; nothing if there are none.

    Of files of equal length both ends are compared, and only of those with equal ends the rest. Files that cannot be
    read are left out: loading tells of them.
    """
    train_files, val_files = _files(train), _files(val)
    lengths = set(train_files.values()) & set(val_files.values())
    twins: dict[bytes, list[str]] = defaultdict(list)
    for path, length in train_files.items():
        if length in lengths and (ends := _ends(path, length)):
            twins[ends].append(path)
    found = Findings()
    for path, length in val_files.items():
        ends = _ends(path, length) if length in lengths else None
        for twin in twins.get(ends, ()) if ends else ():
            if twin == path or (_digest(path) and _digest(path) == _digest(twin)):
                found.add("picture of the validation split that is a training picture, too", f"{path} is {twin}")
                break
    _digest.cache_clear()
    return found.lines()


def _files(dataset: Dataset) -> dict[str, int]:
    """Length in bytes of each file; the pictures of the demo set have none."""
    paths = (dataset.path_of(index) for index in range(len(dataset)))
    return {path: os.path.getsize(path) for path in paths if os.path.isfile(path)}


def _ends(path: str, length: int) -> bytes | None:
    """What tells most files of one length apart; nothing if it cannot be read."""
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256(b"%d " % length + file.read(END_BYTES))
            file.seek(max(0, length - END_BYTES))
            digest.update(file.read(END_BYTES))
    except OSError:
        return None
    return digest.digest()


@cache
def _digest(path: str) -> bytes | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest()
    except OSError:
        return None
