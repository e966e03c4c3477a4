"""Checked splits on disk, so that a dataset is parsed and checked once and not by every process at every start.

A file in the cache folder contains the arrays of a split (``Prepared``) and the state of everything that they depend
on: the annotation file, the names in the folders of the images, and length and times of every image. It is used only if
all of this is the same. Processes that open the same split map the file into memory and share its pages.

A split with errors is not stored. Neither is one with files that have changed in the last seconds: another change
within the resolution of the clock of the file system could not be noticed later. If a split
can never be stored, the reason is logged as a warning.
"""

import functools
import hashlib
import json
import logging
import os
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
from filelock import FileLock, Timeout

from detrs.data.array_file import ArrayFile, read_arrays, write_arrays
from detrs.data.cache_folder import ADVICE, cache_folder
from detrs.data.check import read_annotations
from detrs.data.content import Split
from detrs.data.folders import IMAGE_SUFFIXES
from detrs.data.prepared import Prepared, from_file, prepared
from detrs.data.visited import CLOCK_S, Visited, file_state, last_change, state
from detrs.errors import UserError
from detrs.files import PARTIAL, checksum, open_regular

logger = logging.getLogger("detrs")
_warned: set[Path] = set()

SETTLED_S = 2.0
"""Seconds after which a file is considered unchanging."""
NOTICE_S = 1.0
"""Time after which it is logged that this process waits for another one."""
LOCK_TIMEOUT_S = 1800.0
"""Longest time to wait for another process that checks the same split."""
MAX_AGE_S = 60 * 24 * 3600.0
"""Files that have not been used for this long are removed."""
MAX_PARTIAL_AGE_S = 24 * 3600.0
"""Likewise, files that a process began to write."""
FOLDER, SUFFIX, LOCK = "annotations", ".arrays", ".lock"


def prepare(split: Split, *, cached: bool = False) -> Prepared:
    """Reads and checks a split, or opens the result of an earlier check.

    Args:
        split: The files.
        cached: Use and write the cache. Only one process at a time checks a split.

    Raises:
        UserError: There are errors; see ``read_annotations``.
    """
    if not cached or split.annotation_file is None:
        return prepared(read_annotations(split))
    try:
        return _opened(split, split.annotation_file)
    except _UnusableError as error:
        _warn(split, str(error))
    return prepared(read_annotations(split))


class _UnusableError(Exception):
    """Why a split is checked without the cache, as a sentence."""


def _opened(split: Split, annotations: Path) -> Prepared:
    """The result of an earlier check, or of a new one, which is stored.

    Raises:
        _UnusableError: The cache cannot be used.
        UserError: The annotations have errors.
    """
    try:
        path = cache_folder(FOLDER) / f"{_key(split)}{SUFFIX}"
    except UserError as error:
        raise _UnusableError(str(error)) from None
    if found := _load(path, annotations):
        return found
    lock = _locked(path, split)
    try:
        return _load(path, annotations) or _check(split, annotations, path)
    finally:
        lock.release()


def _warn(split: Split, reason: str) -> None:
    """Logs why the result of a check is not stored, once for a split."""
    if split.path not in _warned:
        _warned.add(split.path)
        text = "The checked dataset %s is not cached, so that every start takes as long as this one. %s"
        logger.warning(text, split.path, reason)


def _key(split: Split) -> str:
    """The name of the file of a split: a hash of where it is and what checks it."""
    where = [type(split).__qualname__, repr(split), "" if split.path.is_absolute() else os.getcwd()]
    return hashlib.sha256(json.dumps([_version(), PIL.__version__, *where]).encode()).hexdigest()[:32]


@functools.cache
def _version() -> tuple[str, int]:
    """The version of this package and a number of the sources that read and check a split.

    Two installations of the same version can have different sources.
    """
    package = Path(__file__).parents[1]
    names = ("data/**/*.py", "errors.py", "magic.py", "structures.py")
    return version("detrs"), checksum(path for name in names for path in sorted(package.glob(name)))


def _locked(path: Path, split: Split) -> FileLock:
    """The lock of a file of the cache.

    Raises:
        _UnusableError: The folder cannot be written, or another process holds the lock for too long.
    """
    lock = FileLock(path.with_suffix(LOCK))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=NOTICE_S)
        except Timeout:
            logger.warning("Waiting for another process that checks the dataset %s.", split.path)
            lock.acquire(timeout=LOCK_TIMEOUT_S)
    except Timeout:
        minutes = f"{LOCK_TIMEOUT_S / 60:.0f} minutes"
        raise _UnusableError(f"Another process has been checking it for {minutes}.") from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _UnusableError(f"Cannot write to {path.parent}: {reason}. {ADVICE}") from None
    return lock


def _load(path: Path, annotations: Path) -> Prepared | None:
    """The content of a file of the cache if everything that it depends on is unchanged.

    Raises:
        _UnusableError: The file belongs to another user, who could have written anything, or may not be read.
    """
    try:
        file = read_arrays(path)
        if not _is_valid(file, annotations):
            return None
        found = from_file(path, file)
    except PermissionError as error:
        raise _UnusableError(f"{error.filename} cannot be used: {error.strerror}. {ADVICE}") from None
    except (OSError, ValueError, KeyError, TypeError):  # there is none, or it is damaged: it is written anew
        return None
    except UserError:  # this or the annotation file is a pipe now: writing or reading it raises the error
        return None
    with suppress(OSError):
        os.utime(path)
    return found


def _is_valid(file: ArrayFile, annotations: Path) -> bool:
    meta = file.meta
    if list(file_state(annotations)) != meta["annotations"] and _hash(annotations) != meta["prepared"]["digest"]:
        return False
    now = state(meta["visited"]["folders"], meta["visited"]["probes"])
    return now is not None and now.digest == meta["state"]


def _hash(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(split: Split, annotations: Path, path: Path) -> Prepared:
    """Checks a split and stores the result, unless files have just changed."""
    start = time.time()
    try:
        before = file_state(annotations)
    except OSError:
        before = (0, 0, 0)
    visited = Visited()
    result = prepared(read_annotations(split, visited=visited))
    now = visited.state
    newest = max(now.newest if now else 0.0, last_change(before[1], before[2], start) / 1e9)
    if reason := _why_never(result, visited, newest):
        _warn(split, reason)
        return result
    if now is None or newest > start - SETTLED_S:
        logger.debug("The checked dataset is not cached: its files have just changed.")
        return result
    meta = {"prepared": result.meta(), "annotations": before, "state": now.digest, "visited": visited.to_json()}
    try:
        write_arrays(path, meta, result.arrays())
        _remove_old(path.parent)
        return from_file(path, read_arrays(path))
    except (UserError, OSError, ValueError) as error:
        _warn(split, f"{error} {ADVICE}")
        return result


def _why_never(result: Prepared, visited: Visited, newest: float) -> str:
    """Why a split cannot be stored at any time, as a sentence; empty if it can.

    Args:
        result: The checked split.
        visited: What the search of the images depends on.
        newest: The time of the last change of a file.
    """
    if newest > time.time() + CLOCK_S:
        return "According to the file system, some of its files were changed in the future. Set the clock."
    if result.images.ids.dtype != np.int64:
        return "It has image ids of more than 64 bits. Use smaller numbers."
    for index in range(len(result.images)):
        if not os.fsdecode(result.images.name(index)).lower().endswith(IMAGE_SUFFIXES):
            return f"{result.images.path(index)} has an unusual name. Expected the extension of an image, such as .jpg."
    if others := {*result.images.folders} - visited.folders.keys():
        return f"The names in the folder {min(others)} cannot be compared later. Use an absolute path to the dataset."
    return ""


def _remove_old(folder: Path) -> None:
    """Removes files that have not been used for a long time, and those of processes that were killed.

    A process whose lock is removed only checks a split twice.
    """
    for path in folder.iterdir():
        is_partial = PARTIAL.fullmatch(path.name) is not None
        with suppress(OSError):
            age = time.time() - path.stat().st_mtime
            if (is_partial and age > MAX_PARTIAL_AGE_S) or (path.suffix in (SUFFIX, LOCK) and age > MAX_AGE_S):
                path.unlink()
