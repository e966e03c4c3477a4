"""Which layout is this folder? Finds the annotation file and the pictures of a split in the layouts people have."""

import re
from pathlib import Path
from typing import NamedTuple

from detrs.errors import UserError, did_you_mean

SYNONYMS = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
"""Names of one split."""

LAYOUTS = (
    "annotations/instances_{split}2017.json with {split}2017/ or images/{split}2017/ (COCO)",
    "annotations/{split}.json or {split}.json with images/, images/{split}/ or {split}/",
    "{split}/_annotations.coco.json with the images beside it (Roboflow)",
)


class Split(NamedTuple):
    """Where a split lies."""

    annotations: Path
    folders: tuple[Path, ...]
    """Existing folders in which its pictures may lie, likeliest first."""


def find_split(root: Path, split: str) -> Split:
    """The files of ``split`` in the data set folder ``root``.

    Args:
        root: the folder.
        split: ``train``, ``val``, ``test``, a synonym of one of them, or the very name in a file (``train2017``).

    Raises:
        UserError: listing what was looked for and what is there.
    """
    try:
        return _found(root, split)
    except OSError as error:
        raise UserError(f"The data folder '{root}' cannot be read: {error.strerror}.") from error


def _found(root: Path, split: str) -> Split:
    if not root.is_dir():
        siblings = [entry.name for entry in root.parent.iterdir()] if root.parent.is_dir() else []
        hint = "" if root.exists() else did_you_mean(root.name, siblings)
        raise UserError(f"The data folder {root} {'is no folder' if root.exists() else 'does not exist'}.{hint}")
    found = _annotation_files(root)
    names = (split, *(name for synonyms in SYNONYMS if split in synonyms for name in synonyms if name != split))
    for name in names:
        for wanted in (re.escape(name), re.escape(name) + r"(19|20)\d\d"):
            matches = [(key, path) for key, path in found if re.fullmatch(wanted, key)]
            if len(matches) > 1:
                listed = ", ".join(str(path.relative_to(root)) for _, path in matches)
                raise UserError(f"{root} has several annotation files for the split '{split}': {listed}. Keep one.")
            if matches:
                return Split(matches[0][1], _folders(root, matches[0][1], (matches[0][0], *names)))
    raise UserError(_nothing_found(root, split, [key for key, _ in found]))


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


def _nothing_found(root: Path, split: str, found: list[str]) -> str:
    if found:
        listed = ", ".join(sorted(set(found)))
        return f"{root} has no split '{split}', but has: {listed}.{did_you_mean(split, found)}"
    message = f"{root} holds no COCO annotations for the split '{split}'. Looked for "
    message += "; ".join(layout.format(split=split) for layout in LAYOUTS) + "."
    if (root / "data.yaml").is_file() or (root / "labels").is_dir():
        message += " It looks like a YOLO data set: convert it to COCO first."
    elif (root / "Annotations").is_dir():
        message += " It looks like a Pascal VOC data set: convert it to COCO first."
    return message
