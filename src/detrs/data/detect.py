"""Finds the annotation file and the image folders of a split in the usual folder layouts."""

import re
from pathlib import Path
from typing import NamedTuple

from detrs.errors import UserError, did_you_mean

SYNONYMS = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
"""Equivalent names of each split."""

LAYOUTS = (
    "annotations/instances_{split}2017.json with {split}2017/ or images/{split}2017/ (COCO)",
    "annotations/{split}.json or {split}.json with images/, images/{split}/ or {split}/",
    "{split}/_annotations.coco.json with the images beside it (Roboflow)",
)


class Split(NamedTuple):
    """The files of a split."""

    annotations: Path
    folders: tuple[Path, ...]
    """Existing folders that may contain its images, most likely first."""


def find_split(root: Path, split: str) -> Split:
    """Finds the files of a split.

    Args:
        root: Folder of the dataset.
        split: ``train``, ``val``, ``test``, a synonym of one of them, or the exact name in a file (``train2017``).

    Raises:
        UserError: The split was not found or is ambiguous; the message lists the supported layouts and what was found.
    """
    try:
        return _found(root, split)
    except OSError as error:
        raise UserError(f"The data folder '{root}' cannot be read: {error.strerror}.") from error


def _found(root: Path, split: str) -> Split:
    if not root.is_dir():
        siblings = [entry.name for entry in root.parent.iterdir()] if root.parent.is_dir() else []
        hint = "" if root.exists() else did_you_mean(root.name, siblings)
        raise UserError(f"The data folder {root} {'is not a folder' if root.exists() else 'does not exist'}.{hint}")
    found = _annotation_files(root)
    names = (split, *(name for synonyms in SYNONYMS if split in synonyms for name in synonyms if name != split))
    for name in names:
        for pattern in (re.escape(name), re.escape(name) + r"(19|20)\d\d"):
            matches = [(key, path) for key, path in found if re.fullmatch(pattern, key)]
            if len(matches) > 1:
                listed = ", ".join(str(path.relative_to(root)) for _, path in matches)
                raise UserError(f"{root} has several annotation files for the split '{split}': {listed}. Keep one.")
            if matches:
                return Split(matches[0][1], _folders(root, matches[0][1], (matches[0][0], *names)))
    raise UserError(_not_found(root, split, [key for key, _ in found]))


def _annotation_files(root: Path) -> list[tuple[str, Path]]:
    """(name of the split, file) of every annotation file in ``root``."""
    files = [
        (path.stem.removeprefix("instances_"), path)
        for folder in (root / "annotations", root)
        for path in sorted(folder.glob("*.json"))
    ]
    return files + [(path.parent.name, path) for path in sorted(root.glob("*/_annotations.coco.json"))]


def _folders(root: Path, annotations: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    if annotations.name == "_annotations.coco.json":
        return (annotations.parent,)
    nested = [root / name for name in names] + [root / "images" / name for name in names]
    return tuple(folder for folder in (*nested, root / "images", root) if folder.is_dir())


def _not_found(root: Path, split: str, found: list[str]) -> str:
    if found:
        listed = ", ".join(sorted(set(found)))
        return f"{root} has no split '{split}'. Available splits: {listed}.{did_you_mean(split, found)}"
    message = f"{root} has no COCO annotations for the split '{split}'. Supported layouts: "
    message += "; ".join(layout.format(split=split) for layout in LAYOUTS) + "."
    if (root / "data.yaml").is_file() or (root / "labels").is_dir():
        message += " It looks like a YOLO dataset. Convert it to COCO format first."
    elif (root / "Annotations").is_dir():
        message += " It looks like a Pascal VOC dataset. Convert it to COCO format first."
    return message
