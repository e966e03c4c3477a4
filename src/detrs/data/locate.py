"""Finds the files of pictures by the names that an annotation file gives them."""

import os
import re
import unicodedata
from pathlib import Path, PurePosixPath

from detrs.data.findings import Findings
from detrs.errors import UserError

MAX_MISSING = 0.01
"""Share of missing pictures that is skipped with a note; more is an error."""


def locate(names: dict[int, str], folders: tuple[Path, ...], errors: Findings, notes: Findings) -> dict[int, Path]:
    """Where each picture lies.

    Args:
        names: file name of each picture, by its id; relative to the folder that holds most of the first ones.
        folders: where they may lie, at least one.
        errors: gets every name that leads elsewhere, is spelt differently, or has no file.
        notes: gets the few pictures that are missing and skipped.
    """
    first = list(names.values())[:20]
    root = max(folders, key=lambda folder: sum(os.path.isfile(folder / name.replace("\\", "/")) for name in first))
    listings: dict[Path, dict[str, str]] = {}
    paths: dict[int, Path] = {}
    missing: list[str] = []
    for id_, name in names.items():
        windows = "\\" in name and not os.path.isfile(root / name)
        relative = PurePosixPath(name.replace("\\", "/") if windows else name)
        if relative.is_absolute() or re.match(r"[A-Za-z]:", name) or ".." in relative.parts:
            errors.add("file_name that leads out of the image folder", f"image {id_}: {name}")
            continue
        folder = root / relative.parent
        if folder not in listings:
            listings[folder] = _listing(folder)
        actual = listings[folder].get(relative.name) or listings[folder].get(_normal(relative.name))
        folded = listings[folder].get(relative.name.casefold())
        if actual is not None:
            paths[id_] = folder / actual
        elif folded is not None:
            errors.add("file whose name is spelt differently", f"image {id_}: {name} is {folded} in {folder}")
        else:
            missing.append(f"{root / relative}")
    for place in missing:
        if len(missing) <= MAX_MISSING * len(names):
            notes.add("missing image, skipped", place)
        else:
            errors.add(f"missing image (of {len(names)})", place)
    return paths


def _listing(folder: Path) -> dict[str, str]:
    """Names of the files in ``folder`` by their exact, their Unicode-normal and their caseless form."""
    if not os.path.isdir(folder):  # False, not an exception, for names that no file can have
        return {}
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"The image folder '{folder}' cannot be read: {error.strerror}.") from error
    forms = {name.casefold(): name for name in names} | {_normal(name): name for name in names}
    return forms | {name: name for name in names}


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
