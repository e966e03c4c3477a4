"""Files that are old or new, whatever happens meanwhile: a full disk, a kill, a power cut."""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detrs.errors import UserError

PARTIAL = re.compile(r"\..+\.[0-9a-f]+\.tmp")
"""Names of files that were being written when their process was killed."""


@contextmanager
def replaced(path: Path, *, what: str = "the file", needed: int = 0) -> Iterator[Path]:
    """A path to write instead of ``path``, which it replaces at the end of the block, once it is on the disk.

    Args:
        path: file to write or to replace; its folder exists.
        what: what messages call it.
        needed: its size in bytes, for messages; 0: unknown.

    Raises:
        UserError: something could not be written; the old file stands, nothing else is left.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # there may be none, or what prevented the writing prevents this too
            temporary.unlink()
        if isinstance(error, OSError):
            raise UserError(
                f"Cannot write {what} {path}: {error.strerror}{_free_space(path.parent, needed)}. "
                "A file that was there before is untouched."
            ) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` so that ``path`` holds the old text or the whole new one.

    Raises:
        UserError: it cannot be written.
    """
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def rename(path: Path, target: Path) -> None:
    """Give ``path`` the name of ``target``, which is replaced.

    Raises:
        UserError: the file system refuses.
    """
    try:
        os.replace(path, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise UserError(f"Cannot rename {path} to {target.name}: {error.strerror}.") from error


def remove_partial(folder: Path) -> int:
    """Remove what ``replaced`` left in a folder when its process was killed, and say how many files that was.

    To be called when a run starts, while it alone writes into the folder.
    """
    partial = [path for path in folder.iterdir() if PARTIAL.fullmatch(path.name)]
    for path in partial:
        path.unlink(missing_ok=True)
    return len(partial)


def _free_space(folder: Path, needed: int) -> str:
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # the folder itself is gone, and the sentence says so already
        return ""
    return f" (it needs {needed:,} bytes, {free:,} are free)" if needed else f" ({free:,} bytes are free)"


def _sync_folder(folder: Path) -> None:
    """Puts the new name on the disk; without it a power cut may bring the old file back."""
    if os.name != "posix":  # elsewhere a folder cannot be opened, and the rename itself is durable
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):  # network file systems that cannot do it
            raise
    finally:
        os.close(descriptor)
