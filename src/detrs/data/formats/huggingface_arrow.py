"""Extracts datasets of the ``datasets`` library to image files and ``metadata.jsonl`` in a cache, byte for byte."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import filelock

from detrs.data.cache_folder import cache_folder
from detrs.data.folders import IMAGE_SUFFIXES
from detrs.data.formats.huggingface import BOX_KEYS, CLASS_KEYS, METADATA, ImageFolderSplit
from detrs.errors import UserError
from detrs.files import free_bytes, open_regular

VERSION = 1
"""Of the extracted files; others are extracted again."""
CLASSES = "classes.json"
OPTIONAL_KEYS = ("area", "iscrowd", "ignore")
SIZE_KEYS = ("height", "width")
SAFE_NAME = re.compile(r"\w[\w .()+-]{0,199}")
"""Names of image files that are kept."""
SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"BM": ".bmp", b"II*\0": ".tif"}
ROW = "row"
"""Place of an annotation in messages: ``row:3`` is the third row."""


class Layout(NamedTuple):
    """The columns of a dataset."""

    image: str
    objects: str | None
    """Column with boxes and classes; ``None``: these are columns themselves."""
    bbox: str
    category: str
    names: tuple[str, ...]
    """Class names in their order; empty if the classes are not a ``ClassLabel``."""


def library() -> Any:
    """The module ``datasets``.

    Raises:
        UserError: It is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            "Reading Hugging Face datasets requires the datasets library. Install it with: pip install 'detrs[hf]'"
        ) from None
    return datasets


@contextmanager
def quiet(datasets: Any) -> Iterator[None]:
    """Without progress bars of the library; its setting is restored."""
    were_disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            datasets.enable_progress_bars()


def key(dataset: Any) -> str:
    """Name of the folder of an extracted dataset: a hash of its fingerprint, features, and files."""
    files = [os.stat(file["filename"]) for file in dataset.cache_files]
    content = [VERSION, dataset._fingerprint, str(dataset.features), len(dataset)]
    content += [(file.st_size, file.st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def extract(dataset: Any, others: Iterable[Any], source: object) -> Path:
    """The folder with the images of a dataset, which are extracted unless they were before.

    Args:
        dataset: A ``datasets.Dataset``.
        others: All splits; if class names are not listed, they are collected from these.
        source: Name of the dataset, for messages.

    Raises:
        UserError: Its columns are ambiguous, an image is missing, or the cache cannot be written.
    """
    folder = cache_folder("huggingface") / key(dataset)
    layout = find_layout(dataset.features, source)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            for partial in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a process that was killed
                shutil.rmtree(partial, ignore_errors=True)
            if not folder.is_dir():
                _extract_to(folder, dataset, layout, others, source)
    except OSError as error:
        free = free_bytes(folder.parent)
        raise UserError(
            f"Cannot write the images of {source} to {folder.parent}: {error.strerror or error} "
            f"({free or 0:,} bytes are free). To use another folder, set DETRS_CACHE."
        ) from error
    return folder


def extracted(folder: Path, name: str) -> ImageFolderSplit:
    """The split in a folder written by ``extract``."""
    content = json.loads((folder / CLASSES).read_text(encoding="utf-8"))
    names, values = tuple(content["names"]), tuple(content["values"])
    return ImageFolderSplit(name, folder / METADATA, folder, (), classes=names, values=values, label=ROW)


def find_layout(features: Any, source: object) -> Layout:
    """Finds the columns of images, boxes and classes.

    Raises:
        UserError: There are none or several.
    """
    datasets = library()
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    image = _single("image columns", images, "image", features, source)
    groups = {
        name: group
        for name, feature in features.items()
        if isinstance(group := feature if isinstance(feature, dict) else _item(feature), dict)
        and any(key in group for key in BOX_KEYS)
    }
    objects, group = None, features
    if groups or not any(key in features for key in BOX_KEYS):
        objects = _single("columns of objects with a 'bbox'", [*groups], "objects", features, source)
        group = groups[objects]
    labels = {name: label for name, feature in group.items() if (label := _class_label(feature)) is not None}
    named = [key for key in CLASS_KEYS if key in group]
    found = [key for key in named if key in labels] or [*labels] or named
    category = _single("columns with the classes of objects", found, found[0] if named else "category", group, source)
    names = tuple(labels[category].names) if category in labels else ()
    return Layout(image, objects, next(key for key in BOX_KEYS if key in group), category, names)


def _single(what: str, found: list[str], usual: str, columns: Iterable[str], source: object) -> str:
    if len(found) == 1 or usual in found:
        return found[0] if len(found) == 1 else usual
    listed = ", ".join(found or columns)
    state = f"several {what}: {listed}. Keep one, or name it '{usual}'" if found else f"no {what}. Found: {listed}"
    raise UserError(f"{source} has {state}.")


def _item(feature: Any) -> Any:
    """The feature of the items of a list."""
    return feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)


def _class_label(feature: Any) -> Any:
    label = library().ClassLabel
    return next((each for each in (feature, _item(feature)) if isinstance(each, label)), None)


def _extract_to(folder: Path, dataset: Any, layout: Layout, others: Iterable[Any], source: object) -> None:
    """Writes all files beside ``folder``, and renames the result to ``folder`` when it is complete."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    temporary.mkdir()
    try:
        values = () if layout.names else _values(others, layout)
        classes = {"names": layout.names, "values": values}
        (temporary / CLASSES).write_text(json.dumps(classes), encoding="utf-8")
        with (temporary / METADATA).open("w", encoding="utf-8") as metadata:
            used: set[str] = set()
            for number, row in enumerate(_rows(dataset, layout)):
                content, stored = _bytes(row[layout.image], number, source)
                file_name = _file_name(number, stored, content, used)
                (temporary / file_name).write_bytes(content)
                line = {"file_name": file_name, "objects": _objects(row, layout)}
                size = {key: row[key] for key in SIZE_KEYS if isinstance(row.get(key), int)}
                metadata.write(json.dumps(line | size) + "\n")
        os.rename(temporary, folder)
    except BaseException:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
        raise


def _rows(dataset: Any, layout: Layout, *, images: bool = True) -> Iterator[dict[str, Any]]:
    objects = (layout.objects,) if layout.objects else (layout.bbox, layout.category, *OPTIONAL_KEYS)
    wanted = (*objects, *((layout.image, *SIZE_KEYS) if images else ()))
    plain = dataset.with_format(None).select_columns(
        [name for name in dict.fromkeys(wanted) if name in dataset.features]
    )
    if images:
        plain = plain.cast_column(layout.image, library().Image(decode=False))
    yield from plain


def _objects(row: dict[str, Any], layout: Layout) -> Any:
    """The objects of an image with the keys of ``metadata.jsonl``."""

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        optional = {key: values[key] for key in OPTIONAL_KEYS if values.get(key) is not None}
        return {"bbox": values.get(layout.bbox), "category": values.get(layout.category), **optional}

    objects = row[layout.objects] if layout.objects else row
    if isinstance(objects, dict):
        return renamed(objects)
    return [renamed(values) for values in objects or ()]


def _values(datasets: Iterable[Any], layout: Layout) -> list[Any]:
    """The classes of all objects in all splits."""
    values: set[Any] = set()
    for dataset in datasets:
        for row in _rows(dataset, layout, images=False):
            objects = _objects(row, layout)
            found = objects["category"] if isinstance(objects, dict) else [each["category"] for each in objects]
            values.update(value for value in found or () if isinstance(value, str | int))
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def _bytes(value: Any, number: int, source: object) -> tuple[bytes, str]:
    """The content of an image file and its name, which may be empty."""
    value = value or {}
    content, stored = value.get("bytes"), value.get("path") or ""
    if content is None and PurePath(stored).suffix.lower() in IMAGE_SUFFIXES:
        with contextlib.suppress(OSError), open_regular(Path(stored)) as file:
            content = file.read()
    if content is None:
        where = f" ('{stored}' cannot be read)" if stored else ""
        raise UserError(f"{source}: row {number + 1} has no image{where}. Remove the row, or save the dataset again.")
    return content, stored


def _file_name(number: int, stored: str, content: bytes, used: set[str]) -> str:
    """The name that the image had, if it is unique; otherwise its number. It is added to ``used``."""
    name = stored.replace("\\", "/").rpartition("/")[2]
    suffix = PurePath(name).suffix.lower()
    if not SAFE_NAME.fullmatch(name) or suffix not in IMAGE_SUFFIXES or name.casefold() in used:
        kinds = (suffix for magic, suffix in SUFFIXES.items() if content.startswith(magic))
        name = f"row-{number + 1:08d}{next(kinds, '.jpg')}"
    while name.casefold() in used:
        name = f"row-{name}"
    used.add(name.casefold())
    return name
