"""One run at a time in a folder: a lock that the kernel releases when its owner dies, wherever that was."""

import json
import logging
import os
import socket
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped,unused-ignore]

from detrs.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment,unused-ignore]

logger = logging.getLogger("detrs")

ATTEMPTS = 10
"""Another run that ends just now may take its lock file away while it is being taken."""


class FolderLock:
    """The lock file ``path``; it says who holds it.

    Where the system can (``flock``), the open file is locked: a lock whose process died is free, after a restart in a
    new container too. Elsewhere the file itself is the lock, and its owner is looked up among the processes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            UserError: another run holds it.
            OSError: the file cannot be written.
        """
        for _ in range(ATTEMPTS):
            if self._take():
                return
        raise UserError(f"Another run has just taken the folder '{self.path.parent}': choose another.")

    def release(self) -> None:
        """Give it back."""
        self.path.unlink(missing_ok=True)
        if self._descriptor is not None:
            _unlock(self._descriptor)  # closing alone would not do while a loader's process has it, too
            os.close(self._descriptor)
            self._descriptor = None

    def refuse_if_held(self) -> None:
        """Raise ``UserError`` where another run holds the lock."""
        try:
            descriptor = os.open(self.path, os.O_RDWR)
        except OSError:  # there is none, or it may not be asked
            return
        try:
            lockable = _locked(descriptor)
            if lockable is False:
                self._refuse()
            if lockable:
                _unlock(descriptor)
        finally:
            os.close(descriptor)
        if lockable is None:
            self._refuse_if_alive()

    def _take(self) -> bool:
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o666)
        lockable = _locked(descriptor)
        if lockable is None:
            os.close(descriptor)
            return self._take_file()
        if not lockable:
            os.close(descriptor)
            self._refuse()
        if not _is_same_file(descriptor, self.path):  # its owner took it away after it was opened here
            os.close(descriptor)
            return False
        owner = self._owner()
        if owner.get("host", socket.gethostname()) != socket.gethostname():
            logger.warning("taking over from a run on the machine '%s', which does not run any more", owner["host"])
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _this_process())
        self._descriptor = descriptor
        return True

    def _take_file(self) -> bool:
        """Without ``flock``: whoever makes the file has the lock, and takes away what a dead process left."""
        dead = self._owner()
        self._refuse_if_alive()
        stale = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:12]}.tmp")
        with suppress(FileNotFoundError):
            os.replace(self.path, stale)  # only one of two that try it at once has it
            if FolderLock(stale)._owner() != dead:  # another one was quicker, and this is its lock
                os.replace(stale, self.path)
                return False
            stale.unlink()
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        with open(descriptor, "wb") as file:
            file.write(_this_process())
        return True

    def _refuse(self) -> None:
        owner = self._owner()
        who = f"process {owner['pid']}" if "pid" in owner else "other process"
        where = f" on the machine '{owner['host']}'" if owner.get("host", "") not in ("", socket.gethostname()) else ""
        raise UserError(
            f"Another run is in the folder '{self.path.parent}': the {who}{where} is running. Choose another folder."
        )

    def _refuse_if_alive(self) -> None:
        """Without ``flock``: refuse when the owner lives, or cannot be asked."""
        owner = self._owner()
        if not {"pid", "started", "host"} <= owner.keys():
            return  # no lock, or its writer died while writing it
        if owner["host"] != socket.gethostname():
            raise UserError(
                f"The folder '{self.path.parent}' belongs to a run on the machine '{owner['host']}': choose another, "
                f"or delete {self.path.name} in it if that run is dead."
            )
        try:
            # A process number is used again after a while; with the time of birth it means one process.
            alive = abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) < 1
        except psutil.NoSuchProcess:
            alive = False
        if alive:
            self._refuse()

    def _owner(self) -> dict[str, Any]:
        """Who wrote the file, as far as it says so."""
        try:
            owner = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return owner if isinstance(owner, dict) else {}


def _this_process() -> bytes:
    process = psutil.Process()
    owner = {"pid": process.pid, "started": process.create_time(), "host": socket.gethostname()}
    return json.dumps(owner).encode()


def _locked(descriptor: int) -> bool | None:
    """Lock an open file: whether that succeeded; ``None`` where the system cannot."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a network file system that has no locks
        return None
    return True


def _unlock(descriptor: int) -> None:
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
