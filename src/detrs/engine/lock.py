"""One run at a time in a folder."""

import json
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from detrs.errors import UserError
from detrs.files import write_text

logger = logging.getLogger("detrs")

TIMEOUT_SECONDS = 0.2
"""A run that ends at this moment may still hold the lock, or be about to remove its file."""


class FolderLock:
    """Locks ``folder`` for this process by the file ``run.lock`` in it.

    The operating system releases the lock when the process dies, however that happens. Processes forked while it is
    held, such as those of a data loader, neither hold nor release it. ``run.owner`` names the process that holds it.

    File systems without locks, such as some network file systems, fall back to the existence of ``run.lock``
    (``filelock.SoftFileLock``).
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run.lock"
        self.owner = folder / "run.owner"
        self._lock = FileLock(self.path, timeout=TIMEOUT_SECONDS, thread_local=False)

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            UserError: Another run holds it, or the disk is full.
            OSError: The folder is not writable.
        """
        previous = self._read_owner()
        self._acquire()
        if previous.get("host", socket.gethostname()) != socket.gethostname():
            logger.warning("a run on the host '%s' ended without releasing the folder", previous["host"])
        try:
            write_text(self.owner, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Releases the lock and removes its files, as far as the folder is still writable.

        Does not raise: it would hide the error that ended the run. Windows cannot remove an open file. Files that
        remain are harmless without the lock.
        """
        if not self._lock.is_locked:
            return
        for path in (self.owner, self.path):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            self._lock.release()

    def raise_if_held(self) -> None:
        """Raises ``UserError`` if another run holds the lock."""
        if not self.path.exists():
            return
        with suppress(OSError):  # the folder is not writable, which ``acquire`` reports
            self._acquire()
            self._lock.release()

    def _acquire(self) -> None:
        try:
            self._lock.acquire()
        except Timeout:
            raise UserError(self._held_by()) from None

    def _held_by(self) -> str:
        owner = self._read_owner()
        process = f" (process {owner['pid']} on '{owner['host']}')" if {"pid", "host"} <= owner.keys() else ""
        advice = "Choose another folder"
        if owner.get("host", socket.gethostname()) != socket.gethostname():
            advice += f", or delete {self.path.name} if that run has ended"
        return f"Another run is using the folder '{self.path.parent}'{process}. {advice}."

    def _read_owner(self) -> dict[str, Any]:
        """The content of ``run.owner``, or an empty dictionary if it is missing or damaged."""
        try:
            owner = json.loads(self.owner.read_text())
        except (OSError, ValueError):
            return {}
        return owner if isinstance(owner, dict) else {}
