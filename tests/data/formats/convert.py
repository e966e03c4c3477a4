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

from detrs.cli import main
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


def to_imagefolder(coco_folder: Path, split: str, output: Path, *, of_lists: bool = True, names: bool = False) -> Path:
    """``SPLIT/metadata.jsonl`` beside the images, as ``datasets.load_dataset("imagefolder")`` expects it.

    Args:
        coco_folder: The COCO dataset.
        split: Its split.
        output: The folder.
        of_lists: ``objects`` are an object of lists, instead of a list of objects.
        names: Classes are names, instead of positions in ``classes.txt``.
    """
    images, annotations, classes = read_coco(coco_folder, split)
    labels = {id_: classes[id_] if names else label for label, id_ in enumerate(classes)}
    lines = []
    for image in images:
        link_image(coco_folder, image["file_name"], output / split / image["file_name"])
        rows = [
            {"bbox": each["bbox"], "category": labels[each["category_id"]], "area": each["area"], "id": each["id"]}
            for each in annotations[image["id"]]
        ]
        keys = ("bbox", "category", "area", "id")
        objects: Any = {key: [row[key] for row in rows] for key in keys} if of_lists else rows
        lines.append(json.dumps({"file_name": image["file_name"], "objects": objects}) + "\n")
    (output / split / "metadata.jsonl").write_text("".join(lines))
    if not names:
        (output / "classes.txt").write_text("".join(f"{name}\n" for name in classes.values()))
    return output


def to_saved_dataset(coco_folder: Path, split: str, output: Path) -> Path:
    """A ``DatasetDict`` of the ``datasets`` library as ``save_to_disk`` writes it, with the images inside."""
    import datasets

    images, annotations, classes = read_coco(coco_folder, split)
    labels = {id_: label for label, id_ in enumerate(classes)}
    number, boxes = datasets.Value("float64"), datasets.Sequence(datasets.Value("float64"), length=4)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": datasets.Sequence(
                {"bbox": boxes, "category": datasets.ClassLabel(names=[*classes.values()]), "area": number}
            ),
        }
    )
    rows: dict[str, list[Any]] = {"image": [], "objects": []}
    for image in images:
        content = (coco_folder / "images" / image["file_name"]).read_bytes()
        rows["image"].append({"bytes": content, "path": image["file_name"]})
        rows["objects"].append(
            {
                "bbox": [each["bbox"] for each in annotations[image["id"]]],
                "category": [labels[each["category_id"]] for each in annotations[image["id"]]],
                "area": [each["area"] for each in annotations[image["id"]]],
            }
        )
    were_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(output / split))
    if not were_disabled:
        datasets.enable_progress_bars()
    splits = sorted(folder.name for folder in output.iterdir() if folder.is_dir())
    (output / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    return output


def subset(coco_folder: Path, output: Path, num_images: int = 4) -> Path:
    """A COCO dataset of the first images of the splits ``train`` and ``val``, for tests that train."""
    for split in ("train", "val"):
        content = json.loads((coco_folder / "annotations" / f"{split}.json").read_text())
        content["images"] = content["images"][:num_images]
        ids = {image["id"] for image in content["images"]}
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] in ids]
        for image in content["images"]:
            link_image(coco_folder, image["file_name"], output / "images" / image["file_name"])
        path = output / "annotations" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return output


def train_one_epoch(data: Path, output: Path) -> None:
    """Trains on the command line for one epoch on small images."""
    settings = (
        "--epochs 1 --device cpu --workers 0 --batch-size 2 --image-size 61 83 --quiet --model.dim 64 "
        "--model.num-heads 4 --model.ffn-dim 48 --model.decoder-layers 2 --model.encoder-layers 1 "
        "--model.num-queries 60 --model.backbone.name test_efficientnet --model.backbone.weights none"
    )
    assert main(["train", "deformable-detr-tiny", "--data", str(data), "--output", str(output), *settings.split()]) == 0
    assert (output / "best.safetensors").is_file()


def relative_box(box: list[float], image: dict[str, Any]) -> list[float]:
    """[x, y, width, height] relative to the size of the image."""
    width, height = image["width"], image["height"]
    return [box[0] / width, box[1] / height, box[2] / width, box[3] / height]


def to_fiftyone(coco_folder: Path, split: str, output: Path) -> Path:
    """``SPLIT/samples.json``, ``SPLIT/metadata.json`` and ``SPLIT/data``, as FiftyOne exports a FiftyOneDataset."""
    images, annotations, classes = read_coco(coco_folder, split)
    samples = []
    for image in images:
        link_image(coco_folder, image["file_name"], output / split / "data" / image["file_name"])
        detections = [
            {
                "_id": {"$oid": f"{each['id']:024x}"},
                "_cls": "Detection",
                "attributes": {},
                "tags": [],
                "label": classes[each["category_id"]],
                "bounding_box": relative_box(each["bbox"], image),
                "iscrowd": each.get("iscrowd", 0),
            }
            for each in annotations[image["id"]]
        ]
        size = {"_cls": "ImageMetadata", "width": image["width"], "height": image["height"], "num_channels": 3}
        ground_truth = {"_cls": "Detections", "detections": detections}
        sample = {"_id": {"$oid": f"{image['id']:024x}"}, "filepath": f"data/{image['file_name']}", "tags": [split]}
        samples.append({**sample, "metadata": size, "_media_type": "image", "ground_truth": ground_truth})
    (output / split / "samples.json").write_text(json.dumps({"samples": samples}))
    (output / split / "metadata.json").write_text(json.dumps({"name": split, "media_type": "image", "info": {}}))
    return output


def to_fiftyone_detection(coco_folder: Path, split: str, output: Path, *, listed: bool = True) -> Path:
    """``SPLIT/labels.json`` and ``SPLIT/data``, as FiftyOne exports a FiftyOneImageDetectionDataset.

    Args:
        coco_folder: The COCO dataset.
        split: Its split.
        output: The folder.
        listed: Classes are listed, and labels are positions in the list.
    """
    images, annotations, classes = read_coco(coco_folder, split)
    names = [*classes.values()]
    labels: dict[str, Any] = {}
    for image in images:
        link_image(coco_folder, image["file_name"], output / split / "data" / image["file_name"])
        rows = []
        for each in annotations[image["id"]]:
            name = classes[each["category_id"]]
            label = names.index(name) if listed else name
            rows.append({"label": label, "bounding_box": relative_box(each["bbox"], image)})
        labels[Path(image["file_name"]).stem] = rows or None
    content = {"classes": names if listed else None, "labels": labels}
    (output / split / "labels.json").write_text(json.dumps(content))
    return output
