"""Writes a split of a COCO dataset in other formats, independent of the package, and compares datasets.

Each function ``to_FORMAT(coco_folder, split, output)`` adds the split to the dataset in the folder ``output``, which it
creates, with links to the images. All numbers are written in full precision.
"""

import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from detrs.data import FolderDataset
from detrs.data.detect import find_split


def read_coco(coco_folder: Path, split: str) -> tuple[list[dict[str, Any]], dict[Any, list[dict[str, Any]]], Any]:
    """The images by file name, the annotations by image id, and the class names by category id in its order."""
    content = json.loads((coco_folder / "annotations" / f"{split}.json").read_text())
    annotations = defaultdict(list)
    for annotation in content["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    images = sorted(content["images"], key=lambda image: image["file_name"])
    return (
        images,
        annotations,
        {each["id"]: each["name"] for each in sorted(content["categories"], key=lambda c: c["id"])},
    )


def link_image(coco_folder: Path, file_name: str, target: Path) -> None:
    """A hard link to an image in ``coco_folder/images``, or a copy on another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(coco_folder / "images" / file_name, target)
    except OSError:
        target.write_bytes((coco_folder / "images" / file_name).read_bytes())


def targets(dataset: FolderDataset) -> dict[str, tuple[tuple[int, int], list[str], Any]]:
    """Size, class names and boxes (N, 4) of each image by its file name; objects sorted by class and position."""
    found = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        names = [dataset.classes.names[label] for label in sample.labels]
        boxes = sample.boxes.numpy()
        order = sorted(range(len(names)), key=lambda row: (names[row], *boxes[row].round(2).tolist()))
        found[Path(sample.path).name] = (dataset.size_of(index), [names[row] for row in order], boxes[order])
    return found


def targets_digest(dataset: FolderDataset) -> str:
    """SHA-256 of all targets, independent of the order of images, objects and classes; boxes in 1/100 pixels."""
    rows = [
        (name, size, names, np.rint(boxes * 100).astype(int).tolist())
        for name, (size, names, boxes) in sorted(targets(dataset).items())
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def assert_equal_targets(path: Path, split: str, coco_folder: Path) -> None:
    """Asserts that a split has the classes, images and targets of the COCO dataset that it was written from."""
    actual, expected = (FolderDataset(find_split(root, split)) for root in (path, coco_folder))
    assert sorted(actual.classes.names) == sorted(expected.classes.names)
    found, wanted = targets(actual), targets(expected)
    assert found.keys() == wanted.keys()
    for name, (size, names, boxes) in wanted.items():
        assert (found[name][0], found[name][1]) == (size, names), name
        np.testing.assert_allclose(found[name][2], boxes, rtol=1e-6, atol=1e-4, err_msg=name)  # float32
    assert targets_digest(actual) == targets_digest(expected)
    assert (actual.max_objects, actual.num_empty) == (expected.max_objects, expected.num_empty)


def to_yolo(coco_folder: Path, split: str, output: Path) -> Path:
    """``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``, as Ultralytics expects them. Returns ``data.yaml``."""
    images, annotations, classes = read_coco(coco_folder, split)
    labels = {id_: label for label, id_ in enumerate(classes)}
    for image in images:
        link_image(coco_folder, image["file_name"], output / "images" / split / image["file_name"])
        lines = []
        for annotation in annotations[image["id"]]:
            x, y, width, height = annotation["bbox"]
            row = ((x + width / 2) / image["width"], (y + height / 2) / image["height"])
            row += (width / image["width"], height / image["height"])
            lines.append(f"{labels[annotation['category_id']]} {' '.join(map(repr, map(float, row)))}\n")
        path = (output / "labels" / split / image["file_name"]).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))
    splits = sorted(folder.name for folder in (output / "images").iterdir())
    lines = ["path: .\n", *(f"{name}: images/{name}\n" for name in splits), "names:\n"]
    lines += [f"  {label}: {json.dumps(name)}\n" for label, name in enumerate(classes.values())]
    (output / "data.yaml").write_text("".join(lines))
    return output / "data.yaml"


def to_voc(coco_folder: Path, split: str, output: Path) -> Path:
    """``Annotations``, ``JPEGImages`` and ``ImageSets/Main/SPLIT.txt``; pixels start at 1, the last one included."""
    images, annotations, classes = read_coco(coco_folder, split)
    for folder in ("Annotations", "ImageSets/Main"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    for image in images:
        link_image(coco_folder, image["file_name"], output / "JPEGImages" / image["file_name"])
        objects = []
        for annotation in annotations[image["id"]]:
            x, y, width, height = annotation["bbox"]
            sides = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
            corners = "".join(f"      <{side}>{value!r}</{side}>\n" for side, value in sides.items())
            objects.append(
                f"  <object>\n    <name>{escape(classes[annotation['category_id']])}</name>\n"
                f"    <difficult>0</difficult>\n    <bndbox>\n{corners}    </bndbox>\n  </object>\n"
            )
        size = f"<width>{image['width']}</width><height>{image['height']}</height><depth>3</depth>"
        path = (output / "Annotations" / image["file_name"]).with_suffix(".xml")
        path.write_text(
            f"<annotation>\n  <filename>{escape(image['file_name'])}</filename>\n  <size>{size}</size>\n"
            f"{''.join(objects)}</annotation>\n"
        )
    stems = [Path(image["file_name"]).stem for image in images]
    (output / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return output
