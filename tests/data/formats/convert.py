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
from xml.sax.saxutils import escape, quoteattr

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


def to_labelme(coco_folder: Path, split: str, output: Path) -> Path:
    """``SPLIT`` with a JSON file beside each image; corners are in an order that depends on the object."""
    images, annotations, classes = read_coco(coco_folder, split)
    for image in images:
        path = output / split / image["file_name"]
        link_image(coco_folder, image["file_name"], path)
        shapes = []
        for number, annotation in enumerate(annotations[image["id"]]):
            x, y, width, height = annotation["bbox"]
            points = [[x, y + height], [x + width, y]] if number % 2 else [[x + width, y + height], [x, y]]
            label = classes[annotation["category_id"]]
            shapes.append({"label": label, "points": points, "group_id": None, "shape_type": "rectangle", "flags": {}})
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": image["file_name"],
            "imageData": None,
        }
        content |= {"imageHeight": image["height"], "imageWidth": image["width"]}
        path.with_suffix(".json").write_text(json.dumps(content, indent=2))
    return output


def to_cvat(coco_folder: Path, split: str, output: Path) -> Path:
    """``annotations.xml`` of a project whose subsets are the splits, and ``images/SPLIT``."""
    images, annotations, classes = read_coco(coco_folder, split)
    path = output / "annotations.xml"
    before = path.read_text().partition("</meta>\n")[2].removesuffix("</annotations>\n") if path.exists() else ""
    lines = []
    for number, image in enumerate(images):
        link_image(coco_folder, image["file_name"], output / "images" / split.title() / image["file_name"])
        size = f'width="{image["width"]}" height="{image["height"]}"'
        name = quoteattr(image["file_name"])
        lines.append(f'  <image id="{number}" name={name} subset="{split.title()}" task_id="1" {size}>\n')
        for annotation in annotations[image["id"]]:
            x, y, width, height = annotation["bbox"]
            sides = f'xtl="{x!r}" ytl="{y!r}" xbr="{x + width!r}" ybr="{y + height!r}"'
            label = quoteattr(classes[annotation["category_id"]])
            lines.append(f'    <box label={label} source="manual" occluded="0" {sides} z_order="0">\n    </box>\n')
        lines.append("  </image>\n")
    labels = "".join(f"<label><name>{escape(name)}</name></label>" for name in classes.values())
    content = before + "".join(lines)
    subsets = "\n".join(each for each in ("Test", "Train", "Val") if f'subset="{each}"' in content)
    project = f"<project><subsets>{subsets}</subsets><labels>{labels}</labels></project>"
    head = (
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n  <meta>{project}</meta>\n'
    )
    path.write_text(f"{head}{content}</annotations>\n")
    return path


def to_label_studio(coco_folder: Path, split: str, output: Path) -> Path:
    """``SPLIT.json``, an export of uploaded images in the format JSON, and ``images``."""
    images, annotations, classes = read_coco(coco_folder, split)
    tasks = []
    for number, image in enumerate(images, 1):
        link_image(coco_folder, image["file_name"], output / "images" / image["file_name"])
        results = []
        size = {"original_width": image["width"], "original_height": image["height"]}
        for annotation in annotations[image["id"]]:
            sides = zip(annotation["bbox"], (image["width"], image["height"]) * 2, strict=True)
            box = {
                key: 100 * side / whole for key, (side, whole) in zip(("x", "y", "width", "height"), sides, strict=True)
            }
            value = box | {"rotation": 0, "rectanglelabels": [classes[annotation["category_id"]]]}
            kind = {"id": f"r{len(results)}", "type": "rectanglelabels", "from_name": "label", "to_name": "image"}
            results.append(size | {"image_rotation": 0, "value": value} | kind)
        stored = f"/data/upload/1/{number:08x}-{image['file_name'].replace(' ', '_')}"
        annotation = {"id": number, "completed_by": 1, "result": results, "was_cancelled": False}
        tasks.append({"id": number, "annotations": [annotation], "predictions": [], "data": {"image": stored}})
    path = output / f"{split}.json"
    path.write_text(json.dumps(tasks))
    return path
