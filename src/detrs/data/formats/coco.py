"""COCO annotation files: one JSON file for each split."""

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

from detrs.data.content import Content, ImageRow, Split
from detrs.data.findings import Findings
from detrs.data.formats.coco_layouts import find_file, find_files
from detrs.data.json_file import Sink, read_json
from detrs.data.objects import (
    CROWD,
    IGNORED,
    MAX_COORDINATE,
    NO_ID,
    REGULAR,
    ROTATED,
    Columns,
    box_fault,
    integer,
    is_rotated,
)

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

    def append(self, item: Any, /) -> None:
        keys = ("id", "file_name", "height", "width")
        super().append(ImageRow(*map(item.get, keys)) if isinstance(item, dict) else None)


class CocoColumns(Columns):
    """Receives the annotations of a file one by one, and checks what a single annotation shows.

    Args:
        errors: Receives malformed annotations, which are not stored.
    """

    def __init__(self, errors: Findings) -> None:
        super().__init__()
        self.errors = errors

    def clear(self) -> None:
        super().clear()
        self.number = array("q")
        """Position in the file."""

    def place(self, row: SupportsIndex) -> str:
        return f"annotations[{self.number[row]}]" if self.id[row] == NO_ID else f"annotation {self.id[row]}"

    def append(self, entry: Any) -> None:
        number = self.num_items
        self.num_items += 1
        if not isinstance(entry, dict):
            self.errors.add("annotation that is not an object", f"annotations[{number}]")
            return
        place = f"annotation {entry['id']!r:.40}" if "id" in entry else f"annotations[{number}]"
        id_, image_id, category_id = (integer(entry.get(key)) for key in ("id", "image_id", "category_id"))
        if id_ is None and entry.get("id") is not None:
            self.errors.add("annotation id that is not an integer", place)
        fault, value = annotation_fault(entry)
        if image_id is None:
            self.errors.add("image_id that is not an integer", f"{place}: {entry.get('image_id')!r:.40}")
        elif category_id is None:
            self.errors.add("unknown category_id", f"{place}: {entry.get('category_id')!r:.40}")
        elif fault:
            self.errors.add(fault, f"{place}: {value!r:.80}")
        else:
            area = entry.get("area")
            x, y, width, height = map(float, entry["bbox"])
            is_known = isinstance(area, int | float) and 0 < area < MAX_COORDINATE**2
            self.number.append(number)
            self.id.append(id_ if id_ is not None and NO_ID < id_ < 2**63 else NO_ID)
            self.add(
                image_id,
                category_id,
                (x, y, width, height),
                area=float(area) if is_known else None,  # type: ignore[arg-type]
                kind=CROWD if entry.get("iscrowd") else IGNORED if entry.get("ignore") else REGULAR,
            )


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


def annotation_fault(entry: dict[str, Any]) -> tuple[str, Any]:
    """The kind of fault of an annotation and the faulty value; the kind is an empty string if there is none."""
    bbox, attributes = entry.get("bbox"), entry.get("attributes")
    rotations = [entry.get("rotation"), attributes.get("rotation") if isinstance(attributes, dict) else None]
    for flag in ("iscrowd", "ignore"):
        if entry.get(flag) not in (None, 0, 1):
            return f"{flag} that is neither 0 nor 1", entry[flag]
    if bbox is None:
        return "annotation without bbox", None
    if isinstance(bbox, list) and len(bbox) == 5:
        return ROTATED.replace("rotated box", "box with five numbers", 1), bbox
    if any(map(is_rotated, rotations)):
        return ROTATED, next(filter(is_rotated, rotations))
    if not isinstance(bbox, list) or len(bbox) != 4 or not {*map(type, bbox)} <= {int, float}:
        return "bbox that is not [x, y, width, height]", bbox
    return box_fault(bbox), bbox
