"""The folder in which files are kept that can be made again."""

import os
import sys
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder ``name`` in ``DETRS_CACHE``, or in the cache folder of the platform. It may not exist."""
    if given := os.environ.get("DETRS_CACHE"):
        return Path(given).expanduser() / name
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "detrs" / name
