"""Checks of the names and files in the arguments of a command, made before PyTorch is imported, which takes seconds.

The functions that read the files make the same checks again, with the same messages.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from detrs.checkpoints import lookup
from detrs.config.data import is_hub_name
from detrs.data import data_exists, data_root
from detrs.errors import UserError
from detrs.video.sources import VIDEO_SUFFIXES, is_camera, parse_source, scheme


def check_checkpoint(source: str | Path) -> None:
    """Check that a path names a checkpoint, or a text the id of a repository, which is not searched yet.

    Raises:
        UserError: there is no such file or folder, or the folder has no checkpoint.
    """
    lookup.find(source)


def check_dataset(path: str | None) -> None:
    """Check that a dataset exists, unless it is built in, on the Hub, or was not given.

    Raises:
        UserError: there is no such file or folder, or it cannot be read.
    """
    if path is None or path == "digits" or is_hub_name(path):
        return
    root = data_root(path)
    if not data_exists(root):
        from detrs.data.detect import find_splits

        find_splits(root)  # has the message


def check_run_folder(path: Path, *, resume: bool, environment: Mapping[str, str] = os.environ) -> None:
    """Check that the output folder of a training can be used.

    Args:
        path: the folder.
        resume: continue the run in it.
        environment: only the first process of a launcher checks; another one may be later than the start of the run.

    Raises:
        UserError: the folder is not empty, or, with ``resume``, has no run.
    """
    from detrs.engine.run import RunFolder

    if environment.get("RANK", "0") == "0":
        RunFolder(path).check(resume=resume)


def check_only_source(sources: Sequence[str], *, videos: bool) -> None:
    """Check that the only image or video of a command exists; of several sources, missing ones are skipped later.

    Args:
        sources: as typed.
        videos: the command reads videos, too.

    Raises:
        UserError: there is no such file.
    """
    if len(sources) != 1 or not sources[0] or scheme(sources[0]) or any(sign in sources[0] for sign in "*?["):
        return
    (source,) = sources
    if videos and is_camera(source):
        return
    try:
        path = Path(source).expanduser()
        path.stat()
    except FileNotFoundError:
        if videos and path.suffix.lower() in VIDEO_SUFFIXES:
            parse_source(source, allow_urls=False)  # has the message
        raise UserError(f"{path} does not exist. Expected an image file.") from None
    except (OSError, RuntimeError, ValueError):  # no permission, an unknown ~user: the reader has the message
        return
