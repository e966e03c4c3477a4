"""Finds a split of a dataset on disk, in any of the annotation formats."""

import os
from collections import Counter
from pathlib import Path

from detrs.config.data import is_hub_name
from detrs.data import unreadable
from detrs.data.content import Split, is_usual, synonyms, without_year
from detrs.data.formats import FORMATS
from detrs.data.formats.huggingface_datasets import hub_splits
from detrs.errors import UserError, did_you_mean

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
NUM_SUFFIXES = 3
"""Kinds of files that are listed of a folder without annotations."""
MAX_ABOVE = 3
"""Folders above it that are searched for a dataset."""


class NoSplitError(UserError):
    """A dataset does not have the requested split."""


def find_split(root: Path, split: str) -> Split:
    """Finds a split of a dataset.

    Args:
        root: Folder of the dataset, one of its files, such as ``annotations/train.json``, or ``hf:OWNER/NAME``.
        split: ``train``, ``val``, ``test``, a synonym of one of them, or the exact name in the files (``train2017``).

    Raises:
        UserError: The split was not found or is ambiguous; the message lists the supported layouts and what was found.
    """
    return choose_split(find_splits(root), root, split)


def choose_split(found: list[Split], root: Path, split: str, *, is_second: bool = False) -> Split:
    """The split with a name or one of its synonyms among all splits of a dataset.

    Args:
        found: All splits.
        root: The dataset, for messages.
        split: See ``find_split``; an empty string is a dataset that is not divided into splits.
        is_second: The split is used beside the training split, so it is not a dataset that is not divided into splits
            and whose file or folder has this name.

    Raises:
        UserError: See ``find_split``; ``NoSplitError`` if the dataset has other splits only.
    """
    for name in synonyms(split):
        exact = [each for each in found if each.name == name]
        for matches in (exact, [each for each in found if without_year(each.name) == name]):
            if len(matches) > 1:
                listed = ", ".join(str(_relative(each.path, root)) for each in matches)
                raise UserError(f"{root} has several annotation files for the split '{split}': {listed}. Keep one.")
            if matches:
                return matches[0]
    stems = [each for each in found if each.path.stem == split and (each.name or not is_second)]
    if len(stems) == 1:  # --data.train-split annotations, for annotations.json
        return stems[0]
    if not found:
        raise UserError(_nothing_found(root, split))
    names = [each.name for each in found if each.name]
    if not names:
        raise NoSplitError(f"{root} is not divided into splits, so it has no split '{split}'.")
    listed = ", ".join(sorted(set(names)))
    raise NoSplitError(f"{root} has no split '{split}'. Available splits: {listed}.{did_you_mean(split, names)}")


def find_splits(root: Path) -> list[Split]:
    """All splits of a dataset, in the first format that has any.

    Raises:
        UserError: There is nothing at ``root``, or it cannot be read.
    """
    if is_hub_name(root.as_posix()):
        return hub_splits(root.as_posix())
    try:
        if root.is_file():
            return _splits_of_file(root)
        if not root.is_dir():
            siblings = [entry.name for entry in root.parent.iterdir()] if root.parent.is_dir() else []
            hint = "" if root.exists() else did_you_mean(root.name, siblings)
            raise UserError(f"The data folder {root} {'is not a folder' if root.exists() else 'does not exist'}.{hint}")
        return _first(root)
    except OSError as error:
        raise unreadable(root, error) from error


def _nothing_found(root: Path, split: str) -> str:
    """The message for a folder without annotations: its content, the dataset around it, and the supported layouts."""
    suffixes = Counter(entry.suffix.lower() for entry in root.iterdir() if entry.is_file() and entry.suffix)
    content = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common(NUM_SUFFIXES))
    around = _around(root)
    message = f"{root} has no annotations for the split '{split}'."
    if content:
        message += f" Its files are {content}."
    if around:
        return f"{message} Use --data {around} for the dataset that contains this folder."
    lines = (layout.format(split=split) for format_ in FORMATS for layout in format_.LAYOUTS)
    return "\n  ".join([f"{message} Supported layouts:", *lines])


def _around(root: Path) -> Path | None:
    """The closest dataset above a folder, such as that of ``images/train``."""
    for parent in (Path(os.path.abspath(root)).parents)[:MAX_ABOVE]:
        try:
            found = _first(parent)
        except (UserError, OSError):
            found = []
        if any(is_usual(each.name) for each in found):
            return parent
    return None


def _splits_of_file(path: Path) -> list[Split]:
    """The splits of a dataset that is given by one of its files."""
    if path.suffix.lower() in ARCHIVES:
        raise UserError(f"{path} is an archive. Unpack it, and use --data with the folder of its content.")
    if splits := _first(path):
        return splits
    expected = "Expected a folder, or a file of a dataset, such as data.yaml or annotations/train.json."
    raise UserError(f"The data folder {path} is not a folder, and not a file of a dataset. {expected}")


def _first(path: Path) -> list[Split]:
    return next((splits for format_ in FORMATS if (splits := format_.splits(path))), [])


def _relative(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path
