"""Atomic file writes: after a full disk, a killed process or a power failure, a file is either old or new."""

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from detrs.errors import UserError

PARTIAL = re.compile(r"\..+\.[0-9a-f]+\.tmp")
"""Names of temporary files, which remain if the process is killed while it writes."""


def user_path(text: str | Path) -> Path:
    """The path that a user gave, with ``~`` replaced by the home folder.

    Raises:
        UserError: There is no home folder of this user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"'{text}' is not a valid path: the home folder cannot be determined. Expected the name of a user, or "
            "nothing, after '~'; use './~' for a file of this name."
        ) from error


@contextmanager
def os_errors(start: str) -> Iterator[None]:
    """Raises an ``OSError`` of the block, such as a missing permission, as ``UserError``: ``start`` and the reason."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{start}: {error.strerror}.") from error


def is_present(path: Path) -> bool:
    """Whether there is a file, a folder or a link, which may be dangling, at ``path``.

    Raises:
        OSError: It is unknown: no permission for a folder, or a name that is too long.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character
        return False
    return True


@contextmanager
def atomic_write(path: Path, *, what: str = "the file", needed: int = 0) -> Iterator[Path]:
    """Yields a temporary path. At the end of the block, that file is flushed to the disk and replaces ``path``.

    Args:
        path: File to write or to replace; its folder exists.
        what: Name of the file in error messages.
        needed: Size in bytes for error messages; 0 if unknown.

    Raises:
        UserError: The file cannot be written. The old file is unchanged and the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # it may not exist, or the error also prevents this
            temporary.unlink()
        if isinstance(error, OSError):
            raise UserError(
                f"Cannot write {what} {path}: {error.strerror}{_free_space(path.parent, needed)}. "
                "An existing file is unchanged."
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Writes or replaces a text file atomically, in UTF-8.

    Raises:
        UserError: The file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def rename(path: Path, target: Path) -> None:
    """Renames ``path`` to ``target``, replacing it.

    Raises:
        UserError: The file cannot be renamed.
    """
    try:
        os.replace(path, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise UserError(f"Cannot rename {path} to {target.name}: {error.strerror}.") from error


def open_regular(path: str | Path) -> BufferedReader:
    """Opens a file for reading in binary mode. Unlike ``open``, does not block on a named pipe.

    Raises:
        OSError: As ``open``; a folder raises ``IsADirectoryError``.
        UserError: The path is a named pipe, a socket or a device.
    """
    mode = os.stat(path).st_mode
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    if kind := kinds.get(stat.S_IFMT(mode)):
        raise UserError(f"'{path}' is {kind}. Expected a regular file.")
    return open(path, "rb")


def unreadable(path: str | Path, error: OSError, expected: str) -> UserError:
    """The error of a file that cannot be opened or read.

    Args:
        path: The file.
        error: The cause.
        expected: What the file should be, without a period.
    """
    if isinstance(error, FileNotFoundError):
        link = f" (a dangling link to {os.readlink(path)})" if os.path.islink(path) else ""
        return UserError(f"There is no file '{path}'{link}. {expected}.")
    return UserError(f"'{path}' cannot be read: {error.strerror}. {expected}.")


def checksum(paths: Iterable[str | Path]) -> int:
    """A number of the contents of files, by which a cache recognizes that they have changed.

    Raises:
        OSError: A file cannot be read.
    """
    value = 0
    for path in paths:
        value = zlib.crc32(Path(path).read_bytes(), value)
    return value


def remove_partial(folder: Path) -> int:
    """Removes the temporary files of killed processes and returns their number.

    No other process may be writing to the folder.
    """
    partial = [path for path in folder.iterdir() if PARTIAL.fullmatch(path.name)]
    for path in partial:
        path.unlink(missing_ok=True)
    return len(partial)


def free_bytes(folder: Path) -> int | None:
    """Free space of the disk that ``folder``, which may not exist yet, is on; ``None`` if it is unknown."""
    existing = next((path for path in (folder, *folder.absolute().parents) if os.path.exists(path)), folder)
    try:
        return shutil.disk_usage(existing).free
    except OSError:
        return None


def _free_space(folder: Path, needed: int) -> str:
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # the folder does not exist, which the message already reports
        return ""
    return f" (it needs {needed:,} bytes, {free:,} are free)" if needed else f" ({free:,} bytes are free)"


def _sync_folder(folder: Path) -> None:
    """Flushes the directory entry to the disk; otherwise a power failure may restore the old file."""
    if os.name != "posix":  # Windows cannot open folders, and its renames are durable
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # network file systems without support
            raise
    finally:
        os.close(descriptor)


class UniqueStems:
    """Stems of image files that differ without regard to case, and that are neither hidden nor reserved.

    In the layout of YOLO, ``classes`` is reserved: the label file of this image would be taken for the class names.
    """

    def __init__(self) -> None:
        self._taken = {"classes"}
        self._counts = Counter[str]()  # of each stem, so that a stem of many images is not counted anew for each

    def unique(self, stem: str) -> str:
        """``stem``, or ``stem-2`` and so on if it is taken."""
        stem = stem.lstrip(".") or "image"
        unique = stem
        while unique.casefold() in self._taken:
            self._counts[stem.casefold()] += 1
            unique = f"{stem}-{self._counts[stem.casefold()] + 1}"
        return unique

    def take(self, stem: str) -> str:
        """As ``unique``; the stem is taken from then on."""
        unique = self.unique(stem)
        self._taken.add(unique.casefold())
        return unique


def link(source: Path, target: Path) -> None:
    """A hard link, or a copy where that is not possible, such as on another file system."""
    try:
        os.link(os.path.realpath(source), target)  # of the file itself, if the source is a symbolic link
    except OSError:
        copy(source, target)


def copy(source: Path, target: Path) -> None:
    """A copy of the content of a file."""
    shutil.copyfile(source, target)
