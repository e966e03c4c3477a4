"""Hugging Face image folders: ``metadata.jsonl`` beside the images; saved datasets and datasets of the Hub.

Lines of ``metadata.jsonl`` are
``{"file_name": "a.jpg", "objects": {"bbox": [[x, y, width, height]], "category": [0]}}``
with boxes in pixels, as in COCO; ``objects`` may also be a list of ``{"bbox": ..., "category": ...}``.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrs.data.content import Content, ImageRow, Split, is_usual
from detrs.data.findings import Findings
from detrs.data.formats.coco_columns import annotation_fault
from detrs.data.formats.huggingface_names import LIST, class_list
from detrs.data.formats.json_head import HEAD_BYTES
from detrs.data.objects import CROWD, IGNORED, MAX_COORDINATE, REGULAR, PlacedColumns, integer
from detrs.errors import UserError
from detrs.files import open_regular

NAME = "Hugging Face"
LAYOUTS = (
    "metadata.jsonl, {split}/metadata.jsonl or data/{split}/metadata.jsonl with the images beside it (Hugging Face)",
)
METADATA = "metadata.jsonl"
OTHER_METADATA = ("metadata.csv", "metadata.parquet")
BOX_KEYS = ("bbox", "bboxes", "boxes")
CLASS_KEYS = ("category", "categories", "category_id", "label", "labels", "class", "classes")
EXPECTED = '{"file_name": "a.jpg", "objects": {"bbox": [[x, y, width, height]], "category": [0]}}'


@dataclass(frozen=True)
class ImageFolderSplit(Split):
    """A ``metadata.jsonl``."""

    name: str
    path: Path
    root: Path
    """Folder of the dataset."""
    files: tuple[Path, ...]
    """All metadata files of the dataset, which have the same classes."""
    prefix: str = ""
    """Start of the file names of the split, if ``path`` has all splits."""
    classes: tuple[str, ...] | None = None
    """Class names in their order; ``None``: they are searched beside the images."""
    values: tuple[Any, ...] | None = None
    """All classes in the metadata, used if there are no class names; ``None``: they are collected from ``files``."""
    label: str = ""
    """Name of ``path`` in messages; by default, its path in the dataset."""

    def read(self, errors: Findings, notes: Findings) -> Content:
        place = self.label or self.path.relative_to(self.root).as_posix()
        columns, digest = PlacedColumns(), hashlib.sha256()
        names = class_list((self.path.parent, self.root)) if self.classes is None else self.classes
        values = self.values if self.values is not None or names else _values(self.files)
        classes = _Classes(names, values or ())
        entries = []
        num_rows = num_annotated = 0
        for line, row in _rows(self.path, place, errors, digest):
            num_rows += 1
            name = row.get("file_name")
            if self.prefix and not (isinstance(name, str) and name.startswith(self.prefix)):
                continue
            if (objects := _objects(row)) is not None:
                num_annotated += 1
            entries.append((str(name), line, row, objects))
        if num_rows and not num_annotated:
            errors.raise_if_any(self.path, f"{self.path} has no objects. Expected lines such as {EXPECTED}.")
        images: list[ImageRow | None] = []
        for image_id, (_, line, row, objects) in enumerate(sorted(entries, key=lambda entry: entry[:2]), 1):
            at = f"{place}:{line}"
            images.append(ImageRow(image_id, row.get("file_name"), *_size(row), place=at))
            for entry in _entries(objects, at, errors):
                _add(entry, image_id, place, line, columns, classes, errors)
        if classes.are_numbered:
            kind = f"class without a name (list the names in {LIST} beside {METADATA}, one per line)"
            notes.add_many(kind, len(classes.categories), (each["name"] for each in classes.categories))
        digest.update(json.dumps([self.prefix, classes.categories]).encode())
        folders = tuple(dict.fromkeys((self.path.parent, self.root)))
        return Content(
            images=images,
            objects=columns,
            categories=[*classes.categories],
            folders=folders,
            digest=digest.digest(),
        )


@dataclass(frozen=True)
class OtherMetadata(Split):
    """Metadata in a format in which objects are not read."""

    name: str
    path: Path

    def read(self, errors: Findings, notes: Findings) -> Content:
        raise UserError(
            f"{self.path} cannot be read: expected {METADATA}, with lines such as {EXPECTED}. To convert it, run "
            f"datasets.load_dataset('imagefolder', data_dir=...).save_to_disk(FOLDER), and use --data FOLDER."
        )


def splits(path: Path) -> list[Split]:
    """The metadata files in a folder."""
    if path.is_file():
        return splits(path.parent) if path.name in (METADATA, *OTHER_METADATA) else []
    folders = sorted([*path.glob("*/"), *path.glob("data/*/")])
    nested = [(folder.name, file) for folder in folders if (file := _metadata(folder))]
    if nested:
        files = tuple(file for _, file in nested)
        return [_split(name, file, path, files) for name, file in nested]
    file = _metadata(path)
    if file is None:
        return []
    usual = sorted(folder.name for folder in path.glob("*/") if is_usual(folder.name))
    if file.name == METADATA and (named := _names_in(file, usual)):
        return [ImageFolderSplit(name, file, path, (file,), f"{name}/") for name in named]
    return [_split("", file, path, (file,))]


def _names_in(file: Path, folders: list[str]) -> list[str]:
    """The folders in which a metadata file has images."""
    missing = {name: f'"{name}/'.encode() for name in folders}
    with open_regular(file) as lines:
        for line in lines:
            if not missing:
                break
            missing = {name: start for name, start in missing.items() if start not in line}
    return [name for name in folders if name not in missing]


def _split(name: str, file: Path, root: Path, files: tuple[Path, ...]) -> Split:
    if file.name != METADATA:
        return OtherMetadata(name, file)
    return ImageFolderSplit(name, file, root, tuple(each for each in files if each.name == METADATA))


def _metadata(folder: Path) -> Path | None:
    """The metadata file in a folder."""
    if b'"file_name"' in _head(folder / METADATA):
        return folder / METADATA
    for name in OTHER_METADATA:
        head = _head(folder / name)
        if b"file_name" in head.partition(b"\n")[0] or head.startswith(b"PAR1"):
            return folder / name
    return None


def _head(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(HEAD_BYTES)
    except (OSError, UserError):
        return b""


class _Classes:
    """The classes of a dataset.

    Args:
        names: In their order, if they are listed; values are names, or positions from 0.
        values: The classes if they are not listed: names or numbers.
    """

    def __init__(self, names: tuple[str, ...], values: Iterable[Any]) -> None:
        self.are_numbered = False
        self.categories: list[dict[str, Any]]
        if names:
            self.categories = [{"id": id_, "name": name} for id_, name in enumerate(names)]
        else:
            distinct = {*values}
            texts = sorted(value for value in distinct if isinstance(value, str))
            numbers = sorted({number for value in distinct if (number := integer(value)) is not None})
            self.are_numbered = not texts and bool(numbers)
            self.categories = [{"id": id_, "name": name} for id_, name in enumerate(texts, 1)]
            if not texts:
                self.categories = [{"id": number, "name": f"class {number}"} for number in numbers]
        self.ids: dict[str, int] = {each["name"]: each["id"] for each in self.categories}
        self.numbers: set[int] = {each["id"] for each in self.categories} if names or self.are_numbered else set()

    def id_of(self, value: Any) -> int | None:
        if isinstance(value, str) and not self.are_numbered:
            return self.ids.get(value)
        number = integer(value)
        return number if number is not None and number in self.numbers else None


def _values(paths: Iterable[Path]) -> tuple[Any, ...]:
    """The classes of all objects in metadata files."""
    rows = (row for path in paths for _, row in _rows(path, path.name, Findings(), hashlib.sha256()))
    entries = (entry for row in rows for entry in _entries(_objects(row), "", Findings()))
    return tuple({value for entry in entries if isinstance(value := entry["category"], str | int | float)})


def _rows(path: Path, place: str, errors: Findings, digest: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file with their lines, from 1."""
    try:
        with open_regular(path) as file:
            for number, line in enumerate(file, 1):
                digest.update(line)
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    row = json.loads(text.rstrip()) if text.strip() else None
                except UnicodeDecodeError as error:
                    errors.add("line that is not UTF-8", f"{place}:{number}, byte {error.start}")
                except json.JSONDecodeError as error:
                    errors.add("invalid JSON", f"{place}:{number}, column {error.colno}: {error.msg}")
                except (ValueError, RecursionError):
                    errors.add("line with a number or nesting that cannot be read", f"{place}:{number}")
                else:
                    if isinstance(row, dict):
                        yield number, row
                    elif row is not None or text.strip():
                        errors.add("line that is not an object", f"{place}:{number}: {text.strip():.40}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None


def _objects(row: dict[str, Any]) -> Any:
    """The objects of an image; ``None`` if it has none."""
    if "objects" in row:
        return row["objects"]
    return row if any(key in row for key in BOX_KEYS) else None


def _entries(objects: Any, place: str, errors: Findings) -> Iterator[dict[str, Any]]:
    """The objects of an image as in COCO, with the class as ``category``."""
    if isinstance(objects, dict):
        keys = [key for key in (*BOX_KEYS, *CLASS_KEYS, "area", "iscrowd", "ignore") if objects.get(key) is not None]
        lists = {key: objects[key] for key in keys if isinstance(objects[key], list)}
        if not any(key in lists for key in BOX_KEYS):
            if objects:
                errors.add("objects without a list of boxes 'bbox'", f"{place}: {objects!r:.80}")
            return
        lengths = {key: len(values) for key, values in lists.items()}
        if len({*lengths.values()}) > 1:
            listed = ", ".join(f"{length} x {key}" for key, length in lengths.items())
            errors.add("objects whose lists have different lengths", f"{place}: {listed}")
            return
        objects = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    if objects is None:
        return
    if not isinstance(objects, list) or not all(isinstance(entry, dict) for entry in objects):
        errors.add("objects that are neither an object of lists nor a list of objects", f"{place}: {objects!r:.80}")
        return
    for entry in objects:
        bbox = next((entry[key] for key in BOX_KEYS if key in entry), None)
        category = next((entry[key] for key in CLASS_KEYS if entry.get(key) is not None), None)
        yield entry | {"bbox": bbox, "category": category}


def _add(
    entry: dict[str, Any],
    image_id: int,
    place: str,
    line: int,
    columns: PlacedColumns,
    classes: _Classes,
    errors: Findings,
) -> None:
    columns.num_items += 1
    fault, value = annotation_fault(entry)
    if fault:
        errors.add(fault, f"{place}:{line}: {value!r:.80}")
    elif (category_id := classes.id_of(entry["category"])) is None:
        errors.add("unknown category", f"{place}:{line}: {entry['category']!r:.40}")
    else:
        x, y, width, height = map(float, entry["bbox"])
        box = (x, y, width, height)
        area = entry.get("area")
        area = float(area) if isinstance(area, int | float) and 0 < area < MAX_COORDINATE**2 else None
        kind = CROWD if entry.get("iscrowd") else IGNORED if entry.get("ignore") else REGULAR
        columns.add_at(place, line, image_id, category_id, box, area=area, kind=kind)


def _size(row: dict[str, Any]) -> tuple[Any, Any]:
    """Height and width, if the metadata have both."""
    size = row.get("height"), row.get("width")
    return size if None not in size else (None, None)
