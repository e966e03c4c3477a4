"""Fingerprints of files, so that changed data are noticed when a run is resumed."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from detrs.data.images import NUM_READERS
from detrs.errors import UserError
from detrs.files import open_regular

END_BYTES = 16384
"""Bytes at both ends of a file that are hashed. In JPEG and PNG, other pixels give another length or another end: the
code of each block depends on the block before, and the last chunk of PNG has a checksum of all pixels."""
HASHED_BY_ENDS = (b"\xff\xd8", b"\x89PNG")
"""First bytes of these formats. All other files are hashed completely."""


def fingerprint(annotations: bytes, names: Iterable[bytes], contents: Iterable[bytes]) -> str:
    """Hex SHA-256 of the hash of an annotation file, and of names and contents of image files.

    It depends on neither the folder nor the modification time, so that a dataset may be moved.

    Args:
        annotations: Hash of the annotations.
        names: Names of the image files without their folders, encoded by ``os.fsencode``.
        contents: Their ``hash_files``.
    """
    digest = hashlib.sha256(annotations)
    for name, content in zip(names, contents, strict=True):
        digest.update(name + b"\0" + content)
    return digest.hexdigest()


def hash_files(paths: Sequence[str | Path]) -> list[bytes]:
    """A hash of length and ends of each image file; empty if it cannot be read or is not a regular file."""
    with ThreadPoolExecutor(NUM_READERS) as readers:
        return list(readers.map(_content, paths))


def _content(path: str | Path) -> bytes:
    try:
        with open_regular(path) as file:
            has_ends = file.read(4).startswith(HASHED_BY_ENDS)
    except (OSError, UserError):
        return b""
    return ends(path, END_BYTES if has_ends else None) or b""


def ends(path: str | Path, num_bytes: int | None) -> bytes | None:
    """SHA-256 of the length and of both ends of a file; ``None`` if it cannot be read or is not a regular file.

    Args:
        path: The file.
        num_bytes: Bytes at each end; ``None`` for the whole file.
    """
    try:
        with open_regular(path) as file:
            length = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(b"%d " % length)
            if num_bytes is None or length <= 2 * num_bytes:
                while block := file.read(2**20):
                    digest.update(block)
            else:
                digest.update(file.read(num_bytes))
                file.seek(length - num_bytes)
                digest.update(file.read(num_bytes))
    except (OSError, UserError):
        return None
    return digest.digest()
