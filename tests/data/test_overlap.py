"""Pictures of both splits are found by their bytes, whatever they are called."""

import shutil
from collections.abc import Callable
from typing import Any

from detrs.data import DigitsDataset
from detrs.data.overlap import overlap


def test_only_equal_files_are_named(make_folder: Callable[[str], Any]) -> None:
    train, val = make_folder("train"), make_folder("val")
    names = [f"photo {number}.png" for number in range(3)]
    (val.images / names[0]).write_bytes((train.images / names[0]).read_bytes() + b"\0")  # names[1] stays the same file
    content = bytearray((train.images / names[2]).read_bytes())
    content[-20] ^= 1
    (val.images / names[2]).write_bytes(content)  # of the same length, but another
    shutil.copyfile(train.images / names[1], val.images / "again.png")
    val.data["images"].append({"id": 99, "file_name": "again.png", "height": 83, "width": 47})
    (line,) = overlap(train.open(), val.open())
    assert line.startswith("2 x picture of the validation split that is a training picture, too: ")
    assert str(train.images / names[1]) in line and names[2] not in line


def test_nothing_to_say(make_folder: Callable[[str], Any]) -> None:
    train, val = make_folder("train"), make_folder("val")
    for path in val.images.iterdir():
        path.write_bytes(path.read_bytes() + b"\0")
    assert overlap(train.open(), val.open()) == []
    assert overlap(DigitsDataset("train", 3), DigitsDataset("val", 3)) == []
