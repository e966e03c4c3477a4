"""The state of the files that a checked split depends on, with which a change is found at a later opening."""

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detrs.data.folders import IMAGE_SUFFIXES

CLOCK_S = 60.0
"""Largest difference between the clocks of this computer and of a file server that is expected."""


@dataclass(frozen=True)
class State:
    """The state of files at one time."""

    digest: str
    newest: float
    """Time of the last change of a file, in seconds since the epoch; see ``last_change``."""


@dataclass
class Visited:
    """Folders and files that were visited while the images of a split were searched."""

    folders: dict[str, frozenset[str]] = field(default_factory=dict)
    """Folders that were listed, and the names in them; they need not exist."""
    probes: dict[str, bool] = field(default_factory=dict)
    """Paths that were tested -> whether they are files."""
    state: State | None = None
    """The state of all of them; ``None`` if they changed during the search."""

    def end(self) -> None:
        """Determines the state after the search, before the images are opened."""
        self.state = state(self.folders, self.probes)

    def to_json(self) -> dict[str, Any]:
        return {"folders": dict.fromkeys(self.folders), "probes": self.probes}


def state(folders: Mapping[str, frozenset[str] | None], probes: Mapping[str, bool]) -> State | None:
    """The names in the folders, and length and times of the images; ``None`` if something has changed.

    The times include that of the last change of the inode, which no program can set: a file that was replaced by one of
    the same length and modification time has another one. On Windows, it is the time of creation, and only a change of
    the length or the modification time is noticed.

    Args:
        folders: Folders, and the names that are expected in them, or ``None``.
        probes: Paths, and whether files are expected there.
    """
    if any(os.path.isfile(path) != is_file for path, is_file in probes.items()):
        return None
    digest, newest = hashlib.sha256(), 0
    for folder, expected in sorted(folders.items()):
        lines, changed = _listing(folder)
        if expected is not None and expected != lines.keys():
            return None
        digest.update(b"%b\0%d\0" % (os.fsencode(folder), len(lines)))
        digest.update(b"".join(b"%b\0%b\n" % (os.fsencode(name), lines[name]) for name in sorted(lines)))
        newest = max(newest, changed)
    return State(digest.hexdigest(), newest / 1e9)


def file_state(path: Path) -> tuple[int, int, int]:
    """Length, and times of the last change of content and inode in nanoseconds (on Windows: of the creation).

    Raises:
        OSError: There is no such file.
    """
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def last_change(modified_ns: int, changed_ns: int, now: float) -> int:
    """The time of the last change of a file in nanoseconds.

    A modification time in the future was set by a program, or by a camera with a wrong clock. It does not count, since
    later changes are noticed by the time of the last change of the inode.

    Args:
        modified_ns: Time of the last change of the content.
        changed_ns: Time of the last change of the inode.
        now: The time, in seconds since the epoch.
    """
    return changed_ns if modified_ns / 1e9 > now + CLOCK_S else max(modified_ns, changed_ns)


def _listing(folder: str) -> tuple[dict[str, bytes], int]:
    """Length and times of the entries of a folder, and the time of the last change of an image in nanoseconds.

    Those of files that are not images, such as logs, are empty.
    """
    found: dict[str, bytes] = {}
    newest, now = 0, time.time()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found[entry.name] = b""
                if entry.name.lower().endswith(IMAGE_SUFFIXES):
                    try:
                        status = entry.stat()
                    except OSError:  # a dangling link
                        continue
                    modified, changed = status.st_mtime_ns, status.st_ctime_ns
                    found[entry.name] = b"%d %d %d" % (status.st_size, modified, changed)
                    newest = max(newest, last_change(modified, changed, now))
    except OSError:  # it does not exist, as before, or it cannot be read any more
        pass
    return found, newest
