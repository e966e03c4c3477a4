"""Opens the files of many images once each: for their size, to find damaged ones, and for a hash of their content."""

import hashlib
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detrs.data import complete
from detrs.data.fingerprint import END_BYTES, hash_files
from detrs.data.images import NUM_READERS, read_headers
from detrs.data.jpeg_header import START, upright_size
from detrs.errors import UserError

CHUNK = 64
"""Files that a thread reads before it takes others."""
LONG_HEAD = 2**17
"""Bytes of a file that are searched for the size of an image if the first ``END_BYTES`` do not contain it."""
DIGEST_BYTES = 32
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True)
class Scan:
    """What N image files contain."""

    sizes: NDArray[Any]
    """(N, 2) int32, height and width in pixels after EXIF orientation; 0 for unreadable files."""
    contents: NDArray[Any]
    """(N, 32) uint8, hash of length and ends of each file (see ``hash_files``); 0 for unreadable files."""
    frames: dict[int, int]
    """Images in each file with several of them, of which only the first is used."""
    errors: dict[int, UserError]
    """Those of unreadable files."""


def scan_files(paths: Sequence[str], *, decode: bool = False) -> Scan:
    """Reads the header, the end and the hash of each file; ``decode``: also decodes it."""
    files = Scan(
        np.zeros((len(paths), 2), dtype=np.int32),
        np.zeros((len(paths), DIGEST_BYTES), dtype=np.uint8),
        {},
        {},
    )

    def read(start: int) -> list[int]:
        rows = range(start, min(start + CHUNK, len(paths)))
        return [row for row in rows if not _read_usual(paths[row], row, files)]

    unusual: Sequence[int] = range(len(paths))
    if not decode:
        with ThreadPoolExecutor(NUM_READERS) as readers:
            unusual = [row for rows in readers.map(read, range(0, len(paths), CHUNK)) for row in rows]
    remaining = [paths[row] for row in unusual]
    for row, header, content in zip(
        unusual, read_headers(remaining, decode=decode), hash_files(remaining), strict=True
    ):
        if isinstance(header, UserError):
            files.errors[row] = header
        else:
            files.sizes[row] = header.size
            if header.frames > 1:
                files.frames[row] = header.frames
            files.contents[row] = np.frombuffer(content or bytes(DIGEST_BYTES), dtype=np.uint8)
    return files


def _read_usual(path: str, row: int, files: Scan) -> bool:
    """Reads a JPEG file that is complete and in no way unusual; False for any other file."""
    try:
        file = os.open(path, _FLAGS)
    except (OSError, ValueError):
        return False
    try:
        status = os.fstat(file)
        length = status.st_size
        if not stat.S_ISREG(status.st_mode):
            return False
        head = os.read(file, 2 * END_BYTES if length <= 2 * END_BYTES else END_BYTES)
        if not head.startswith(START):
            return False
        digest = hashlib.sha256(b"%d " % length)
        digest.update(head)
        tail = head
        if length > 2 * END_BYTES:
            os.lseek(file, length - END_BYTES, os.SEEK_SET)
            tail = os.read(file, END_BYTES)
            digest.update(tail)
        if len(head) + len(tail) * (tail is not head) != min(length, 2 * END_BYTES):
            return False
        size = upright_size(head)
        if size is None and length > len(head):
            os.lseek(file, 0, os.SEEK_SET)
            size = upright_size(os.read(file, LONG_HEAD))
        if size is None or complete.END_MARKERS["JPEG"] not in tail[-complete.TAIL :]:
            return False
    except OSError:
        return False
    finally:
        os.close(file)
    files.sizes[row] = size
    files.contents[row] = np.frombuffer(digest.digest(), dtype=np.uint8)
    return True
