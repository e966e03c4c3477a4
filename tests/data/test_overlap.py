"""Images of both splits are found by their content, regardless of their names."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrs.data import DigitsDataset, fingerprint
from detrs.data import overlap as module
from detrs.data.overlap import overlap
from detrs.files import open_regular


def test_only_equal_files_are_listed(make_folder: Callable[[str], Any]) -> None:
    train, val = make_folder("train"), make_folder("val")
    names = [f"photo {number}.png" for number in range(3)]
    (val.images / names[0]).write_bytes((train.images / names[0]).read_bytes() + b"\0")  # names[1] stays the same file
    content = bytearray((train.images / names[2]).read_bytes())
    content[-20] ^= 1
    (val.images / names[2]).write_bytes(content)  # of the same length, but another
    shutil.copyfile(train.images / names[1], val.images / "again.png")
    val.data["images"].append({"id": 99, "file_name": "again.png", "height": 83, "width": 47})
    (line,) = overlap(train.open(), val.open())
    assert line.startswith("2 x validation image that is also a training image: ")
    assert str(train.images / names[1]) in line and names[2] not in line


def test_no_overlap(make_folder: Callable[[str], Any]) -> None:
    train, val = make_folder("train"), make_folder("val")
    for path in val.images.iterdir():
        path.write_bytes(path.read_bytes() + b"\0")
    assert overlap(train.open(), val.open()) == []
    assert overlap(DigitsDataset("train", 3), DigitsDataset("val", 3)) == []


def test_whole_files_are_read_only_if_their_ends_are_equal(
    make_folder: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with BMP files, which all have one length."""
    monkeypatch.setattr(module, "END_BYTES", 64)
    train, val = make_folder("train"), make_folder("val")
    for folder, colour in ((train, 10), (val, 20)):
        for number, (height, width) in enumerate(((61, 97), (83, 47), (59, 59))):
            values = np.full((height, width, 3), colour, np.uint8)
            values[height // 2] = number + colour
            if number == 1:
                values[:], values[40] = 5, colour  # equal ends, another middle
            if number == 2:
                values[:] = 7  # equal
            Image.fromarray(values).save(folder.images / f"photo {number}.png", format="BMP")
    train_set, val_set = train.open(), val.open()
    whole: list[str] = []
    read = Path.read_bytes

    def remember(path: Path) -> bytes:
        whole.append(path.name)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", remember)
    (line,) = overlap(train_set, val_set)
    assert line.startswith("1 x ") and "photo 2.png" in line
    assert sorted(whole) == ["photo 1.png"] * 2 + ["photo 2.png"] * 2


def test_unreadable_files_are_skipped(make_folder: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = make_folder("train").open(), make_folder("val").open()

    def fail(path: str) -> Any:
        if "photo 1" in path:
            raise PermissionError
        return open_regular(path)

    monkeypatch.setattr(fingerprint, "open_regular", fail)
    (line,) = overlap(train, val)
    assert line.startswith("2 x ") and "photo 1" not in line
