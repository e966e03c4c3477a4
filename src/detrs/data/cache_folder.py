"""The folder in which files are kept that can be made again."""

import os
import sys
from pathlib import Path

from detrs.errors import UserError

ADVICE = "Set DETRS_CACHE to a folder that can be written."


def cache_folder(name: str) -> Path:
    """The folder ``name`` in ``DETRS_CACHE``, or in the cache folder of the platform. It may not exist.

    Raises:
        UserError: The user has no home folder, or ``DETRS_CACHE`` starts with an unknown user.
    """
    given = os.environ.get("DETRS_CACHE")
    try:
        return Path(given).expanduser() / name if given else _platform_folder() / "detrs" / name
    except RuntimeError as error:
        reason = str(error).rstrip(".")
        raise UserError(f"There is no cache folder{f' {given}' if given else ''}: {reason}. {ADVICE}") from None


def _platform_folder() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
