"""Where COCO annotation files and their images are in a folder."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from detrs.data.content import is_usual, split_of, synonyms
from detrs.data.formats.json_head import HEAD_BYTES, top_level_keys
from detrs.data.formats.label_studio_files import is_export
from detrs.errors import UserError
from detrs.files import open_regular

ROBOFLOW = "_annotations.coco.json"
SPLIT_FILES = (
    *(ROBOFLOW, "annotations.coco.json", "annotations.json", "_annotations.json", "instances.json", "labels.json"),
    "coco.json",
)
"""Names of the annotation file in the folder of a split."""
UNDIVIDED = frozenset(name.removesuffix(".json") for name in SPLIT_FILES)
"""Stems of annotation files of a dataset that is not divided into splits."""
NOT_A_SPLIT = frozenset({"annotations", "images", "data", "labels"})
OTHER_KEYS = frozenset({"shapes", "imagePath", "imageData", "samples", "labels"})
"""Keys of other JSON formats: LabelMe and FiftyOne."""
OTHER_TASKS = re.compile(r"(person_)?keypoints_|captions_|panoptic_|stuff_|image_info_")
"""Files of COCO without boxes, or with a subset of the classes."""
MAX_OTHER_FILES = 20
"""Files of other formats in a folder after which the search ends; LabelMe has one JSON file per image."""


class Found(NamedTuple):
    """An annotation file."""

    name: str
    """Of the split; empty if the dataset is not divided into splits."""
    path: Path
    folders: tuple[Path, ...]
    """Existing folders that may contain the images, most likely first."""


def find_files(root: Path) -> list[Found]:
    """The annotation files in a folder."""
    files = [
        (path.stem.removeprefix("instances_"), path)
        for folder in (root / "annotations", root)
        for path in _annotation_files(folder, strict=folder == root)
    ]
    names = {split_of(name) for name, _ in files}
    nested = [(folder, path) for folder in _split_folders(root) if (path := _file_of_split(folder))]
    nested = [pair for pair in nested if pair[1].name == ROBOFLOW or split_of(pair[0].name) not in names]
    if len(files) == 1 and not nested and files[0][0] in UNDIVIDED:
        files = [("", files[0][1])]
    return [
        *(Found(name, path, _folders(root, name)) for name, path in files),
        *(Found(folder.name, path, _folders_of_split(root, folder)) for folder, path in nested),
    ]


def find_file(path: Path) -> list[Found]:
    """The annotation file at ``path``, and the other splits of its dataset if it has the training split.

    The file of another split is returned alone, so that exactly this file is evaluated.
    """
    path = path.absolute()
    if path.suffix.lower() != ".json" or not _may_be_coco(path):
        return []
    parent = path.parent
    has_parent = parent.name == "annotations" or is_usual(parent.name)
    roots = (parent.parent, parent) if has_parent else (parent,)
    for root in roots:
        found = find_files(root)
        for each in found:
            if each.path == path:
                if split_of(each.name) != "train":
                    return [each._replace(name="")]
                return [each, *(other for other in found if split_of(other.name) != "train")]
    return [Found("", path, _folders(roots[0], path.stem))]


def _annotation_files(folder: Path, *, strict: bool) -> Iterator[Path]:
    """The annotation files among the JSON files of a folder.

    Args:
        folder: The folder, which need not exist.
        strict: Other names than those of splits must contain images or annotations.
    """
    paths = [path for path in folder.glob("*.json") if not OTHER_TASKS.match(path.stem)]
    usual = {path for path in paths if is_usual(path.stem.removeprefix("instances_"))}
    num_others = 0
    for path in sorted(paths, key=lambda path: (path not in usual, path)):
        keys = top_level_keys(path)
        accepted = not is_export(path) if keys is None else not OTHER_KEYS.intersection(keys)
        if path not in usual:
            accepted = accepted and keys is not None and (not strict or _is_coco(path, keys))
        if accepted:
            yield path
        elif (num_others := num_others + 1) >= MAX_OTHER_FILES:
            return


def _is_coco(path: Path, keys: list[str]) -> bool:
    """Whether a JSON file has the keys of COCO, as far as its beginning shows."""
    if OTHER_KEYS.intersection(keys):
        return False
    return bool({"images", "annotations"} & {*keys}) or ("categories" in keys and path.stat().st_size > HEAD_BYTES)


def _may_be_coco(path: Path) -> bool:
    """Whether a file that was named explicitly is read as COCO: annotations, detections, or damaged JSON."""
    keys = top_level_keys(path)
    if keys is not None:
        return not OTHER_KEYS.intersection(keys)
    try:
        with open_regular(path) as file:
            head = file.read(HEAD_BYTES)
    except (OSError, UserError):
        return True
    return b'"score"' in head and b'"bbox"' in head


def _split_folders(root: Path) -> list[Path]:
    folders = [path for path in root.glob("*/") if not path.name.startswith(".")]
    return sorted(path for path in folders if path.name not in NOT_A_SPLIT or (path / ROBOFLOW).is_file())


def _file_of_split(folder: Path) -> Path | None:
    """The annotation file in the folder of a split, or in its folder ``annotations``."""
    if (folder / ROBOFLOW).is_file():
        return folder / ROBOFLOW
    for each in (folder, folder / "annotations"):
        named = [path for name in SPLIT_FILES if (path := each / name).is_file()]
        paths = named or list(islice(each.glob("*.json"), 2))
        if (named or len(paths) == 1) and _is_coco(paths[0], top_level_keys(paths[0]) or []):
            return paths[0]
    return None


def _folders(root: Path, name: str) -> tuple[Path, ...]:
    names = dict.fromkeys((name, name.rstrip("0123456789"), *synonyms(name))) if name else ()
    nested = [folder / name for folder in (root, root / "images", root / "data") for name in names]
    return tuple(folder for folder in (*nested, root / "images", root / "data", root) if folder.is_dir())


def _folders_of_split(root: Path, folder: Path) -> tuple[Path, ...]:
    names = dict.fromkeys((folder.name, *synonyms(folder.name)))
    inside = (folder, folder / "images", folder / "data")
    outside = (*(root / "images" / name for name in names), root / "images", root / "data", root)
    return tuple(folder for folder in (*inside, *outside) if folder.is_dir())
