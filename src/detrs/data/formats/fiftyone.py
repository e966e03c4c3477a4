"""Exports of FiftyOne: ``FiftyOneDataset`` (samples.json) and ``FiftyOneImageDetectionDataset`` (labels.json).

Boxes are [x, y, width, height] relative to the size of the image.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrs.data.content import Content, ImageRow, Split
from detrs.data.findings import Findings
from detrs.data.folders import IMAGE_SUFFIXES
from detrs.data.formats.json_head import top_level_keys
from detrs.data.json_file import read_json
from detrs.data.objects import CROWD, REGULAR, PlacedColumns, box_fault, integer
from detrs.errors import UserError

NAME = "FiftyOne"
LAYOUTS = ("samples.json and metadata.json, or labels.json, with data/, also in {split}/ (FiftyOne)",)
SAMPLES, LABELS, DATA = "samples.json", "labels.json", "data"
GROUND_TRUTH = "ground_truth"
"""Field that is used if there are several with boxes."""
NORMALIZED = "box that is not inside [0, 1] (expected [x, y, width, height] relative to the image)"


@dataclass(frozen=True)
class FiftyOneSplit(Split):
    """A ``samples.json`` or ``labels.json``."""

    name: str
    path: Path
    files: tuple[Path, ...]
    """Those of all splits, which have the same classes."""

    def read(self, errors: Findings, notes: Findings) -> Content:
        read = _read_samples if self.path.name == SAMPLES else _read_labels
        samples, classes, digest = read(self.path, errors, notes)
        others = [path for path in self.files if path != self.path]
        names = classes or sorted(
            {
                each["label"]
                for part in (samples, *(read(path, Findings(), Findings())[0] for path in others))
                for _, detections in part
                for each in detections
                if isinstance(each, dict) and isinstance(each.get("label"), str)
            }
        )
        columns = PlacedColumns(normalized=True)
        images: list[ImageRow | None] = []
        ids = {name: number for number, name in enumerate(names, 0 if classes else 1)}
        for image_id, (row, detections) in enumerate(sorted(samples, key=lambda sample: str(sample[0].file_name)), 1):
            images.append(row._replace(id=image_id))
            for number, detection in enumerate(detections):
                place = f"{row.place}[{number}]"
                _add(detection, image_id, place, str(row.place), columns, ids, bool(classes), errors)
        digest = hashlib.sha256(digest + json.dumps(names).encode()).digest()
        categories: list[Any] = [{"id": id_, "name": name} for name, id_ in ids.items()]
        if len(ids) < len(names):
            errors.add("duplicate class name", f"{self.path.name}: {names}")
        folders = tuple(folder for folder in (self.path.parent, self.path.parent / DATA) if folder.is_dir())
        return Content(images=images, objects=columns, categories=categories, folders=folders, digest=digest)


Sample = tuple[ImageRow, list[Any]]


def splits(path: Path) -> list[Split]:
    """The exports in a folder and in its subfolders."""
    if path.is_file():
        return splits(path.parent) if path.name in (SAMPLES, LABELS) else []
    if file := _file(path):
        return [FiftyOneSplit("", file, (file,))]
    found = {folder.name: file for folder in sorted(path.glob("*/")) if (file := _file(folder))}
    return [FiftyOneSplit(name, file, tuple(found.values())) for name, file in found.items()]


def _file(folder: Path) -> Path | None:
    if "samples" in (top_level_keys(folder / SAMPLES) or ()):
        return folder / SAMPLES
    if "labels" in (top_level_keys(folder / LABELS) or ()) and (folder / DATA).is_dir():
        return folder / LABELS
    return None


def _read_samples(path: Path, errors: Findings, notes: Findings) -> tuple[list[Sample], list[str], bytes]:
    """The samples of ``samples.json`` with their boxes, in the only field with boxes or in ``ground_truth``."""
    rows: list[Any] = []
    data, digest = read_json(path, {"samples": rows}, errors, notes, what="an export of FiftyOne")
    if not isinstance(data, dict) or not isinstance(data.get("samples"), list):
        errors.raise_if_any(
            path, f"{path}: 'samples' is not a list. Expected an export of FiftyOne as FiftyOneDataset."
        )
    fields = sorted({field for row in rows if isinstance(row, dict) for field in row if _is_detections(row[field])})
    if len(fields) > 1 and GROUND_TRUTH not in fields:
        listed = ", ".join(fields)
        raise UserError(f"{path} has several fields with boxes: {listed}. Export one, or name it '{GROUND_TRUTH}'.")
    if rows and not fields:
        raise UserError(
            f"{path} has no field with boxes. Expected a field of the type Detections, as '{GROUND_TRUTH}'."
        )
    field = GROUND_TRUTH if GROUND_TRUTH in fields else fields[0] if fields else ""
    samples = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            errors.add("sample that is not an object", f"{path.name}: samples[{number}]: {row!r:.40}")
            continue
        file = row.get("filepath")
        metadata = row.get("metadata")
        size = (metadata.get("height"), metadata.get("width")) if isinstance(metadata, dict) else (None, None)
        place = f"{path.name}: {file if isinstance(file, str) else f'samples[{number}]'}"
        detections = row[field]["detections"] if _is_detections(row.get(field)) else []
        samples.append((ImageRow(0, file, *size, place=place), detections))
    return samples, [], digest


def _is_detections(value: Any) -> bool:
    is_typed = isinstance(value, dict) and value.get("_cls") == "Detections"
    return is_typed and isinstance(value.get("detections"), list)


def _read_labels(path: Path, errors: Findings, notes: Findings) -> tuple[list[Sample], list[str], bytes]:
    """The images of ``labels.json``, which are named without their extension."""
    data, digest = read_json(path, {}, errors, notes, what="an export of FiftyOne")
    labels = data.get("labels") if isinstance(data, dict) else None
    if not isinstance(labels, dict):
        errors.raise_if_any(path, f"{path}: 'labels' is not an object with the boxes of each image.")
        labels = {}
    classes = data.get("classes") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        errors.raise_if_any(path, f"{path}: 'classes' is {classes!r:.60}. Expected a list of names.")
    files = _images(path.parent / DATA)
    samples = []
    for name, detections in labels.items():
        place = f"{path.name}: {name}"
        found = files.get(name, [])
        if len(found) > 1:
            errors.add("several images of one name", f"{place}: {' and '.join(file.name for file in found)}")
        if detections is not None and not isinstance(detections, list):
            errors.add("boxes of an image that are not a list", f"{place}: {detections!r:.40}")
            detections = None
        file_name = found[0].relative_to(path.parent).as_posix() if found else f"{DATA}/{name}"
        samples.append((ImageRow(0, file_name, place=place), detections or []))
    return samples, classes, digest


def _images(folder: Path) -> dict[str, list[Path]]:
    """The image files in a folder and its subfolders by their relative path without extension."""
    found: dict[str, list[Path]] = {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES:
                key = (Path(parent).relative_to(folder) / stem).as_posix()
                found.setdefault(key, []).append(Path(parent, name))
    return found


def _add(
    detection: Any,
    image_id: int,
    place: str,
    file: str,
    columns: PlacedColumns,
    ids: dict[str, int],
    are_listed: bool,
    errors: Findings,
) -> None:
    columns.num_items += 1
    if not isinstance(detection, dict):
        errors.add("annotation that is not an object", f"{place}: {detection!r:.40}")
        return
    box, label = detection.get("bounding_box"), detection.get("label")
    attributes = detection.get("attributes")
    is_crowd = detection.get("iscrowd", attributes.get("iscrowd") if isinstance(attributes, dict) else None)
    category_id = ids.get(label) if isinstance(label, str) else integer(label) if are_listed else None
    if not isinstance(box, list) or len(box) != 4 or not {*map(type, box)} <= {int, float}:
        errors.add("bounding_box that is not [x, y, width, height]", f"{place}: {box!r:.80}")
    elif fault := box_fault(box):
        errors.add(fault, f"{place}: {box!r:.80}")
    elif max(box) > 2:
        errors.add(NORMALIZED, f"{place}: {box!r:.80}")
    elif is_crowd not in (None, 0, 1):
        errors.add("iscrowd that is neither 0 nor 1", f"{place}: {is_crowd!r:.40}")
    elif category_id is None or category_id not in ids.values():
        errors.add("unknown label", f"{place}: {label!r:.40}")
    else:
        x, y, width, height = map(float, box)
        columns.add_at(file, 0, image_id, category_id, (x, y, width, height), kind=CROWD if is_crowd else REGULAR)
