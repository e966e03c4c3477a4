"""COCO annotation files: one JSON file for each split."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrs.data.content import Content, ImageRow, Split
from detrs.data.findings import Findings
from detrs.data.formats.coco_columns import CocoColumns
from detrs.data.formats.coco_layouts import find_file, find_files
from detrs.data.json_file import read_json
from detrs.data.json_parts import Sink

NAME = "COCO"
LAYOUTS = (
    "annotations/instances_{split}2017.json with {split}2017/ or images/{split}2017/ (COCO)",
    "annotations/{split}.json or {split}.json with images/, images/{split}/ or {split}/",
    "{split}/_annotations.coco.json with the images beside it (Roboflow)",
    "{split}/annotations.json or {split}/labels.json with the images beside it, in {split}/images/ or in {split}/data/",
    "annotations.json or labels.json with images/ or data/ (not divided into splits), or a path to a .json file",
)


@dataclass(frozen=True)
class CocoSplit(Split):
    """An annotation file, and the folders of its images."""

    name: str
    path: Path
    folders: tuple[Path, ...]
    """Existing folders that may contain the images, most likely first."""

    @property
    def annotation_file(self) -> Path:
        return self.path

    def read(self, errors: Findings, notes: Findings) -> Content:
        images, objects, categories = _ImageRows(), CocoColumns(errors), list[Any]()
        sinks: dict[str, Sink] = {"images": images, "annotations": objects, "categories": categories}
        data, digest = read_json(self.path, sinks, errors, notes)
        _check_structure(self.path, data, bool(categories), errors)
        return Content(images=images, objects=objects, categories=categories, folders=self.folders, digest=digest)


def splits(path: Path) -> list[Split]:
    """The annotation files in a folder, or the dataset of an annotation file."""
    found = find_file(path) if path.is_file() else find_files(path)
    return [CocoSplit(*each) for each in found]


class _ImageRows(list[ImageRow | None]):
    """Receives the items of ``images``. ``None`` is an item that is not an object."""

    def extend(self, items: Iterable[Any], /) -> None:
        keys = ("id", "file_name", "height", "width")
        super().extend(ImageRow(*map(item.get, keys)) if isinstance(item, dict) else None for item in items)


def _check_structure(path: Path, data: Any, has_classes: bool, errors: Findings) -> None:
    """Checks the top level of an annotation file."""

    def fail(problem: str) -> None:
        errors.raise_if_any(path, f"{path}{problem}")

    if isinstance(data, list):
        if data and isinstance(data[0], dict) and "score" in data[0]:
            fail(" looks like detections, not annotations: its top level is a list of scored boxes.")
        fail(": the top level is a list. Expected an object with images, annotations and categories.")
    if not isinstance(data, dict):
        fail(f": the top level is {data!r:.40}. Expected images, annotations and categories.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            what = "is missing" if key not in data else f"is {type(data[key]).__name__}, not a list"
            fail(f": '{key}' {what}. Expected the three lists images, annotations and categories.")
    if not has_classes:
        fail(": 'categories' is empty, so no annotation has a class.")
