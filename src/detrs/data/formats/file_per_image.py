"""Layouts of formats that have one annotation file for each image, beside it or in a folder of their own."""

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from detrs.data.content import synonyms
from detrs.data.folders import IMAGE_SUFFIXES

IMAGE_FOLDERS = ("JPEGImages", "images", "Images")


class Group(NamedTuple):
    """The annotation files of a split."""

    split: str
    """Empty if the dataset is not divided into splits."""
    folder: Path
    """Folder of the annotation files."""
    images: tuple[Path, ...]
    """Existing folders that may contain their images, most likely first; at least one."""


def groups(root: Path, folders: tuple[str, ...], accept: Callable[[Path], bool]) -> list[Group]:
    """The folders with annotation files, one for each split.

    Args:
        root: Folder of the dataset.
        folders: Names of folders of annotation files, such as ``Annotations``.
        accept: Whether a folder contains annotation files.
    """
    names = (*folders, *IMAGE_FOLDERS)
    places = _distinct(root / name for name in names if (root / name).is_dir())
    found = []
    for folder in places:
        if accept(folder):
            return [Group("", folder, _existing([*(root / name for name in IMAGE_FOLDERS), root, folder]))]
        for split in filter(accept, subfolders(folder)):
            nested = [root / name / each for name in IMAGE_FOLDERS for each in synonyms(split.name)]
            found.append(Group(split.name, split, _existing([*nested, root / split.name, split])))
    for split in subfolders(root):
        inner = [] if split in places else [split, *(split / name for name in names)]
        if first := next((folder for folder in inner if folder.is_dir() and accept(folder)), None):
            found.append(Group(split.name, first, _existing([*(split / name for name in IMAGE_FOLDERS), split])))
    if not found and accept(root):
        found.append(Group("", root, _existing([root, *(root / name for name in IMAGE_FOLDERS)])))
    return found


def files(folder: Path, suffix: str) -> list[str]:
    """Names of the files with this suffix, sorted. Hidden files are ignored: macOS adds ``._NAME`` to archives."""
    with os.scandir(folder) as entries:
        return sorted(each.name for each in entries if each.name.endswith(suffix) and not each.name.startswith("."))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(folder / each.name for each in entries if each.is_dir() and not each.name.startswith("."))


def _existing(folders: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(_distinct(folder for folder in folders if folder.is_dir()))


def _distinct(folders: Iterable[Path]) -> list[Path]:
    """Without folders that occur twice, also under another name: file systems may ignore upper and lower case."""
    found: list[Path] = []
    for folder in folders:
        if not any(folder == other or folder.samefile(other) for other in found):
            found.append(folder)
    return found


class ImageFiles:
    """Finds image files by name or by stem; every folder is listed once.

    Args:
        folders: Folders that may contain the images, most likely first.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = tuple(folders)
        self._names: dict[Path, dict[str, str]] = {}
        self._stems: dict[Path, dict[str, list[str]]] = {}

    def named(self, name: str) -> Path | None:
        """The first file with this name, which may contain subfolders, separated by slashes."""
        for place, base in self._places(name):
            if found := self._names[place].get(_normal(base)):
                return place / found
        return None

    def with_stem(self, stem: str) -> list[Path]:
        """The images with this stem in the first folder that has any. ``stem`` may contain subfolders."""
        for place, base in self._places(stem):
            if found := self._stems[place].get(_normal(base)):
                return [place / name for name in found]
        return []

    def _places(self, name: str) -> Iterator[tuple[Path, str]]:
        """The folders that may contain a file, and its name without folders; never a folder outside of ``folders``."""
        parent, _, base = name.rpartition("/")
        if name.startswith("/") or ".." in parent.split("/"):
            return
        for folder in self.folders:
            place = folder / parent if parent else folder
            self._list(place)
            yield place, base

    def _list(self, folder: Path) -> None:
        if folder in self._names:
            return
        listed = sorted(os.listdir(folder)) if os.path.isdir(folder) else []  # False for names that are invalid here
        self._names[folder] = {_normal(name): name for name in listed}
        stems: dict[str, list[str]] = {}
        for name in listed:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                stems.setdefault(_normal(stem), []).append(name)
        self._stems[folder] = stems


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
