"""A small COCO dataset that tests write in other formats and damage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrs.data.check import Annotations, read_annotations
from detrs.data.detect import find_split
from detrs.errors import UserError

SIZES = {"train": ((61, 97), (83, 47), (59, 71)), "val": ((53, 89), (101, 79))}
"""(height, width) of the images of each split."""
BOXES = (([5.5, 7, 31, 23], "dog"), ([1, 2, 13.25, 17], "cat"), ([17, 5, 29, 41], "dog"))
"""Of the first two images of each split; the others have none."""


def write_coco(root: Path) -> Path:
    """Writes the splits ``train`` and ``val``; file names contain spaces, and the ids of classes a gap."""
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    random = np.random.default_rng(5)
    for split, sizes in SIZES.items():
        content: dict[str, Any] = {"images": [], "annotations": []}
        content["categories"] = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
        for number, (height, width) in enumerate(sizes):
            name = f"{split} {number}.png"
            Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / "images" / name)
            content["images"].append({"id": number, "file_name": name, "height": height, "width": width})
            for bbox, label in BOXES[: 3 - number] if number < 2 else ():
                entry = {"image_id": number, "category_id": {"cat": 3, "dog": 7}[label], "bbox": bbox, "iscrowd": 0}
                content["annotations"].append({"id": len(content["annotations"]), "area": bbox[2] * bbox[3]} | entry)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


def replace(path: Path, old: str, new: str, count: int = 1) -> None:
    """Replaces the first occurrences of ``old`` in a file; -1 for all of them."""
    text = path.read_text()
    assert old in text, f"{old!r} is not in {path}:\n{text}"
    path.write_text(text.replace(old, new, count))


def read(root: Path, split: str = "train") -> Annotations:
    return read_annotations(find_split(root, split))


def boxes(annotations: Annotations) -> list[tuple[str, str, list[float]]]:
    """File name, class name and [x, y, width, height] of each object, sorted."""
    names = dict(zip(annotations.classes.category_ids, annotations.classes.names, strict=True))
    files = {image.id: image.path.name for image in annotations.images}
    return sorted((files[each.image_id], names[each.category_id], list(each.bbox)) for each in annotations.objects)


def error(root: Path, split: str = "train") -> str:
    """The message of the error of a dataset."""
    with pytest.raises(UserError) as caught:
        read(root, split)
    return str(caught.value)
