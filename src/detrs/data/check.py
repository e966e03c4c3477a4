"""Reads a COCO annotation file and validates all of it in one pass, before training starts.

Faults that would make results wrong are errors, and all of them are reported at once. Faults of single items that can
be skipped or repaired are reported as notes. Harmless deviations from the format are accepted.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from detrs.data.detect import Split
from detrs.data.findings import Findings
from detrs.data.images import read_sizes
from detrs.data.locate import locate
from detrs.errors import UserError
from detrs.structures import Classes

MAX_UNREADABLE = 0.01
"""Fraction of unreadable images that are skipped with a note; more are an error."""
MAX_UNKNOWN_IMAGES = 0.01
"""Fraction of annotations with an unknown image that are skipped with a note; more are an error."""
ROUNDING_TOLERANCE = 2.0
"""Pixels by which a box may exceed its image without a note."""
MIN_SIDE = 0.01
"""Minimum width and height in pixels of the part of a box inside its image; less may have no area in float32."""
MAX_COORDINATE = 1e9
"""In pixels. Infinity and integers that overflow a float are larger."""
MIN_BOXES = 5
"""Minimum number of boxes to detect another convention in the file."""


class ImageEntry(NamedTuple):
    id: int
    path: Path
    size: tuple[int, int]
    """(height, width) in pixels, after EXIF orientation."""


class ObjectEntry(NamedTuple):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    """(x, y, width, height) in pixels, as in the file."""
    area: float
    crowd: bool
    trainable: bool
    """Not crowd, not a duplicate, and with an area inside the image."""


@dataclass(frozen=True)
class Annotations:
    """The content of a valid annotation file."""

    classes: Classes
    images: list[ImageEntry]
    objects: list[ObjectEntry]
    """In the order of the file."""
    notes: list[str]
    content: "hashlib._Hash"
    """SHA-256 of the file; a copy can be updated further."""


def read_annotations(split: Split) -> Annotations:
    """Reads and validates an annotation file and finds its images.

    Raises:
        UserError: The file has errors; the message lists every kind of error with its first occurrences.
    """
    path = split.annotations
    errors, notes = Findings(), Findings()
    data, content = _read_json(path, notes)
    classes = _classes(data["categories"], errors, notes)
    images = _images(data["images"], split.folders, errors, notes)
    if not images:
        errors.raise_if_any(path)
        raise UserError(f"{path} contains no images.")
    known = {_integer(entry.get("id")) for entry in data["images"] if isinstance(entry, dict)}
    objects = _objects(data["annotations"], images, known, classes, errors, notes)
    errors.raise_if_any(path)
    if not any(entry.trainable for entry in objects):
        raise UserError(f"{path} contains {len(images)} images, but no objects.")
    used = Counter(entry.category_id for entry in objects if entry.trainable)
    for name, id_ in zip(classes.names, classes.category_ids, strict=True):
        if used[id_] <= 1:
            notes.add("class with a single object" if used[id_] else "class without objects", repr(name))
    return Annotations(classes, list(images.values()), objects, notes.lines(), content)


def _read_json(path: Path, notes: Findings) -> tuple[dict[str, Any], "hashlib._Hash"]:
    """Parses an annotation file and checks its top level. Returns the content and the hash of the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not content.strip():
        raise UserError(f"{path} is empty. Expected COCO annotations.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        guess = "UTF-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "Latin-1"
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; it may be {guess}. Save it as UTF-8.") from None
    if text.lstrip().startswith("<"):
        raise UserError(f"{path} is XML, perhaps Pascal VOC. Expected COCO annotations in JSON. Convert it first.")

    def reject(literal: str) -> None:
        before = text[: re.search(rf"(?:^|(?<=[\s:,\[])){re.escape(literal)}", text).start()]  # type: ignore[union-attr]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        place = f"line {line}, column {column}"
        raise UserError(f"{path}: {literal} at {place} is not a valid number. Correct or remove it.")

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            for key, count in Counter(key for key, _ in pairs).items():
                if count > 1:
                    notes.add("duplicate key of an object, last value used", f"{key!r:.40}")
        return content

    try:
        data = json.loads(text, parse_constant=reject, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        byte = len(content) - len(text[error.pos :].encode())
        place = f"line {error.lineno}, column {error.colno} (byte {byte})"
        raise UserError(f"{path}: invalid JSON at {place}: {error.msg}. The file may be truncated.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be COCO annotations.") from None
    except UserError:
        raise
    except ValueError as error:  # Python's limit on the number of digits
        raise UserError(f"{path} contains a number that cannot be read: {error}.") from None
    if isinstance(data, list):
        if data and isinstance(data[0], dict) and "score" in data[0]:
            raise UserError(f"{path} looks like detections, not annotations: its top level is a list of scored boxes.")
        raise UserError(f"{path}: the top level is a list. Expected an object with images, annotations and categories.")
    if not isinstance(data, dict):
        raise UserError(f"{path}: the top level is {data!r:.40}. Expected images, annotations and categories.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            what = "is missing" if key not in data else f"is {type(data[key]).__name__}, not a list"
            raise UserError(f"{path}: '{key}' {what}. Expected the three lists images, annotations and categories.")
    if not data["categories"]:
        raise UserError(f"{path}: 'categories' is empty, so no annotation has a class.")
    return data, hashlib.sha256(content)


def _integer(value: Any) -> int | None:
    """``value`` as an integer, or ``None``. Integral floats are accepted, since some programs write 1.0 for 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _classes(entries: list[Any], errors: Findings, notes: Findings) -> Classes:
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        place = f"categories[{index}]"
        id_, name = (_integer(entry.get("id")), entry.get("name")) if isinstance(entry, dict) else (None, None)
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


def _images(entries: list[Any], folders: tuple[Path, ...], errors: Findings, notes: Findings) -> dict[int, ImageEntry]:
    """The images by id, in the order of the file."""
    names: dict[int, str] = {}
    sizes: dict[int, tuple[int, int] | None] = {}
    for index, entry in enumerate(entries):
        place = f"images[{index}]"
        if not isinstance(entry, dict):
            errors.add("image that is not an object", place)
            continue
        id_, name = _integer(entry.get("id")), entry.get("file_name")
        if id_ is None:
            errors.add("image id that is not an integer", f"{place}: {entry.get('id')!r:.40}")
            continue
        place = f"image {id_}"
        if id_ in names:
            errors.add("duplicate image id", place)
        elif not isinstance(name, str) or not name or "\0" in name:
            errors.add("image without file_name", place)
        elif "://" in name:
            errors.add("file_name that is a URL (images are not downloaded)", f"{place}: {name:.80}")
        else:
            names[id_] = name
            sizes[id_] = _declared_size(entry, place, errors)
    for name, count in Counter(names.values()).items():
        if count > 1:
            notes.add("file used by several images", name)
    return _check_files(locate(names, folders, errors, notes), sizes, errors, notes)


def _check_files(
    paths: dict[int, Path], sizes: dict[int, tuple[int, int] | None], errors: Findings, notes: Findings
) -> dict[int, ImageEntry]:
    """Opens every file and compares its size, so that a damaged file is found now and not during training."""
    distinct = list(dict.fromkeys(paths.values()))
    found = dict(zip(distinct, read_sizes(distinct), strict=True))
    images: dict[int, ImageEntry] = {}
    unreadable: list[str] = []
    for id_, path in paths.items():
        size, declared = found[path], sizes[id_]
        if isinstance(size, UserError):
            unreadable.append(f"image {id_}: {str(size).rstrip('.')}")
            continue
        if declared is not None and declared != size:
            rotation = ", probably annotated without EXIF rotation" if declared == size[::-1] else ""
            place = f"{path} is {size[1]} x {size[0]}, not {declared[1]} x {declared[0]}{rotation}"
            errors.add("image whose size (width x height) differs from the annotation file", f"image {id_}: {place}")
        images[id_] = ImageEntry(id_, path, declared or size)
    for place in unreadable:
        if len(unreadable) <= MAX_UNREADABLE * len(paths):
            notes.add("unreadable image, skipped", place)
        else:
            errors.add(f"unreadable image (of {len(paths)})", place)
    return images


def _declared_size(entry: dict[str, Any], place: str, errors: Findings) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    if height is None and width is None:
        return None
    size = _integer(height), _integer(width)
    if size[0] is None or size[1] is None or not (0 < size[0] < MAX_COORDINATE and 0 < size[1] < MAX_COORDINATE):
        sides = f"{place}: {width!r:.40} x {height!r:.40}"
        errors.add("image whose width or height is not a positive integer", sides)
        return None
    return size[0], size[1]


def _objects(
    entries: list[Any],
    images: dict[int, ImageEntry],
    known: Iterable[int | None],
    classes: Classes,
    errors: Findings,
    notes: Findings,
) -> list[ObjectEntry]:
    listed, category_ids = set(known), set(classes.category_ids)
    objects: list[ObjectEntry] = []
    boxes_by_id: dict[int, Any] = {}
    seen: dict[tuple[int, tuple[float, ...]], set[int]] = {}  # (image, box) -> categories
    unknown_images: list[str] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            errors.add("annotation that is not an object", f"annotations[{index}]")
            continue
        place = f"annotation {entry['id']!r:.40}" if "id" in entry else f"annotations[{index}]"
        id_, image_id = _integer(entry.get("id")), _integer(entry.get("image_id"))
        category_id, bbox = _integer(entry.get("category_id")), entry.get("bbox")
        if id_ is None and entry.get("id") is not None:
            errors.add("annotation id that is not an integer", place)
        elif id_ is not None and id_ in boxes_by_id and boxes_by_id[id_] != bbox:
            errors.add("duplicate annotation id with different boxes", place)
        if id_ is not None:
            boxes_by_id[id_] = bbox
        fault = _fault(bbox)
        if image_id is None:
            errors.add("image_id that is not an integer", f"{place}: {entry.get('image_id')!r:.40}")
        elif image_id not in listed:
            unknown_images.append(f"{place}: {image_id}")
        elif category_id not in category_ids:
            errors.add("unknown category_id", f"{place}: {entry.get('category_id')!r:.40}")
        elif fault:
            errors.add(fault, f"{place}: {bbox!r:.80}")
        elif image_id in images:  # false for a missing image that is skipped with a note
            assert category_id is not None and bbox is not None
            x, y, width, height = map(float, bbox)
            crowd = bool(entry.get("iscrowd"))
            if entry.get("iscrowd") not in (None, 0, 1):
                errors.add("iscrowd that is neither 0 nor 1", f"{place}: {entry['iscrowd']!r:.40}")
            box = (x, y, width, height)
            trainable = not crowd and _usable(box, images[image_id].size, place, notes)
            categories = seen.setdefault((image_id, box), set()) if trainable else set()
            if category_id in categories:
                notes.add("duplicate box, ignored in training", place)
                trainable = False
            elif categories:
                notes.add("box with several classes", place)
            categories.add(category_id)
            area = entry.get("area")
            area = float(area) if isinstance(area, int | float) and 0 < area < MAX_COORDINATE**2 else width * height
            objects.append(ObjectEntry(image_id, category_id, box, area, crowd, trainable))
    for place in unknown_images:
        if len(unknown_images) <= MAX_UNKNOWN_IMAGES * len(entries):
            notes.add("annotation with unknown image_id, skipped", place)
        else:
            errors.add(f"annotation (of {len(entries)}) with unknown image_id", place)
    _check_convention(objects, images, errors)
    return objects


def _fault(bbox: Any) -> str:
    """The fault of a malformed box, or an empty string."""
    if bbox is None:
        return "annotation without bbox"
    if isinstance(bbox, list) and len(bbox) == 5:
        return "box with five numbers (rotated boxes are not supported)"
    if not isinstance(bbox, list) or len(bbox) != 4 or not {*map(type, bbox)} <= {int, float}:
        return "bbox that is not [x, y, width, height]"
    if max(bbox) > MAX_COORDINATE or min(bbox) < -MAX_COORDINATE:
        return "box with infinite or very large coordinates"
    if min(bbox[2:]) < 0:
        return "box with negative width or height (expected [x, y, width, height], not [x1, y1, x2, y2])"
    return ""


def _excess(bbox: tuple[float, ...], size: tuple[int, int]) -> float:
    """Pixels by which an [x, y, width, height] box exceeds its image."""
    x, y, width, height = bbox
    return max(-x, -y, x + width - size[1], y + height - size[0])


def _usable(bbox: tuple[float, ...], size: tuple[int, int], place: str, notes: Findings) -> bool:
    """Whether a box can be trained on; notes are added for unusual ones."""
    x, y, width, height = bbox
    if width == 0 or height == 0:
        notes.add("box without area, ignored in training", place)
        return False
    inside = min(x + width, size[1]) - max(x, 0), min(y + height, size[0]) - max(y, 0)
    if min(inside) < MIN_SIDE:
        notes.add("box outside its image, ignored in training", place)
        return False
    if _excess(bbox, size) > ROUNDING_TOLERANCE:
        notes.add("box that exceeds its image, clipped in training", place)
    if min(width, height) < 1:
        notes.add("box less than one pixel wide or high", place)
    return True


def _check_convention(objects: list[ObjectEntry], images: dict[int, ImageEntry], errors: Findings) -> None:
    """Detects files with normalized boxes, or with corners instead of sizes."""
    boxes = [(entry.bbox, images[entry.image_id].size) for entry in objects if not entry.crowd]
    if len(boxes) >= MIN_BOXES and all(max(bbox) <= 1 for bbox, _ in boxes):
        errors.add("file with all boxes in [0, 1] (expected pixels)", f"the first is {boxes[0][0]}")
    exceeding = [bbox for bbox, size in boxes if _excess(bbox, size) > ROUNDING_TOLERANCE]
    if len(exceeding) >= MIN_BOXES and len(exceeding) > len(boxes) / 2:
        hint = "they may be [x1, y1, x2, y2] instead of [x, y, width, height]"
        errors.add(f"file with most boxes outside their images ({hint})", f"{len(exceeding)} of {len(boxes)} boxes")
