"""Finds image files by their names in an annotation file."""

import os
import re
import unicodedata
from itertools import islice
from pathlib import Path, PurePosixPath

from detrs.data.content import ImageRow
from detrs.data.findings import Findings, add_items
from detrs.errors import UserError


def locate(rows: dict[int, ImageRow], folders: tuple[Path, ...], errors: Findings, notes: Findings) -> dict[int, Path]:
    """Finds the file of each image.

    Args:
        rows: The images by id; each ``file_name`` is relative to the folder that contains most of the first 20 images.
        folders: Candidate folders, at least one.
        errors: Receives names outside the folder, names that differ in upper and lower case, and missing files.
        notes: Receives the few missing images that are skipped.

    Returns:
        The path of each image found, by id.
    """
    first = [row.file_name for row in islice(rows.values(), 20)]
    root = max(folders, key=lambda folder: sum(os.path.isfile(folder / name.replace("\\", "/")) for name in first))
    listings: dict[Path, dict[str, str]] = {}
    paths: dict[int, Path] = {}
    missing: list[str] = []
    for id_, row in rows.items():
        name, place = row.file_name, row.place or f"image {id_}"
        windows = "\\" in name and not os.path.isfile(root / name)
        relative = PurePosixPath(name.replace("\\", "/") if windows else name)
        if relative.is_absolute() or re.match(r"[A-Za-z]:", name) or ".." in relative.parts:
            errors.add("file_name outside the image folder", f"{place}: {name}")
            continue
        folder = root / relative.parent
        if folder not in listings:
            listings[folder] = _listing(folder)
        actual = listings[folder].get(relative.name) or listings[folder].get(_normal(relative.name))
        folded = listings[folder].get(relative.name.casefold())
        if actual is not None:
            paths[id_] = folder / actual
        elif folded is not None:
            errors.add("file_name with different upper and lower case", f"{place}: {name} is {folded} in {folder}")
        else:
            missing.append(f"{root / relative}")
    add_items("missing image, skipped", f"missing image (of {len(rows)})", missing, len(rows), errors, notes)
    return paths


def _listing(folder: Path) -> dict[str, str]:
    """Names of the files in ``folder`` by their exact, NFC-normalized and case-folded form."""
    if not os.path.isdir(folder):  # also False for names that are invalid on this system
        return {}
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"The image folder '{folder}' cannot be read: {error.strerror}.") from error
    forms = {name.casefold(): name for name in names} | {_normal(name): name for name in names}
    return forms | {name: name for name in names}


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
