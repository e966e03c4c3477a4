"""Finds the checkpoint that a path or an id names, without reading it and without PyTorch.

A missing checkpoint is reported before PyTorch is imported, and by :mod:`detrs.checkpoints.sources`, which reads it.
"""

import os
from pathlib import Path
from typing import NoReturn

from detrs.checkpoints import hub, published
from detrs.checkpoints.file_names import BEST, CONFIG, INDEX, LAST, OLD_WEIGHTS, TORCH_SUFFIXES, WEIGHTS
from detrs.errors import UserError, abbreviated, did_you_mean
from detrs.files import is_present, os_errors, user_path

EXPECTED = (
    "Expected a .safetensors file or the folder of a run, a folder of transformers, a .pth file of an official "
    "repository, or a Hub id such as facebook/detr-resnet-50"
)


def find(source: str | Path) -> Path | hub.Repository:
    """The file or folder of a checkpoint, or the repository on the Hub that has it.

    Args:
        source: As for ``open_detector``.

    Raises:
        UserError: There is no such file or folder, and the text is not an id; it cannot be read; or the folder has no
            checkpoint.
    """
    path = user_path(source)
    with os_errors(f"Cannot read the checkpoint '{path}'"):
        if is_present(path):
            if path.is_dir():
                check_folder(path)
            return path
    repository = hub.parse(str(source))
    if repository is None or _similar(path):
        _raise_missing(path)
    return repository


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is that of a run, not one of ``transformers``."""
    return (folder / BEST).exists() or not (folder / CONFIG).exists()


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder has ``config.json``, and weights in one of the formats of ``transformers``."""
    has_weights = any((folder / name).exists() for name in (WEIGHTS, INDEX, OLD_WEIGHTS))
    return (folder / CONFIG).exists() and has_weights


def check_folder(folder: Path) -> None:
    """Check that a folder has a checkpoint of a run or of ``transformers``.

    Raises:
        UserError: It has none; with what to pass instead.
    """
    if is_run_folder(folder):
        if not any((folder / name).exists() for name in (BEST, LAST)):
            _raise_other_folder(folder)
        best_of(folder)
    elif not is_transformers_folder(folder):
        raise UserError(f"The folder '{folder}' has {CONFIG}, but no weights. Expected {WEIGHTS} or {OLD_WEIGHTS}.")


def best_of(folder: Path) -> Path:
    """The ``best.safetensors`` in the folder of a run.

    Raises:
        UserError: it does not exist.
    """
    path = folder / BEST
    if not path.exists():
        raise UserError(f"The folder '{folder}' has no best.safetensors: {advice(folder)}.")
    return path


def advice(folder: Path) -> str:
    """How to get a detector from the folder of a run."""
    if (folder / BEST).exists():
        return f"use '{folder / BEST}'"
    if (folder / LAST).exists():
        return (
            "best.safetensors is written by the first evaluation. Continue the run with "
            f"detrs train --resume {folder}, with --evaluation.every-steps for an earlier evaluation"
        )
    return "pass the .safetensors file of a detector"


def raise_unreadable(path: Path, error: OSError) -> NoReturn:
    """Raise the ``UserError`` for a file of a checkpoint that cannot be opened."""
    if os.path.islink(path) and not os.path.exists(path):
        raise UserError(f"{path} is a dangling link to {os.readlink(path)}. Expected a checkpoint.") from error
    if isinstance(error, FileNotFoundError):
        near = [name for name in _names(path.parent) if name.endswith(".safetensors")]
        raise UserError(f"There is no checkpoint {path}.{did_you_mean(path.name, near)}") from error
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder. Pass the .safetensors file in it.") from error
    raise UserError(f"Cannot read the checkpoint {path}: {error.strerror}.") from error


def _similar(path: Path) -> str:
    """``" Did you mean ..?"`` with the most similar name in an existing folder, or ``""``."""
    return "" if path.parent == Path(".") else did_you_mean(path.name, _names(path.parent))


def _names(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if it does not exist or cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):  # ValueError: a null character
        return []


def _raise_missing(path: Path) -> NoReturn:
    if path.suffix == ".safetensors":
        raise_unreadable(path, FileNotFoundError())
    hint = _similar(path) or did_you_mean(str(path), [*_names(Path(".")), *(each.source for each in published.TABLE)])
    raise UserError(f"There is no file or folder '{path}'.{hint} {EXPECTED}.")


def _raise_other_folder(folder: Path) -> NoReturn:
    weights = next((name for name in (WEIGHTS, OLD_WEIGHTS) if (folder / name).exists()), None)
    if weights:
        raise UserError(
            f"The folder '{folder}' has {weights}, but no {CONFIG}. Add {CONFIG}, and preprocessor_config.json if "
            "there is one, from the folder or repository that the weights come from."
        )
    files = [entry.name for entry in sorted(folder.iterdir()) if entry.suffix in (*TORCH_SUFFIXES, ".safetensors")]
    hint = f" Pass one of its files: {abbreviated(files)}." if files else ""
    raise UserError(
        f"The folder '{folder}' has no best.safetensors: pass the .safetensors file of a detector, or a folder with "
        f"{CONFIG} and {WEIGHTS} or {OLD_WEIGHTS}.{hint}"
    )
