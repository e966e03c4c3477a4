"""Writes datasets in the layouts of COCO and YOLO, with hard links to the image files.

COCO: ``annotations/instances_SPLIT.json`` and ``images/SPLIT/``. YOLO: ``data.yaml``, ``images/SPLIT/`` and
``labels/SPLIT/``, as Ultralytics reads them. All images and objects are written that evaluation uses; see
``_yolo_boxes`` for what YOLO cannot represent.
"""

import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from detrs import files
from detrs.data.check import Annotations, read_annotations
from detrs.data.content import Split, split_of
from detrs.data.detect import find_split, find_splits
from detrs.data.folders import IMAGE_SUFFIXES
from detrs.data.image_table import ImageEntry
from detrs.errors import UserError
from detrs.files import os_errors

SUFFIXES = {
    b"\xff\xd8": ".jpg",
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
"""First bytes of a file -> suffix of its format, for images without one."""


@dataclass(frozen=True)
class WrittenSplit:
    name: str
    num_images: int
    num_objects: int
    notes: tuple[str, ...]
    """Findings of the validation, and what was left out."""


def convert_dataset(
    source: Path, to: str, output: Path, *, names: Sequence[str] = (), copy: bool = False
) -> list[WrittenSplit]:
    """Writes a dataset of any format that can be read in the layout of COCO or YOLO.

    Nothing is written if the source has errors, and ``output`` is complete or does not exist.

    Args:
        source: Folder or file of the dataset.
        to: ``coco`` or ``yolo``.
        output: Folder, new or empty.
        names: Splits to write; all by default.
        copy: Copy images instead of making hard links, which share the content with the source.

    Raises:
        UserError: A split has errors or does not exist, or ``output`` is not empty or cannot be written.
    """
    output = Path(os.path.abspath(output))
    _check_output(output)
    found = [find_split(source, name) for name in dict.fromkeys(names)] if names else find_splits(source)
    if not found:
        find_split(source, "train")  # raises, with the supported layouts
    found = [split for index, split in enumerate(found) if split not in found[:index]]
    read = {name: _read(split, len(found) > 1) for name, split in zip(_names(found), found, strict=True)}
    write = _write_coco if to == "coco" else _write_yolo
    with _new_folder(output) as folder:
        return write(folder, read, files.copy if copy else files.link)


def _check_output(output: Path) -> None:
    with os_errors(f"Cannot read the output folder '{output}'"):
        if output.exists() and not output.is_dir():
            raise UserError(f"The output '{output}' is a file. Expected a new or empty folder.")
        if output.is_dir() and any(output.iterdir()):
            raise UserError(f"The output folder '{output}' is not empty: choose another one.")


def _read(split: Split, has_others: bool) -> Annotations:
    try:
        return read_annotations(split)
    except UserError as error:
        if not has_others:
            raise
        raise UserError(f"{error}\nTo convert only some of the splits, list them with --split.") from None


def _names(splits: Sequence[Split]) -> list[str]:
    """``train``, ``val`` or ``test`` instead of other names of these splits, unless two splits would be the same.

    A dataset that is not divided becomes ``train``.
    """
    names = [re.sub(r"[^\w.-]+", "-", split.name) or "train" for split in splits]
    plain = [*map(split_of, names)]
    counts = Counter(plain)
    names = [new if counts[new] == 1 else name for new, name in zip(plain, names, strict=True)]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        paths = ", ".join(str(split.path) for split, name in zip(splits, names, strict=True) if name == repeated[0])
        raise UserError(f"The dataset has several annotation files for the split '{repeated[0]}': {paths}. Keep one.")
    return names


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Yields a temporary folder, whose content is moved to ``output`` at the end of the block."""
    inside = output.is_dir()  # it may be the working directory, which must not be replaced
    folder = (output if inside else output.parent) / f".{output.name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        folder.mkdir(parents=True)
        yield folder
        if inside:
            for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == "images", reverse=True):
                os.rename(entry, output / entry.name)
            folder.rmdir()
        else:
            os.rename(folder, output)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise UserError(f"Cannot write the dataset to '{output}': {error.strerror} ({error.filename}).") from error
        raise


def _write_images(folder: Path, images: Sequence[ImageEntry], place: Callable[[Path, Path], None]) -> list[str]:
    """Writes image files and returns their names, whose stems differ also without regard to case."""
    folder.mkdir(parents=True)
    stems, names = files.UniqueStems(), []
    for image in images:
        stem, suffix = os.path.splitext(image.path.name)
        if suffix.lower() not in IMAGE_SUFFIXES:
            stem, suffix = image.path.name, _suffix(image.path)
        names.append(stems.take(stem) + suffix)
        place(image.path, folder / names[-1])
    return names


def _suffix(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(4)
    return next((suffix for magic, suffix in SUFFIXES.items() if start.startswith(magic)), ".jpg")


def _write_coco(folder: Path, read: dict[str, Annotations], place: Callable[[Path, Path], None]) -> list[WrittenSplit]:
    """Crowd regions keep ``iscrowd`` 1, which is also written for objects with ``ignore`` 1."""
    (folder / "annotations").mkdir()
    written = []
    for name, found in read.items():
        names = _write_images(folder / "images" / name, found.images, place)
        ids = found.classes.category_ids
        images = [
            {"id": image.id, "file_name": file_name, "height": image.size[0], "width": image.size[1]}
            for image, file_name in zip(found.images, names, strict=True)
        ]
        objects = found.objects
        columns = (objects.image.tolist(), objects.label.tolist(), objects.boxes.tolist(), objects.area.tolist())
        image_ids = found.images.ids.tolist()
        rows = zip(*columns, objects.crowd.tolist(), strict=True)
        annotations = [
            {
                "id": number,
                "image_id": image_ids[image],
                "category_id": ids[label],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (image, label, box, area, crowd) in enumerate(rows, 1)
        ]
        categories = [{"id": id_, "name": each} for id_, each in zip(ids, found.classes.names, strict=True)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        written.append(WrittenSplit(name, len(images), len(annotations), tuple(found.notes)))
    return written


def _write_yolo(folder: Path, read: dict[str, Annotations], place: Callable[[Path, Path], None]) -> list[WrittenSplit]:
    """Classes are numbered from 0, in the order of the first split; all splits share the list of classes."""
    classes = {name: None for found in read.values() for name in found.classes.names}
    indices = {name: index for index, name in enumerate(classes)}
    written = []
    for name, found in read.items():
        names = _write_images(folder / "images" / name, found.images, place)
        (folder / "labels" / name).mkdir(parents=True)
        sizes = found.images.sizes.astype(np.float64)
        boxes, kept, notes = _yolo_boxes(found, sizes)
        labels = [indices[each] for each in found.classes.names]
        lines: list[list[str]] = [[] for _ in names]
        for row in kept.tolist():
            values = " ".join(map(repr, boxes[row].tolist()))
            lines[found.objects.image[row]].append(f"{labels[found.objects.label[row]]} {values}\n")
        for file_name, text in zip(names, lines, strict=True):
            path = folder / "labels" / name / (os.path.splitext(file_name)[0] + ".txt")
            path.write_text("".join(text), encoding="utf-8")
        written.append(WrittenSplit(name, len(names), len(kept), (*found.notes, *notes)))
    content: dict[str, Any] = {name: f"images/{name}" for name in read}  # relative to the file without a key 'path'
    content["names"] = dict(enumerate(classes))
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=2**20)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return written


def _yolo_boxes(found: Annotations, sizes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], list[str]]:
    """Boxes as fractions of their image.

    YOLO has no crowd regions and no centers outside the image. Boxes are clipped to the image only if their center is
    outside or a side is longer than the image, so that the others stay the same.

    Args:
        found: N objects.
        sizes: (I, 2), height and width of each image.

    Returns:
        Boxes (N, 4), (cx, cy, w, h); the rows that are written; what was left out or changed.
    """
    objects = found.objects
    limits = sizes[objects.image][:, ::-1]  # (N, 2) width, height
    corners = objects.boxes[:, :2] + objects.boxes[:, 2:]
    low, high = objects.boxes[:, :2].clip(min=0), np.minimum(corners, limits)
    empty = ~objects.crowd & (high <= low).any(1)
    center = objects.boxes[:, :2] + objects.boxes[:, 2:] / 2
    outside = (center < 0) | (center > limits) | (objects.boxes[:, 2:] > limits)
    clipped = outside.any(1) & ~empty & ~objects.crowd
    x_y = np.where(clipped[:, None], low, objects.boxes[:, :2])
    sides = np.where(clipped[:, None], high - low, objects.boxes[:, 2:])
    boxes = np.concatenate([x_y + sides / 2, sides], axis=1) / np.tile(limits, 2)
    counts = {
        "crowd region or ignored object, left out (YOLO has none)": objects.crowd.sum(),
        "box without area in its image, left out": empty.sum(),
        "box that exceeds its image, clipped (YOLO has no centers outside the image)": clipped.sum(),
    }
    notes = [f"{count} x {kind}" for kind, count in counts.items() if count]
    return boxes, np.flatnonzero(~objects.crowd & ~empty), notes
