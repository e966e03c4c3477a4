"""Label Studio: one JSON file with a list of tasks (JSON or JSON-MIN), with boxes in percent of the image."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from detrs.data.content import SYNONYMS, Content, ImageRow, Split
from detrs.data.findings import Findings
from detrs.data.formats.class_names import ClassNames
from detrs.data.formats.file_per_image import files, subfolders
from detrs.data.formats.item_columns import ItemColumns, floats
from detrs.data.formats.label_studio_files import TaskFiles, image_of, is_export
from detrs.data.json_file import read_json
from detrs.data.objects import ENCLOSED, ROTATED, box_fault
from detrs.errors import UserError

NAME = "Label Studio"
LAYOUTS = (
    "a JSON or JSON-MIN export, or {split}.json, with images/ (Label Studio)",
    "{split}/*.json with images/ (Label Studio)",
)
MAX_FILES = 50
"""In a folder; more are annotations of single images in another format."""
WHAT = "a JSON export of Label Studio"
MAX_PERCENT = 101
"""Larger values are not in percent; labels at the border of an image may exceed 100 by rounding."""
SHAPES = {"rectanglelabels": ("x", "y", "width", "height"), "ellipselabels": ("x", "y", "radiusX", "radiusY")}
WITHOUT_LABELS = {"rectangle": "rectanglelabels", "polygon": "polygonlabels", "ellipse": "ellipselabels"}
"""Types of results whose labels are another result with the same id."""
PIXELS = "box with values above 100 (expected percent of the image, not pixels)"


class _Task(NamedTuple):
    place: str
    image: str
    """File name or URL, as in the file."""
    results: list[Any]


@dataclass(frozen=True)
class LabelStudioSplit(Split):
    """An exported file."""

    name: str
    path: Path
    root: Path
    """The dataset. Paths in messages are relative to it."""
    every: tuple[Path, ...]
    """The files of all splits: classes are the labels of all of them."""

    def read(self, errors: Findings, notes: Findings) -> Content:
        file = self.path.relative_to(self.root).as_posix()
        data, digest = read_json(self.path, {}, errors, notes, what=WHAT)
        if not isinstance(data, list):
            errors.raise_if_any(self.path, f"{self.path}: the top level is {data!r:.40}. Expected a list of tasks.")
        found = TaskFiles(self.root, self.path.parent)
        tasks = [(*found.find(task.image, task.place, errors), task) for task in _tasks(data, file, errors, notes)]
        reader = _Reader(errors, notes)
        rows: list[ImageRow | None] = []
        for name, path, task in sorted(tasks, key=lambda each: (each[0], each[2].place)):
            size = reader.task(len(rows) + 1, task)
            rows.append(ImageRow(len(rows) + 1, name, *size, path, task.place))
        if reader.largest is not None and reader.largest <= 1:
            errors.add("file with all values in [0, 1] (expected percent of the image)", file)
        for other in self.every:
            if other != self.path:
                reader.add_classes_of(other)
        categories = reader.classes.categories(reader.columns)
        digest += reader.classes.digest()
        folders = tuple(folder for folder in (self.path.parent / "images", self.path.parent) if folder.is_dir())
        return Content(images=rows, objects=reader.columns, categories=categories, folders=folders, digest=digest)


class _Reader:
    def __init__(self, errors: Findings, notes: Findings) -> None:
        self.errors, self.notes = errors, notes
        self.columns = ItemColumns("result", normalized=True)
        self.classes = ClassNames(notes)
        self.largest: float | None = None
        """Largest value of a box, in percent."""

    def task(self, image_id: int, task: _Task) -> tuple[Any, Any]:
        """Adds the objects of an image and returns its declared height and width."""
        size: tuple[Any, Any] = (None, None)
        labels = _labels_by_id(task.results)
        for index, result in enumerate(task.results):
            place = f"{task.place}: result[{index}]"
            if not isinstance(result, dict) or not isinstance(value := result.get("value", {}), dict):
                self.errors.add("result that is not an object", place)
                continue
            if size == (None, None):
                size = result.get("original_height"), result.get("original_width")
            kind = str(result.get("type"))
            names = labels.get(str(result.get("id")), []) if kind in WITHOUT_LABELS else value.get(kind)
            kind = WITHOUT_LABELS.get(kind, kind)
            if kind == "labels":
                continue
            if kind not in SHAPES and kind != "polygonlabels":
                self.notes.add(f"result of the type {kind!r:.40}, which has no box, ignored", place)
                continue
            self.columns.num_items += 1
            fault, shown, box = _box(kind, value)
            if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.strip() for n in names):
                self.errors.add("box without label", f"{place}: {names!r:.40}")
            elif fault:
                self.errors.add(fault, f"{place}: {shown:.80}")
            else:
                if kind != "rectanglelabels":
                    self.notes.add(ENCLOSED, place)
                self.largest = max(self.largest or 0.0, *box)
                x, y, width, height = (side / 100 for side in box)
                for name in names:
                    number = self.classes.number(name, place)
                    self.columns.add_at(task.place, index + 1, image_id, number, (x, y, width, height))
        return size

    def add_classes_of(self, path: Path) -> None:
        """Adds the labels of another split, whose faults are reported when it is read."""
        try:
            data = read_json(path, {}, Findings(), Findings(), what=WHAT)[0]
        except UserError:
            return
        other = _Reader(Findings(), Findings())
        for task in _tasks(data if isinstance(data, list) else [], path.name, Findings(), Findings()):
            other.task(0, task)
        for entry in other.classes.categories(other.columns):
            self.classes.add(entry["name"])


def splits(path: Path) -> list[Split]:
    """The exported files of a dataset."""
    root = path if path.is_dir() else path.parent
    found = [path] if path.is_file() and path.suffix == ".json" else []
    if path.is_dir():
        for folder in (path, *subfolders(path)):
            names = files(folder, ".json")
            found += [folder / name for name in names] if len(names) <= MAX_FILES else []
    found = [file for file in found if is_export(file)]
    return [LabelStudioSplit(_name(file, root, len(found)), file, root, tuple(found)) for file in found]


def _name(file: Path, root: Path, count: int) -> str:
    """The name of a split; an export that is not named after a split is not divided into splits."""
    usual = {name for names in SYNONYMS for name in names}
    name = file.stem if file.parent == root or file.stem in usual else file.parent.name
    return name if count > 1 or name in usual else ""


def _tasks(data: list[Any], file: str, errors: Findings, notes: Findings) -> Iterator[_Task]:
    """The annotated tasks of a file. Of several annotations, the first one that is not cancelled is used."""
    seen: set[Any] = set()
    for index, task in enumerate(data):
        if not isinstance(task, dict):
            errors.add("task that is not an object", f"{file}: [{index}]")
            continue
        id_ = task.get("id")
        place = f"{file}: task {id_}" if isinstance(id_, int) else f"{file}: [{index}]"
        image = image_of(task["data"] if isinstance(task.get("data"), dict) else task)
        if image is None:
            errors.add("task without an image", place)
            continue
        annotations = task.get("annotations", task.get("completions"))
        if annotations is None:  # JSON-MIN has an item for each annotation
            annotations = [] if place in seen else [{"result": list(_minimal_results(task))}]
            if place in seen:
                notes.add("task with several annotations, of which the first is used", place)
                continue
            seen.add(place)
        if not isinstance(annotations, list):
            errors.add("task whose annotations are not a list", f"{place}: {annotations!r:.40}")
            continue
        valid = [each for each in annotations if isinstance(each, dict) and not each.get("was_cancelled")]
        if not valid:
            notes.add("task without annotations, skipped", place)
            continue
        if len(valid) > 1:
            notes.add("task with several annotations, of which the first is used", place)
        results = valid[0].get("result")
        if not isinstance(results, list):
            errors.add("annotation without the list 'result'", place)
            continue
        yield _Task(place, image, results)


def _minimal_results(task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The labels of a task of JSON-MIN in the form of results."""
    for items in task.values():
        for item in items if isinstance(items, list) else ():
            kind = next((key for key in item if key.endswith("labels")), None) if isinstance(item, dict) else None
            if kind is not None:
                yield {"type": kind, "value": item} | {
                    key: item.get(key) for key in ("original_width", "original_height")
                }


def _labels_by_id(results: list[Any]) -> dict[str, list[Any]]:
    """The labels that are results of their own, by the id of their box."""
    found: dict[str, list[Any]] = {}
    for result in results:
        if isinstance(result, dict) and result.get("type") == "labels" and isinstance(result.get("value"), dict):
            found[str(result.get("id"))] = result["value"].get("labels") or []
    return found


def _box(kind: str, value: dict[str, Any]) -> tuple[str, str, tuple[float, float, float, float]]:
    """The kind of fault of a shape and the faulty value, empty if it has none, and its box in percent."""
    none = (0.0, 0.0, 0.0, 0.0)
    if kind == "polygonlabels":
        given = value.get("points")
        points = [floats(point, 2) for point in given] if isinstance(given, list) and given else [None]
    else:
        given = [value.get(key) for key in SHAPES[kind]]
        points = [floats(given, 4)]
    numbers = [point for point in points if point is not None]
    if len(numbers) < len(points):
        expected = "points" if kind == "polygonlabels" else ", ".join(SHAPES[kind])
        return f"box without numbers (expected {expected} in percent)", repr(given), none
    rotation = value.get("rotation") or 0
    if not isinstance(rotation, int | float) or rotation % 360:
        return ROTATED, f"rotation {rotation!r:.40}", none
    if kind == "polygonlabels":
        xs, ys = zip(*numbers, strict=True)
        x, y, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    elif kind == "ellipselabels":
        x, y, horizontal, vertical = numbers[0]
        x, y, width, height = x - horizontal, y - vertical, 2 * horizontal, 2 * vertical
    else:
        x, y, width, height = numbers[0]
    box = (x, y, width, height)
    return box_fault(box) or (PIXELS if max(box) > MAX_PERCENT else ""), repr(list(box)), box
