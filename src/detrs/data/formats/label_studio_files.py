"""Finds the images of Label Studio's tasks, which refer to its server, to cloud storage or to web pages.

- ``/data/upload/3/5f1a8c2e-photo_1.jpg``: uploaded; 8 hex digits are added to the name, and its spaces are replaced.
- ``/data/local-files/?d=folder/photo%201.jpg``: local storage.
- ``s3://bucket/folder/photo.jpg``, ``https://example.org/photo.jpg?width=100``.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from detrs.data.findings import Findings
from detrs.data.folders import IMAGE_SUFFIXES
from detrs.data.formats.json_head import first_item_keys

USUAL_KEYS = ("image", "img", "image_url", "url")
_HASH = re.compile(r"[0-9a-f]{8}-(.+)")


def is_export(path: Path) -> bool:
    """Whether a JSON file is a list of tasks, as far as its beginning shows."""
    keys = {*first_item_keys(path)}
    return bool(keys & {"annotations", "completions"} and "data" in keys) or {"annotation_id", "annotator"} <= keys


def image_of(data: dict[str, Any]) -> str | None:
    """The reference to the image in the data of a task, or ``None``. Its key depends on the labeling configuration."""
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    images = (text for text in texts.values() if _path(text).suffix.lower() in IMAGE_SUFFIXES)
    return next((texts[key] for key in USUAL_KEYS if key in texts), None) or next(images, None)


class TaskFiles:
    """Finds image files of a dataset by the end of their path.

    Args:
        root: Folder of the dataset.
        nearest: Folder whose images are preferred.
    """

    def __init__(self, root: Path, nearest: Path) -> None:
        self._nearest = nearest
        self._paths: dict[str, list[Path]] = {}
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                    for form in {name, _uploaded(name)}:
                        self._paths.setdefault(form, []).append(Path(folder, name))

    def find(self, reference: str, place: str, errors: Findings) -> tuple[str, Path | None]:
        """The name of an image for messages and for sorting, and its file if there is one.

        Args:
            reference: As in the task.
            place: The task, for messages.
            errors: Receives references with several possible files.
        """
        path = _path(reference)
        match = _HASH.fullmatch(path.name)
        for name in (path.name, *((match[1],) if match else ())):
            if not (found := self._paths.get(name) or self._paths.get(_uploaded(name))):
                continue
            ranks = [self._rank(each, path) for each in found]
            best = [each for each, rank in zip(found, ranks, strict=True) if rank == max(ranks)]
            if len(best) > 1:
                listed = ", ".join(each.as_posix() for each in best)
                errors.add("task with several images of its name (keep one)", f"{place}: {listed}")
            return best[0].as_posix(), best[0]
        return (reference if "://" in reference else path.name), None

    def _rank(self, path: Path, reference: PurePosixPath) -> tuple[bool, int, bool]:
        """Whether a file is preferred, and how many folders at the end of its path it shares with the reference."""
        pairs = zip(reversed(path.parts[:-1]), reversed(reference.parts[:-1]), strict=False)
        shared = next((count for count, (a, b) in enumerate(pairs) if a != b), len(reference.parts) - 1)
        return self._nearest in path.parents, shared, path.name == reference.name


def _path(reference: str) -> PurePosixPath:
    """The path in a reference, without its server."""
    _, is_local, local = reference.partition("/data/local-files/?d=")
    if not is_local:
        local = re.sub(r"^[a-zA-Z][a-zA-Z0-9+.-]*://[^/]*/", "", reference).partition("?")[0]
    return PurePosixPath(unquote(local).replace("\\", "/"))


def _uploaded(name: str) -> str:
    """``name`` as Label Studio stores an uploaded file."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))
