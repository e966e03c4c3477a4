"""Results of commands that read images: the output folder, its summary, sources that were skipped, the threshold."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from detrs.errors import UserError
from detrs.files import os_errors, write_text

if TYPE_CHECKING:
    from detrs.structures import Detections

MAX_STEM_BYTES = 200
"""Most file systems limit names to 255 bytes, and a number and ``.jpg`` follow."""


def origin(given: float | str | None, stored: float | None) -> str:
    """Where the threshold comes from."""
    if given == "per-class":
        return "stored in the checkpoint, best F1 of each class"
    if given is not None:
        return "from --threshold"
    return "default, since the checkpoint contains none" if stored is None else "stored in the checkpoint, best F1"


def counts(found: "Detections") -> str:
    """Number of detections per class, most frequent first: ``RBC: 12, WBC: 1``."""
    return ", ".join(f"{name}: {count}" for name, count in Counter(found.names).most_common()) or "-"


def write(path: Path, values: dict[str, Any]) -> None:
    """Write ``values`` as JSON. Raises ``UserError`` if the file cannot be written."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def create_output_folder(path: Path) -> Path:
    """Create the folder ``path`` if it does not exist. Existing files are never overwritten.

    Raises:
        UserError: the folder is not empty, not writable, or cannot be created.
    """
    with os_errors(f"Cannot create the output folder '{path}'"):
        path.mkdir(parents=True, exist_ok=True)
    with os_errors(f"Cannot read the output folder '{path}'"):
        is_used = any(path.iterdir())
    if is_used:
        raise UserError(f"The output folder '{path}' is not empty: choose another one.")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"The output folder '{path}' is not writable: choose another one.")
    return path


def stem(source: str) -> str:
    """File stem for the annotated image of ``source``, a path or a URL, shortened to ``MAX_STEM_BYTES``."""
    path = urlsplit(source).path if "://" in source else source
    name = os.fsencode(Path(path).stem)[:MAX_STEM_BYTES]
    return name.decode(errors="ignore") or "image"


def unique_name(name: str, is_taken: Callable[[str], bool]) -> str:
    """``name``, or the first of ``name-2``, ``name-3``, ... that is not taken.

    >>> unique_name("a", {"a", "a-2"}.__contains__)
    'a-3'
    """
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(each for each in names if not is_taken(each))


def write_summary(
    path: Path,
    values: Mapping[str, Any],
    images: Sequence[Mapping[str, Any]],
    errors: Mapping[str, UserError],
    videos: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, str]]:
    """Write the results of all images, and videos, and the sources that were skipped.

    Nothing is written if the only source was skipped: its error has everything, and the folder can be used again.

    Returns:
        The sources that were skipped, with the reason.

    Raises:
        UserError: the file cannot be written.
    """
    skipped = [{"source": source, "reason": str(error)} for source, error in errors.items()]
    if images or videos or len(errors) != 1:
        entries = {"images": images} if videos is None else {"images": images, "videos": videos}
        write(path, {**values, **entries, "skipped": skipped})
    return skipped


def raise_only_error(images: Sequence[object], errors: Mapping[str, UserError]) -> None:
    """Raise the error of the only source."""
    if not images and len(errors) == 1:
        raise next(iter(errors.values()))


def raise_errors(errors: Mapping[str, UserError], summary: Path) -> None:
    """Raise the first error, with the number of the others."""
    if errors:
        others = f" {len(errors) - 1} more failed: see {summary}." if len(errors) > 1 else ""
        raise UserError(f"{next(iter(errors.values()))}{others}")
