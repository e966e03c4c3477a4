"""Reads a COCO annotation file and checks all of it in one pass, before anything is trained on it.

What would make results wrong is an error, and all errors are told at once. What can be left out or completed without
harm is, and told as a note. What other people's files simply look like is accepted.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from detrs.data.detect import Split
from detrs.data.findings import Findings
from detrs.data.images import read_size
from detrs.data.locate import locate
from detrs.errors import UserError
from detrs.structures import Classes

MAX_STRAY = 0.01
"""Share of annotations without their image that is skipped with a note; more is an error."""
CLIPPED_SILENTLY = 2.0
"""Pixels by which a box may leave its image without a word: rounding."""
MIN_SIDE = 0.01
"""Pixels of a box that must lie inside its image, in each direction: less has no area in float32."""
MAX_COORDINATE = 1e9
"""Pixels; infinity is beyond it, too, and so are whole numbers that no float can hold."""
MIN_SUSPICIOUS = 5
"""Boxes that must look wrong in the same way before the whole file is suspected."""


class ImageEntry(NamedTuple):
    id: int
    path: Path
    size: tuple[int, int]
    """(height, width) in pixels, upright."""


class ObjectEntry(NamedTuple):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    """(x, y, width, height) in pixels, as the file has it."""
    area: float
    crowd: bool
    trainable: bool
    """Not crowd, has an area inside the image, is not there twice."""


@dataclass(frozen=True)
class Annotations:
    """An annotation file without a fault."""

    classes: Classes
    images: list[ImageEntry]
    objects: list[ObjectEntry]
    """In the order of the file."""
    notes: list[str]


def read_annotations(split: Split) -> Annotations:
    """The checked content of an annotation file, with every picture located.

    Raises:
        UserError: listing every kind of problem with the first places.
    """
    path = split.annotations
    errors, notes = Findings(), Findings()
    data = _read_json(path, notes)
    classes = _classes(data["categories"], errors, notes)
    images = _images(data["images"], split.folders, errors, notes)
    if not images:
        errors.raise_if_any(path)
        raise UserError(f"{path} lists no images.")
    known = {_integer(entry.get("id")) for entry in data["images"] if isinstance(entry, dict)}
    objects = _objects(data["annotations"], images, known, classes, errors, notes)
    errors.raise_if_any(path)
    if not any(entry.trainable for entry in objects):
        raise UserError(f"{path} has {len(images)} images, but no object to learn or to score.")
    used = Counter(entry.category_id for entry in objects if entry.trainable)
    for name, id_ in zip(classes.names, classes.category_ids, strict=True):
        if used[id_] <= 1:
            notes.add("class with a single object" if used[id_] else "class without any object", repr(name))
    return Annotations(classes, list(images.values()), objects, notes.lines())


def _read_json(path: Path, notes: Findings) -> dict[str, Any]:
    """The top level of an annotation file, with its three lists in place."""
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
        raise UserError(f"{path} is XML, perhaps Pascal VOC. Expected COCO annotations in JSON: convert it first.")

    def refuse(literal: str) -> None:
        before = text[: re.search(rf"(?<=[\s:,\[]){re.escape(literal)}", text).start()]  # type: ignore[union-attr]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise UserError(f"{path}: {literal} at line {line}, column {column} is no number. Correct or remove the box.")

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            for key, count in Counter(key for key, _ in pairs).items():
                if count > 1:
                    notes.add("key that an object has twice, the last one counts", f"{key!r:.40}")
        return content

    try:
        data = json.loads(text, parse_constant=refuse, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        byte = len(content) - len(text[error.pos :].encode())
        place = f"line {error.lineno}, column {error.colno} (byte {byte})"
        raise UserError(f"{path}: no valid JSON at {place}: {error.msg}. It may have been cut off.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be COCO annotations.") from None
    except UserError:
        raise
    except ValueError as error:  # Python's limit on the digits of a number
        raise UserError(f"{path} holds a number that cannot be read: {error}.") from None
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
    return data


def _integer(value: Any) -> int | None:
    """``value`` if it is a whole number, as some writers store 1.0 for 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _classes(entries: list[Any], errors: Findings, notes: Findings) -> Classes:
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        place = f"categories[{index}]"
        id_, name = (_integer(entry.get("id")), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if id_ is None:
            errors.add("category without a whole number as id", place)
        elif id_ in names:
            errors.add("category id used twice", f"{place}: {id_}")
        elif not isinstance(name, str) or not name.strip() or "\n" in name or "\r" in name:
            errors.add("category whose name is missing, empty or of several lines", f"{place}: {name!r:.40}")
        elif name in names.values():
            errors.add("category name used twice", f"{place}: {name!r:.40}")
        else:
            if name.strip().casefold() in (other.strip().casefold() for other in names.values()):
                notes.add("category name that differs from another only in case or spaces", repr(name))
            names[id_] = name
    ids = sorted(names)
    return Classes(tuple(names[id_] for id_ in ids), tuple(ids))


def _images(entries: list[Any], folders: tuple[Path, ...], errors: Findings, notes: Findings) -> dict[int, ImageEntry]:
    """The pictures by id, in the order of the file."""
    names: dict[int, str] = {}
    sizes: dict[int, tuple[int, int] | None] = {}
    for index, entry in enumerate(entries):
        place = f"images[{index}]"
        if not isinstance(entry, dict):
            errors.add("image that is no object", place)
            continue
        id_, name = _integer(entry.get("id")), entry.get("file_name")
        if id_ is None:
            errors.add("image id that is no whole number", f"{place}: {entry.get('id')!r:.40}")
            continue
        place = f"image {id_}"
        if id_ in names:
            errors.add("image id used twice", place)
        elif not isinstance(name, str) or not name or "\0" in name:
            errors.add("image without file_name", place)
        elif "://" in name:
            errors.add("URL as file_name; nothing is fetched from the network", f"{place}: {name:.80}")
        else:
            names[id_] = name
            sizes[id_] = _declared_size(entry, place, errors)
    for name, count in Counter(names.values()).items():
        if count > 1:
            notes.add("file listed as several images", name)
    paths = locate(names, folders, errors, notes)
    images = {}
    for id_, path in paths.items():
        size = sizes[id_]
        try:
            images[id_] = ImageEntry(id_, path, size or read_size(path))
        except UserError as error:
            errors.add("image without width and height that cannot be read", f"image {id_}: {error}")
    return images


def _declared_size(entry: dict[str, Any], place: str, errors: Findings) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    if height is None and width is None:
        return None
    size = _integer(height), _integer(width)
    if size[0] is None or size[1] is None or not (0 < size[0] < MAX_COORDINATE and 0 < size[1] < MAX_COORDINATE):
        sides = f"{place}: {width!r:.40} x {height!r:.40}"
        errors.add("image whose width or height is no positive whole number of pixels", sides)
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
    stray: list[str] = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            errors.add("annotation that is no object", f"annotations[{index}]")
            continue
        place = f"annotation {entry['id']!r:.40}" if "id" in entry else f"annotations[{index}]"
        id_, image_id = _integer(entry.get("id")), _integer(entry.get("image_id"))
        category_id, bbox = _integer(entry.get("category_id")), entry.get("bbox")
        if id_ is None and entry.get("id") is not None:
            errors.add("annotation id that is no whole number", place)
        elif id_ is not None and id_ in boxes_by_id and boxes_by_id[id_] != bbox:
            errors.add("annotation id used twice, for different boxes", place)
        if id_ is not None:
            boxes_by_id[id_] = bbox
        fault = _fault(bbox)
        if image_id is None:
            errors.add("image_id that is no whole number", f"{place}: {entry.get('image_id')!r:.40}")
        elif image_id not in listed:
            stray.append(f"{place}: {image_id}")
        elif category_id not in category_ids:
            errors.add("category_id that no category has", f"{place}: {entry.get('category_id')!r:.40}")
        elif fault:
            errors.add(fault, f"{place}: {bbox!r:.80}")
        elif image_id in images:  # its image may be a missing one, skipped with a note
            assert category_id is not None and bbox is not None
            x, y, width, height = map(float, bbox)
            crowd = bool(entry.get("iscrowd"))
            if entry.get("iscrowd") not in (None, 0, 1):
                errors.add("iscrowd that is neither 0 nor 1", f"{place}: {entry['iscrowd']!r:.40}")
            box = (x, y, width, height)
            trainable = not crowd and _usable(box, images[image_id].size, place, notes)
            categories = seen.setdefault((image_id, box), set()) if trainable else set()
            if category_id in categories:
                notes.add("box that is there twice, kept once", place)
                trainable = False
            elif categories:
                notes.add("box that is there in several classes", place)
            categories.add(category_id)
            area = entry.get("area")
            area = float(area) if isinstance(area, int | float) and 0 < area < MAX_COORDINATE**2 else width * height
            objects.append(ObjectEntry(image_id, category_id, box, area, crowd, trainable))
    for place in stray:
        if len(stray) <= MAX_STRAY * len(entries):
            notes.add("annotation of an image that is not listed, skipped", place)
        else:
            errors.add(f"annotation (of {len(entries)}) of an image that is not listed", place)
    _suspect(objects, images, errors)
    return objects


def _fault(bbox: Any) -> str:
    """What is wrong with the form of a box, or nothing."""
    if bbox is None:
        return "annotation without bbox"
    if isinstance(bbox, list) and len(bbox) == 5:
        return "box of five numbers; rotated boxes are not supported"
    if not isinstance(bbox, list) or len(bbox) != 4 or not {*map(type, bbox)} <= {int, float}:
        return "bbox that is not [x, y, width, height]"
    if max(bbox) > MAX_COORDINATE or min(bbox) < -MAX_COORDINATE:
        return "box that is not finite or absurdly large"
    if min(bbox[2:]) < 0:
        return "box of negative width or height; the format is [x, y, width, height], not [x1, y1, x2, y2]"
    return ""


def _excess(bbox: tuple[float, ...], size: tuple[int, int]) -> float:
    """Pixels by which an [x, y, width, height] box leaves its image."""
    x, y, width, height = bbox
    return max(-x, -y, x + width - size[1], y + height - size[0])


def _usable(bbox: tuple[float, ...], size: tuple[int, int], place: str, notes: Findings) -> bool:
    x, y, width, height = bbox
    if width == 0 or height == 0:
        notes.add("box without area, not trained on", place)
        return False
    inside = min(x + width, size[1]) - max(x, 0), min(y + height, size[0]) - max(y, 0)
    if min(inside) < MIN_SIDE:
        notes.add("box outside its image, not trained on", place)
        return False
    if _excess(bbox, size) > CLIPPED_SILENTLY:
        notes.add("box that leaves its image, clipped for training", place)
    if min(width, height) < 1:
        notes.add("box thinner than a pixel", place)
    return True


def _suspect(objects: list[ObjectEntry], images: dict[int, ImageEntry], errors: Findings) -> None:
    """Whole files in another convention: normalised boxes, or corners instead of sizes."""
    boxes = [(entry.bbox, images[entry.image_id].size) for entry in objects if not entry.crowd]
    if len(boxes) >= MIN_SUSPICIOUS and all(max(bbox) <= 1 for bbox, _ in boxes):
        errors.add("file whose boxes all lie in [0, 1]; they must be in pixels", f"the first is {boxes[0][0]}")
    leaving = [bbox for bbox, size in boxes if _excess(bbox, size) > CLIPPED_SILENTLY]
    if len(leaving) >= MIN_SUSPICIOUS and len(leaving) > len(boxes) / 2:
        hint = "they may be [x1, y1, x2, y2] instead of [x, y, width, height]"
        errors.add(f"file most of whose boxes leave their image; {hint}", f"{len(leaving)} of {len(boxes)} boxes")
