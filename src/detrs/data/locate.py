"""Finds image files by their names in an annotation file."""

import os
import re
import unicodedata
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from detrs.data.content import ImageRow
from detrs.data.findings import Findings, add_items
from detrs.data.folders import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES
from detrs.errors import UserError

DECODED = "file_name with URL-encoded characters, decoded"
EXTENSION = "file_name with another extension than the file"
SHORTENED = "file_name with leading folders that the dataset does not have, ignored"


def locate(
    rows: dict[int, ImageRow],
    folders: tuple[Path, ...],
    errors: Findings,
    notes: Findings,
    *,
    num_images: int | None = None,
) -> dict[int, Path]:
    """Finds the file of each image.

    A name that does not exist is decoded if it is URL-encoded, its extension is replaced by that of the only image with
    its stem, and leading folders that all names share are ignored. A file found in this way is only used if it is not
    the file of another name.

    Args:
        rows: The images by id; each ``file_name`` is relative to the folder that contains most of the first 20 images.
        folders: Candidate folders, at least one.
        errors: Receives names outside the folder, names that differ in upper and lower case, and missing files.
        notes: Receives the repaired names, and the few missing images that are skipped.
        num_images: Number of images including those that need not be searched; by default, that of ``rows``.

    Returns:
        The path of each image found, by id.
    """
    names = dict.fromkeys(row.file_name for row in rows.values())
    search = _search(list(names), folders)
    found = {name: search.find(name) for name in names}
    users: dict[Path, list[str]] = {}
    for name, match in found.items():
        if match.path is not None:
            users.setdefault(match.path, []).append(name)
    paths: dict[int, Path] = {}
    missing: list[str] = []
    for id_, row in rows.items():
        name, place = row.file_name, row.place or f"image {id_}"
        match = found[name]
        if match.error:
            errors.add(match.error, f"{place}: {name}{match.hint}")
        elif match.path is None:
            missing.append(f"{match.expected}{match.hint}")
        elif match.repair and users[match.path] != [name]:
            other = next(user for user in users[match.path] if user != name)
            missing.append(f"{match.expected} ({match.path.name} is the file of {other})")
        else:
            paths[id_] = match.path
            if match.repair:
                notes.add(match.repair, f"{place}: {name} is {match.path.relative_to(search.root)}")
    count = len(rows) if num_images is None else num_images
    add_items("missing image, skipped", f"missing image (of {count})", missing, count, errors, notes)
    return paths


class _Listing(NamedTuple):
    """The names in a folder by their exact, NFC-normalized and case-folded form, and images by their NFC stem."""

    normal: dict[str, str]
    folded: dict[str, str]
    stems: dict[str, list[str]]


class _Match(NamedTuple):
    expected: Path
    path: Path | None = None
    repair: str = ""
    """Kind of the note; empty for a name that exists."""
    error: str = ""
    hint: str = ""


class _Search:
    """Finds files in a folder.

    Args:
        root: The folder.
        prefix: Leading parts of all names that are ignored.
        listings: The folders that were listed before.
    """

    def __init__(self, root: Path, prefix: tuple[str, ...], listings: dict[Path, _Listing]) -> None:
        self.root, self.prefix, self.listings = root, prefix, listings
        self.folders: dict[PurePosixPath, Path] = {}

    def contains(self, name: str) -> bool:
        """Whether the file of a name exists, without listing its folder."""
        inside = (self._inside(spelling) for spelling in _spellings(name))
        return any(relative is not None and os.path.isfile(self.root / relative) for relative in inside)

    def find(self, name: str) -> _Match:
        spellings = list(_spellings(name))
        relatives = [relative for each in spellings if (relative := self._inside(each)) is not None]
        expected = self.root / (relatives[-1] if relatives else spellings[-1].name)
        repair = SHORTENED if self.prefix else ""
        for relative in relatives:
            if path := self._exact(relative):
                return _Match(expected, path, repair)
        if self._inside(spellings[-1]) is None:
            last = self._exact(PurePosixPath(spellings[-1].name)) if spellings[-1].name else None
            hint = "" if last is None else f" ({last.name} is in {last.parent})"
            return _Match(expected, error="file_name outside the image folder", hint=hint)
        decoded = PurePosixPath(unquote(relatives[-1].as_posix())) if "%" in name else relatives[-1]
        is_decoded = decoded != relatives[-1] and _is_inside(decoded)
        if is_decoded and (path := self._exact(decoded)):
            return _Match(expected, path, DECODED)
        for relative in (relatives[-1], *((decoded,) if is_decoded else ())):
            same_stem = self._same_stem(relative)
            if len(same_stem) == 1:
                return _Match(expected, same_stem[0], EXTENSION)
            if same_stem:
                return _Match(expected, hint=f" (found {' and '.join(path.name for path in same_stem)})")
        folder = self._folder(relatives[-1].parent)
        if folded := self._list(folder).folded.get(relatives[-1].name.casefold()):
            hint = f" is {folded} in {folder}"
            return _Match(expected, error="file_name with different upper and lower case", hint=hint)
        shorter = [relatives[-1].relative_to(prefix) for prefix in _own_prefixes(relatives[-1], self.root)]
        found = next((relative for relative in shorter if self._exact(relative)), None)
        return _Match(expected, hint=f" (found {found})" if found else "")

    def _inside(self, spelling: PurePosixPath) -> PurePosixPath | None:
        """The path relative to the folder without the prefix; ``None`` if it is outside the folder."""
        if self.prefix:
            if spelling.parts[: len(self.prefix)] != self.prefix:
                return None
            spelling = PurePosixPath(*spelling.parts[len(self.prefix) :])
        return spelling if _is_inside(spelling) else None

    def _exact(self, relative: PurePosixPath) -> Path | None:
        """The file with this name in any Unicode form."""
        folder = self._folder(relative.parent)
        actual = self._list(folder).normal
        name = actual.get(relative.name) or actual.get(_normal(relative.name))
        return folder / name if name else None

    def _same_stem(self, relative: PurePosixPath) -> list[Path]:
        """The images with the same stem."""
        folder = self._folder(relative.parent)
        return [folder / name for name in self._list(folder).stems.get(_stem(relative.name), ())]

    def _folder(self, relative: PurePosixPath) -> Path:
        """The folder with this name, in any Unicode form."""
        if relative not in self.folders:
            folder = self.root / relative
            if not os.path.isdir(folder):
                parent = self._folder(relative.parent) if relative.parts else self.root
                folder = parent / self._list(parent).normal.get(_normal(relative.name), relative.name)
            self.folders[relative] = folder
        return self.folders[relative]

    def _list(self, folder: Path) -> _Listing:
        if folder not in self.listings:
            self.listings[folder] = _listing(folder)
        return self.listings[folder]


def _search(names: list[str], folders: tuple[Path, ...]) -> _Search:
    """A search in the folder that contains most of the first 20 names."""
    first = names[:20]
    listings: dict[Path, _Listing] = {}
    searches = [_Search(folder, (), listings) for folder in folders]
    best = max(searches, key=lambda search: sum(map(search.contains, first)))
    if any(map(best.contains, first)):
        return best
    searches += [_Search(folder, prefix, listings) for prefix, folder in _prefixes(names, folders)]
    best = max(searches, key=lambda search: sum(map(search.contains, first)))
    if any(map(best.contains, first)):
        return best
    return max(searches, key=lambda search: sum(search.find(name).path is not None for name in first))


def _prefixes(names: list[str], folders: tuple[Path, ...]) -> Iterator[tuple[tuple[str, ...], Path]]:
    """Leading parts that all names share and that are not folders of the dataset, shortest first.

    These are folders of another computer, or the end of the path of the image folder itself.
    """
    spellings = (list(_spellings(name))[-1].parts[:-1] for name in names)
    common = next(spellings, ())
    for parts in spellings:
        common = tuple(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(common, parts, strict=False)))
    if common and not _is_inside(PurePosixPath(*common)):
        if ".." not in common:
            yield from ((common[: count + 1], folder) for count in range(len(common)) for folder in folders)
        return
    for folder in folders:
        for prefix in _own_prefixes(PurePosixPath(*common, "file"), folder):
            yield prefix.parts, folder


def _own_prefixes(relative: PurePosixPath, root: Path) -> Iterator[PurePosixPath]:
    """The leading folders of a path that are also the end of the path of the folder it is searched in."""
    parts = relative.parts[:-1]
    for count in range(1, len(parts) + 1):
        if parts[:count] == root.absolute().parts[-count:]:
            yield PurePosixPath(*parts[:count])


def _spellings(name: str) -> Iterator[PurePosixPath]:
    """The name itself, and the name with the separators of Windows as folders."""
    yield PurePosixPath(name)
    if "\\" in name:
        yield PurePosixPath(name.replace("\\", "/"))


def _is_inside(path: PurePosixPath) -> bool:
    drive = bool(path.parts) and re.match(r"[A-Za-z]:", path.parts[0]) is not None
    return not path.is_absolute() and not drive and ".." not in path.parts


def _listing(folder: Path) -> _Listing:
    listing = _Listing({}, {}, {})
    if not os.path.isdir(folder):  # also False for names that are invalid on this system
        return listing
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"The image folder '{folder}' cannot be read: {error.strerror}.") from error
    for name in names:
        listing.normal[_normal(name)] = name
        listing.folded[name.casefold()] = name
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            listing.stems.setdefault(_stem(name), []).append(name)
    listing.normal.update((name, name) for name in names)
    return listing


def _stem(name: str) -> str:
    """The normalized name without the extension of an image."""
    stem, suffix = os.path.splitext(name)
    return _normal(stem if suffix.lower() in (*IMAGE_SUFFIXES, *UNSUPPORTED_SUFFIXES) else name)


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
