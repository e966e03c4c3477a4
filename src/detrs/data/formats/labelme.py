"""LabelMe: one JSON file for each image, with shapes in pixels.

LabelMe shows images upright, so that its coordinates are those after EXIF orientation.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from detrs.data.content import Content, ImageRow, Split
from detrs.data.findings import Findings
from detrs.data.formats.class_names import ClassNames
from detrs.data.formats.file_per_image import ImageFiles, files, groups
from detrs.data.formats.item_columns import ItemColumns, floats
from detrs.data.formats.json_head import top_level_keys
from detrs.data.json_file import read_json
from detrs.data.objects import ENCLOSED, ROTATED, box_fault
from detrs.errors import UserError

NAME = "LabelMe"
LAYOUTS = ("{split}/*.json with the images beside them or in {split}/images/ (LabelMe)",)
ANNOTATIONS = ("annotations", "Annotations", "labels", "json")
KEYS = frozenset({"shapes", "imagePath", "imageData"})
WHAT = "a LabelMe annotation file"
NUM_SNIFFED = 3
ENCLOSED_TYPES = frozenset({"polygon", "circle", "linestrip", "line", "mask"})
ROTATED_TYPES = frozenset({"rotation", "oriented_rectangle"})
"""Of X-AnyLabeling and of LabelMe."""
TYPES = {"rectangle"} | ENCLOSED_TYPES | ROTATED_TYPES
"""Shapes that have a box."""


@dataclass(frozen=True)
class LabelmeSplit(Split):
    """All annotation files in a folder."""

    name: str
    path: Path
    root: Path
    """The dataset. Paths in messages are relative to it."""
    images: tuple[Path, ...]
    """Folders of the images, most likely first."""
    every: tuple[Path, ...]
    """Folders of the annotation files of all splits: classes are the labels of all of them."""

    def read(self, errors: Findings, notes: Findings) -> Content:
        reader = _Reader(self, errors, notes)
        rows: list[ImageRow | None] = []
        for name in files(self.path, ".json"):
            if row := reader.image(len(rows) + 1, self.path / name):
                rows.append(row)
        reader.add_classes_of(
            folder / name for folder in self.every if folder != self.path for name in files(folder, ".json")
        )
        categories = reader.classes.categories(reader.columns)
        reader.digest.update(reader.classes.digest())
        return Content(
            images=rows,
            objects=reader.columns,
            categories=categories,
            folders=self.images,
            digest=reader.digest.digest(),
        )


class _Reader:
    def __init__(self, split: LabelmeSplit, errors: Findings, notes: Findings) -> None:
        self.split, self.errors, self.notes = split, errors, notes
        self.columns = ItemColumns("shapes")
        self.classes = ClassNames(notes)
        self.digest = hashlib.sha256()
        self._images = ImageFiles([split.path, *split.images])
        self._dataset = ImageFiles([split.root])

    def image(self, id_: int, path: Path) -> ImageRow | None:
        """Reads an annotation file; ``None`` if the file is not of LabelMe."""
        file = path.relative_to(self.split.root).as_posix()
        try:
            data, digest = read_json(path, {}, self.errors, self.notes, what=WHAT, place=f"{file}: ")
        except UserError as error:
            self.errors.add("annotation file that cannot be read", str(error).rstrip("."))
            return None
        if not isinstance(data, dict) or not KEYS.intersection(data):
            self.notes.add("JSON file that is not of LabelMe, ignored", file)
            return None
        self.digest.update(f"{path.name}\0".encode(errors="surrogateescape") + digest)
        shapes = data.get("shapes")
        if not isinstance(shapes, list):
            self.errors.add("annotation file without the list 'shapes'", file)
            shapes = []
        for index, shape in enumerate(shapes):
            self._shape(shape, id_, file, index)
        name = data.get("imagePath")
        if name is not None and not isinstance(name, str):
            self.errors.add("imagePath that is not a string", f"{file}: {name!r:.40}")
        name = name.replace("\\", "/") if isinstance(name, str) else ""
        found = self._file(path, name, file)
        base = name.rpartition("/")[2] or f"{path.stem}.jpg"
        return ImageRow(id_, base, data.get("imageHeight"), data.get("imageWidth"), found, file)

    def _file(self, path: Path, name: str, file: str) -> Path | None:
        """The image at ``imagePath``, relative to the annotation file; without it, that with the same stem."""
        inside = _normalized(PurePosixPath(file).parent / name) if name and not name.startswith("/") else ""
        if inside and (found := self._dataset.named(inside)):
            return found
        base = name.rpartition("/")[2]
        if base and (found := self._images.named(base)):
            return found
        several = self._images.with_stem(path.stem)
        if len(several) > 1:
            self.errors.add(
                "annotation file with several images of its name (keep one, or correct imagePath)",
                f"{file}: {', '.join(each.name for each in several)}",
            )
        return several[0] if several else None

    def _shape(self, shape: Any, image_id: int, file: str, index: int) -> None:
        self.columns.num_items += 1
        place = f"{file}: shapes[{index}]"
        if not isinstance(shape, dict):
            self.errors.add("shape that is not an object", place)
            return
        label, kind = _label_and_kind(shape)
        if not _is_label(label):
            self.errors.add("shape without label", f"{place}: {label!r:.40}")
            return
        if not _has_box(kind):
            self.notes.add(f"shape of the type {kind!r:.40}, which has no box, ignored", place)
            return
        points = _points(shape.get("points"))
        if points is None or len(points) < 2:
            self.errors.add("shape without points (expected at least two [x, y] in pixels)", place)
            return
        xs, ys = zip(*points, strict=True)
        if kind == "circle":  # the center, and a point on the circle
            radius = math.dist(*points[:2])
            xs, ys = (xs[0] - radius, xs[0] + radius), (ys[0] - radius, ys[0] + radius)
        if kind in ROTATED_TYPES and not (_num_distinct(xs) == _num_distinct(ys) == 2):
            self.errors.add(ROTATED, f"{place}: {shape['points']!r:.80}")
            return
        box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
        if fault := box_fault(box):
            self.errors.add(fault, f"{place}: {shape['points']!r:.80}")
            return
        if kind in ENCLOSED_TYPES:
            self.notes.add(ENCLOSED, place)
        self.columns.add_at(file, index + 1, image_id, self.classes.number(label, place), box)

    def add_classes_of(self, paths: Iterable[Path]) -> None:
        """Adds the labels of other splits, whose faults are reported when those are read."""
        for path in paths:
            try:
                data = read_json(path, {}, Findings(), Findings(), what=WHAT)[0]
            except UserError:
                continue
            shapes = data.get("shapes") if isinstance(data, dict) else None
            for shape in shapes if isinstance(shapes, list) else ():
                label, kind = _label_and_kind(shape) if isinstance(shape, dict) else (None, None)
                if _is_label(label) and _has_box(kind):
                    self.classes.add(label)


def splits(path: Path) -> list[Split]:
    """The folders of annotation files of a dataset."""
    found = groups(path, ANNOTATIONS, _is_labelme) if path.is_dir() else []
    every = tuple(group.folder for group in found)
    return [LabelmeSplit(each.split, each.folder, path, each.images, every) for each in found]


def _is_labelme(folder: Path) -> bool:
    """Whether one of the first JSON files in a folder is of this format."""
    keys = (top_level_keys(folder / name) or () for name in files(folder, ".json")[:NUM_SNIFFED])
    return any(KEYS.intersection(each) for each in keys)


def _label_and_kind(shape: dict[str, Any]) -> tuple[Any, Any]:
    return shape.get("label"), shape.get("shape_type", "polygon")


def _is_label(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _has_box(kind: Any) -> bool:
    return isinstance(kind, str) and kind in TYPES


def _points(value: Any) -> list[list[float]] | None:
    """``value`` as points, or ``None`` if it is something else."""
    points = [floats(point, 2) for point in value] if isinstance(value, list) else [None]
    return [point for point in points if point is not None] if None not in points else None


def _num_distinct(values: Iterable[float]) -> int:
    """Number of different coordinates, to 1/100 pixels."""
    return len({round(value, 2) if math.isfinite(value) else value for value in values})


def _normalized(path: PurePosixPath) -> str:
    """``path`` without ``..``, or an empty string if it is outside of the dataset."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and not parts:
            return ""
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)
