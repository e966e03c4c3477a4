"""Arrays and a JSON value in one file, which is mapped into memory: processes that open it share its pages."""

import errno
import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detrs.files import atomic_write, open_regular

MAGIC = b"detrs arrays 1\n"
ALIGNMENT = 64
DIGEST_BYTES = 32


class ArrayFile(NamedTuple):
    """The content of a file."""

    meta: Any
    arrays: dict[str, NDArray[Any]]
    """Read-only."""
    digest: bytes
    """SHA-256 of the content, which is the end of the file."""
    identity: tuple[int, int, int]
    """Device, inode and length of the file. Its times are set when it is used."""


def write_arrays(path: Path, meta: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes or replaces a file atomically.

    Args:
        path: The file; its folder exists.
        meta: A JSON value.
        arrays: Arrays without objects.

    Raises:
        UserError: The file cannot be written.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    table, position = {}, 0
    for name, array in contiguous.items():
        table[name] = (array.dtype.str, array.shape, position)
        position += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    header = json.dumps({"meta": meta, "arrays": table}).encode()
    start = len(MAGIC) + 8 + len(header)
    digest = hashlib.sha256()
    with (
        atomic_write(path, what="the checked annotations", needed=start + position) as temporary,
        temporary.open("wb") as file,
    ):
        parts = (MAGIC, len(header).to_bytes(8, "little"), header, bytes(-start % ALIGNMENT))
        padded = (
            part for array in contiguous.values() for part in (array.reshape(-1).view(np.uint8).data, _padding(array))
        )
        for part in (*parts, *padded):
            digest.update(part)
            file.write(part)
        file.write(digest.digest())


def read_arrays(path: Path, digest: bytes | None = None) -> ArrayFile:
    """Maps a file into memory.

    Args:
        path: A file of ``write_arrays``.
        digest: Its expected digest; by default, that of its content is computed.

    Raises:
        OSError: The file cannot be read.
        PermissionError: It may not be read, or belongs to another user than this one and root.
        ValueError: It is damaged, or another file than expected.
        UserError: It is not a regular file.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        if os.name == "posix" and status.st_uid not in (0, os.geteuid()):
            raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found = content[-DIGEST_BYTES:]
    with memoryview(content) as view:
        expected = hashlib.sha256(view[:-DIGEST_BYTES]).digest() if digest is None else digest
    if content[: len(MAGIC)] != MAGIC or found != expected:
        raise ValueError(f"{path} is damaged")
    begin = len(MAGIC) + 8
    start = begin + int.from_bytes(content[len(MAGIC) : begin], "little")
    header = json.loads(content[begin:start])
    start += -start % ALIGNMENT
    arrays = {}
    for name, (dtype, shape, position) in header["arrays"].items():
        count = int(np.prod(shape))
        values = np.frombuffer(content, dtype, count, start + position) if count else np.zeros(0, dtype)
        arrays[name] = values.reshape(shape)
    return ArrayFile(header["meta"], arrays, found, (status.st_dev, status.st_ino, status.st_size))


def _padding(array: NDArray[Any]) -> bytes:
    return bytes(-array.nbytes % ALIGNMENT)
