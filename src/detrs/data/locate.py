"""Finds image files by their names in an annotation file."""

import os
import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from detrs.data.content import ImageRow
from detrs.data.findings import Findings, add_items
from detrs.data.folders import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES
from detrs.data.visited import Visited
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
    visited: Visited | None = None,
) -> dict[int, str]:
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
        visited: Receives the folders and files on which the result depends.

    Returns:
        The path of each image found, by id.
    """
    names = dict.fromkeys(row.file_name for row in rows.values())
    visited = Visited() if visited is None else visited
    search = _search(list(names), folders, visited.probes)
    others = {name: search.find(name) for name in names if search.exact(name) is None}
    visited.folders |= {str(folder): listing.exact for folder, listing in search.listings.items()}
    users: dict[str, list[str]] = {}
    if any(match.repair for match in others.values()):
        for name in names:
            if path := others[name].path if name in others else search.exact(name):
                users.setdefault(path, []).append(name)
    paths: dict[int, str] = {}
    missing: list[str] = []
    for id_, row in rows.items():
        name = row.file_name
        if exact := search.exact(name):
            paths[id_] = exact
            continue
        match, place = others[name], row.place or f"image {id_}"
        if match.error:
            errors.add(match.error, f"{place}: {name}{match.hint}")
        elif match.path is None:
            missing.append(f"{match.expected}{match.hint}")
        elif match.repair and users[match.path] != [name]:
            other = next(user for user in users[match.path] if user != name)
            missing.append(f"{match.expected} ({os.path.basename(match.path)} is the file of {other})")
        else:
            paths[id_] = match.path
            if match.repair:
                notes.add(match.repair, f"{place}: {name} is {Path(match.path).relative_to(search.root)}")
    count = len(rows) if num_images is None else num_images
    add_items("missing image, skipped", f"missing image (of {count})", missing, count, errors, notes)
    return paths


class _Listing:
    """The names in a folder by their exact, NFC-normalized and case-folded form, and images by their NFC stem."""

    def __init__(self, names: list[str]) -> None:
        self._names = names
        self.exact = frozenset(names)

    @cached_property
    def normal(self) -> dict[str, str]:
        return {_normal(name): name for name in self._names} | {name: name for name in self._names}

    @cached_property
    def folded(self) -> dict[str, str]:
        return {name.casefold(): name for name in self._names}

    @cached_property
    def stems(self) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = {}
        for name in self._names:
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                stems.setdefault(_stem(name), []).append(name)
        return stems


class _Match(NamedTuple):
    expected: Path
    path: str | None = None
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
        probes: Receives the files that ``contains`` tested.
    """

    def __init__(
        self, root: Path, prefix: tuple[str, ...], listings: dict[Path, _Listing], probes: dict[str, bool]
    ) -> None:
        self.root, self.prefix, self.listings, self.probes = root, prefix, listings, probes
        self.folders: dict[PurePosixPath, Path] = {}
        self._plain: dict[str, Path | None] = {}
        """The folder of names that start with this path and need no interpretation."""

    def contains(self, name: str) -> bool:
        """Whether the file of a name exists, without listing its folder."""
        inside = (self._inside(spelling) for spelling in _spellings(name))
        return any(self._is_file(self.root / relative) for relative in inside if relative is not None)

    def _is_file(self, path: Path) -> bool:
        self.probes[str(path)] = os.path.isfile(path)
        return self.probes[str(path)]

    def exact(self, name: str) -> str | None:
        """The file with exactly this name; ``None`` if there is none, or if ``find`` must interpret the name."""
        base = name.rpartition("/")[2]
        parent = name[: len(name) - len(base)]
        if parent not in self._plain:
            relative = PurePosixPath(parent)
            is_plain = not self.prefix and _is_inside(relative) and str(relative) == (parent[:-1] or ".")
            self._plain[parent] = self._folder(relative) if is_plain else None
        folder = self._plain[parent]
        if folder is None or base in (".", "..") or "\\" in name or ":" in base:
            return None
        return os.path.join(folder, base) if base in self._list(folder).exact else None

    def find(self, name: str) -> _Match:
        spellings = list(_spellings(name))
        relatives = [relative for each in spellings if (relative := self._inside(each)) is not None]
        expected = self.root / (relatives[-1] if relatives else spellings[-1].name)
        repair = SHORTENED if self.prefix else ""
        for relative in relatives:
            if path := self._exact(relative):
                return _Match(expected, str(path), repair)
        if self._inside(spellings[-1]) is None:
            last = self._exact(PurePosixPath(spellings[-1].name)) if spellings[-1].name else None
            hint = "" if last is None else f" ({last.name} is in {last.parent})"
            return _Match(expected, error="file_name outside the image folder", hint=hint)
        decoded = PurePosixPath(unquote(relatives[-1].as_posix())) if "%" in name else relatives[-1]
        is_decoded = decoded != relatives[-1] and _is_inside(decoded)
        if is_decoded and (path := self._exact(decoded)):
            return _Match(expected, str(path), DECODED)
        for relative in (relatives[-1], *((decoded,) if is_decoded else ())):
            same_stem = self._same_stem(relative)
            if len(same_stem) == 1:
                return _Match(expected, str(same_stem[0]), EXTENSION)
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


def _search(names: list[str], folders: tuple[Path, ...], probes: dict[str, bool]) -> _Search:
    """A search in the folder that contains most of the first 20 names."""
    first = names[:20]
    listings: dict[Path, _Listing] = {}
    searches = [_Search(folder, (), listings, probes) for folder in folders]
    best = max(searches, key=lambda search: sum(map(search.contains, first)))
    if any(map(best.contains, first)):
        return best
    searches += [_Search(folder, prefix, listings, probes) for prefix, folder in _prefixes(names, folders)]
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
    if not os.path.isdir(folder):  # also False for names that are invalid on this system
        return _Listing([])
    try:
        return _Listing(sorted(os.listdir(folder)))
    except OSError as error:
        raise UserError(f"The image folder '{folder}' cannot be read: {error.strerror}.") from error


def _stem(name: str) -> str:
    """The normalized name without the extension of an image."""
    stem, suffix = os.path.splitext(name)
    return _normal(stem if suffix.lower() in (*IMAGE_SUFFIXES, *UNSUPPORTED_SUFFIXES) else name)


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
