"""Finds the image files of a YOLO split: all images in a folder, or the files in a list."""

import os
from collections import Counter
from pathlib import Path

from detrs.data.findings import Findings, add_items
from detrs.data.folders import IMAGE_SUFFIXES, UNSUPPORTED_SUFFIXES
from detrs.errors import UserError
from detrs.files import open_regular

MAX_BYTES = 2**28
"""Of a list of image files, with up to a few million lines."""
HEAD_BYTES = 65536
UNSUPPORTED = "image in an unsupported format"


def find_images(source: Path, root: Path, errors: Findings, notes: Findings) -> list[str]:
    """The image files of a folder with its subfolders, or of a list with one path per line.

    Args:
        source: The folder or the list.
        root: Folder of the dataset.
        errors: Receives missing images, and images in unsupported formats.
        notes: Receives those of them that are few enough to be skipped.
    """
    if source.is_dir():
        return _in_folder(source, root, errors, notes)
    if source.suffix.lower() != ".txt":
        raise UserError(f"{source} is neither a folder of images nor a list of image files (.txt).")
    return _in_list(source, root, errors, notes)


def is_list(path: Path) -> bool:
    """Whether a text file starts with the path of an image."""
    if not path.is_file():
        return False
    with open_regular(path) as file:
        line = file.read(HEAD_BYTES).decode(errors="replace").lstrip().partition("\n")[0]
    return line.strip().lower().endswith(IMAGE_SUFFIXES)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, without empty ones at the end.

    Raises:
        UserError: The file cannot be read or is not text.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES:,} bytes. Expected a text file with one entry per line.")
    try:
        return content.decode("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}. Save it as UTF-8.") from None


def _in_folder(folder: Path, root: Path, errors: Findings, notes: Findings) -> list[str]:
    found: list[str] = []
    unsupported: list[str] = []
    visited: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
        if real in visited:  # a link to a folder above
            continue
        visited.add(real)
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES and not name.startswith("."):
                found.append(os.path.join(parent, name))
            elif suffix in UNSUPPORTED_SUFFIXES:
                unsupported.append(os.path.relpath(os.path.join(parent, name), root))
    count = len(found) + len(unsupported)
    add_items(f"{UNSUPPORTED}, skipped", f"{UNSUPPORTED} (of {count})", sorted(unsupported), count, errors, notes)
    return found


def _in_list(path: Path, root: Path, errors: Findings, notes: Findings) -> list[str]:
    """Paths are relative to the folder of the list, or else to the dataset or to the working directory.

    Exports of CVAT and Darknet have a first folder that does not exist on disk (``data/obj_train_data/a.jpg``).
    """
    numbered = [(number, line.strip()) for number, line in enumerate(read_lines(path), 1) if line.strip()]
    first = [line for _, line in numbered[:20]]
    choices = [(folder, drop) for drop in (0, 1) for folder in (str(path.parent), str(root), os.getcwd())]
    folder, drop = max(choices, key=lambda choice: sum(os.path.isfile(_resolved(line, *choice)) for line in first))
    found, missing = [], []
    for number, line in numbered:
        image = _resolved(line, folder, drop)
        if os.path.isfile(image):
            found.append(image)
        else:
            missing.append(f"{os.path.relpath(path, root)}:{number}: {line}")
    count = len(numbered)
    add_items("missing image, skipped", f"missing image (of {count})", missing, count, errors, notes)
    repeated = sum(times - 1 for times in Counter(found).values())
    notes.add_many("image that is listed before, ignored", repeated, [f"{path.name}"])
    return found


def _resolved(line: str, folder: str, drop: int) -> str:
    """The path in a line, relative to a folder, without its first ``drop`` parts."""
    spelling = line if "\\" not in line or os.path.exists(os.path.join(folder, line)) else line.replace("\\", "/")
    parts = [part for part in spelling.split("/") if part != "."]
    if not os.path.isabs(spelling) and len(parts) > drop:
        spelling = "/".join(parts[drop:])
    return os.path.normpath(os.path.join(folder, os.path.expanduser(spelling)))
