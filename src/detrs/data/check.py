"""Reads the annotations of a split and validates all of them in one pass, before training starts.

Faults that would make results wrong are errors, and all of them are reported at once. Faults of single items that can
be skipped or repaired are reported as notes. Harmless deviations from the format are accepted.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detrs.data import unreadable
from detrs.data.content import Content, ImageRow, Split
from detrs.data.findings import Finding, Findings, add_items
from detrs.data.image_files import scan_files
from detrs.data.image_table import Images, image_table
from detrs.data.images import is_transposed
from detrs.data.locate import locate
from detrs.data.object_checks import check_objects
from detrs.data.objects import CROWD, MAX_COORDINATE, Columns, Objects, integer
from detrs.data.visited import Visited
from detrs.errors import UserError
from detrs.structures import Classes


@dataclass(frozen=True)
class Annotations:
    """The annotations of a split, without errors."""

    classes: Classes
    images: Images
    objects: Objects
    """In the order of the files."""
    notes: list[str]
    digest: bytes
    """SHA-256 of the annotation files."""
    num_skipped: int
    """Annotated images that are missing or unreadable."""


@dataclass(frozen=True)
class Examination:
    """Everything that was found in the annotations of a split."""

    annotations: Annotations | None
    """The usable part of the annotations, even if others have errors; ``None`` if none can be read."""
    errors: list[Finding]
    notes: list[Finding]
    failure: UserError | None
    """Lists all errors; ``None`` if there are none."""


def read_annotations(split: Split, *, decode: bool = False, visited: Visited | None = None) -> Annotations:
    """Reads and validates the annotations of a split and finds its images.

    Args:
        split: The files.
        decode: Decode every image. By default, only the header and the end of each image file are checked.
        visited: Receives what the search of the images depends on.

    Raises:
        UserError: There are errors; the message lists every kind of error with its first occurrences.
    """
    examination = examine(split, decode=decode, visited=visited)
    if examination.failure is not None:
        raise examination.failure
    assert examination.annotations is not None
    return examination.annotations


def examine(split: Split, *, decode: bool = False, visited: Visited | None = None) -> Examination:
    """Reads and validates the annotations of a split without raising; see ``read_annotations``."""
    path = split.path
    errors, notes = Findings(), Findings()
    failure, annotations = None, None
    try:
        content = _content(split, errors, notes)
        rows, columns, digest = content.images, content.objects, content.digest
        classes = _classes(content.categories, errors, notes)
        images = _images(rows, content.folders, decode, errors, notes, visited)
        if not len(images):
            errors.raise_if_any(path)
            raise UserError(f"{path} contains no images.")
        listed, num_skipped = [integer(row.id) for row in rows if row is not None], len(rows) - len(images)
        del content, rows  # objects for each image, which are not needed any more
        objects = check_objects(columns, images, listed, classes.category_ids, errors, notes)
        annotations = Annotations(classes, images, objects, [], digest, num_skipped)
        errors.raise_if_any(path)
        _check_classes(path, classes, objects, columns, len(images), notes)
    except UserError as error:
        failure = error
    if annotations is not None:
        annotations.notes.extend(notes.lines())
    found = errors.listed()
    if failure is not None and not found:
        found = [Finding(str(failure), 1, [])]
    return Examination(annotations, found, notes.listed(), failure)


def _content(split: Split, errors: Findings, notes: Findings) -> Content:
    try:
        return split.read(errors, notes)
    except OSError as error:  # a folder that may not be read
        named = error.filename if isinstance(error.filename, str) else split.path
        raise unreadable(Path(named), error) from error


def _check_classes(
    path: Path, classes: Classes, objects: Objects, columns: Columns, num_images: int, notes: Findings
) -> None:
    """Checks that there are training targets, and reports classes with at most one."""
    if len(objects) and objects.crowd.all() and CROWD not in columns.kind:
        raise UserError(
            f"{path}: each of the {len(objects)} objects is an {columns.ignored}, which is not a target of training. "
            "Remove the mark from the objects that the detector should find."
        )
    if len(objects) and objects.crowd.all():
        raise UserError(
            f"{path}: all {len(objects)} annotations are crowd regions (iscrowd 1 or ignore 1), which are not targets "
            'of training. Some tools export masks with iscrowd 1: if these are single objects, set "iscrowd": 0.'
        )
    if not objects.trainable.any():
        raise UserError(f"{path} contains {num_images} images, but no objects.")
    num_classes = len(classes.names)
    used = np.bincount(objects.label[objects.trainable], minlength=num_classes)
    crowds = np.bincount(objects.label[objects.crowd], minlength=num_classes)
    for name, count, num_crowds in zip(classes.names, used, crowds, strict=True):
        if count <= 1:
            empty = "class with crowd regions only" if num_crowds else "class without objects"
            notes.add("class with a single object" if count else empty, repr(name))


def _classes(entries: list[Any], errors: Findings, notes: Findings) -> Classes:
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        place = f"categories[{index}]"
        id_, name = (integer(entry.get("id")), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if id_ is None:
            errors.add("category id that is not an integer", place)
        elif id_ in names:
            errors.add("duplicate category id", f"{place}: {id_}")
        elif not isinstance(name, str) or not name.strip() or "\n" in name or "\r" in name:
            errors.add("category name that is missing, empty or has several lines", f"{place}: {name!r:.40}")
        elif name in names.values():
            errors.add("duplicate category name", f"{place}: {name!r:.40}")
        else:
            if name.strip().casefold() in (other.strip().casefold() for other in names.values()):
                notes.add("category name that differs from another only in case or spaces", repr(name))
            names[id_] = name
    ids = sorted(names)
    return Classes(tuple(names[id_] for id_ in ids), tuple(ids))


def _images(
    rows: list[ImageRow | None],
    folders: tuple[Path, ...],
    decode: bool,
    errors: Findings,
    notes: Findings,
    visited: Visited | None,
) -> Images:
    """The images in the order of the annotations."""
    valid: dict[int, ImageRow] = {}
    for index, row in enumerate(rows):
        if row is None:
            errors.add("image that is not an object", f"images[{index}]")
            continue
        id_, name = integer(row.id), row.file_name
        if id_ is None:
            errors.add("image id that is not an integer", f"images[{index}]: {row.id!r:.40}")
            continue
        if id_ in valid:
            errors.add("duplicate image id", _place(id_, row))
        elif not isinstance(name, str) or not name or "\0" in name:
            errors.add("image without file_name", _place(id_, row))
        elif "://" in name:
            errors.add("file_name that is a URL (images are not downloaded)", f"{_place(id_, row)}: {name:.80}")
        else:
            valid[id_] = row
            if _declared_size(row) is None and (row.height, row.width) != (None, None):
                sides = f"{_place(id_, row)}: {row.width!r:.40} x {row.height!r:.40}"
                errors.add("image whose width or height is not a positive integer", sides)
    for file, count in Counter(row.path or row.file_name for row in valid.values()).items():
        if count > 1:
            notes.add("file used by several images", str(file))
    searched = valid if all(row.path is None for row in valid.values()) else _searched(valid)
    found = locate(searched, folders, errors, notes, num_images=len(valid), visited=visited) if searched else {}
    if visited is not None:
        visited.end()
    if searched is not valid:
        found = {id_: str(row.path or found[id_]) for id_, row in valid.items() if row.path or id_ in found}
    return _check_files(found, valid, decode, errors, notes)


def _searched(rows: dict[int, ImageRow]) -> dict[int, ImageRow]:
    return {id_: row for id_, row in rows.items() if row.path is None}


def _place(id_: int, row: ImageRow) -> str:
    """Where an image is annotated, for messages."""
    return row.place or f"image {id_}"


def _check_files(
    paths: dict[int, str],
    rows: dict[int, ImageRow],
    decode: bool,
    errors: Findings,
    notes: Findings,
) -> Images:
    """Opens every file and compares its size, so that a damaged file is found now and not during training."""
    positions = {path: position for position, path in enumerate(dict.fromkeys(paths.values()))}
    files = scan_files(list(positions), decode=decode)
    ids: list[int] = []
    kept: list[int] = []
    used = np.empty((len(paths), 2), dtype=np.int32)
    unreadable: list[str] = []
    for id_, path in paths.items():
        file, declared = positions[path], _declared_size(rows[id_])
        height, width = files.sizes[file].tolist()
        size = (height, width)
        if file in files.errors:
            unreadable.append(f"{_place(id_, rows[id_])}: {str(files.errors[file]).rstrip('.')}")
            continue
        if file in files.frames:
            several = f"{path} ({files.frames[file]} frames)"
            notes.add("image file with several frames, of which the first is used", several)
        if declared is not None and declared != size:
            sides = f"{path} is {size[1]} x {size[0]}, not {declared[1]} x {declared[0]}{swapped(path, size, declared)}"
            place = f"{_place(id_, rows[id_])}: {sides}"
            errors.add("image whose size (width x height) differs from the annotation file", place)
        used[len(ids)] = declared or size
        ids.append(id_)
        kept.append(file)
    add_items("unreadable image, skipped", f"unreadable image (of {len(paths)})", unreadable, len(paths), errors, notes)
    found = [paths[id_] for id_ in ids]
    return image_table(ids, found, used[: len(ids)], files.contents[kept])


def swapped(path: str | Path, size: tuple[int, int], declared: tuple[int, int]) -> str:
    """A hint for an image whose sides are swapped in the annotation file, or an empty string."""
    if declared != size[::-1]:
        return ""
    if is_transposed(path):
        return ", annotated without its EXIF orientation"
    return ", width and height are swapped in the annotation file"


def _declared_size(row: ImageRow) -> tuple[int, int] | None:
    """The height and width in the annotations; ``None`` if they are missing or not positive integers."""
    height, width = integer(row.height), integer(row.width)
    if height is None or width is None or not (0 < height < MAX_COORDINATE and 0 < width < MAX_COORDINATE):
        return None
    return height, width
