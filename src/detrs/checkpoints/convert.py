"""Conversion of checkpoints: any source that can be opened to a folder of ``transformers`` or to our own file."""

import os
from pathlib import Path

from detrs.checkpoints.detector import save_detector
from detrs.checkpoints.foreign.transformers import check_new, save_transformers
from detrs.checkpoints.sources import open_weights
from detrs.errors import UserError, did_you_mean
from detrs.files import is_present, os_errors

FORMATS = ("transformers", "detrs")
SUFFIX = ".safetensors"


def convert_checkpoint(source: str, to: str, output: Path) -> Path:
    """Write the detector in ``source`` in another format.

    Args:
        source: what ``open_weights`` accepts: a file, a folder or a Hub id.
        to: ``transformers``: a folder that ``from_pretrained`` reads. ``detrs``: our own file.
        output: the folder, which is new or empty; or the file, which is new. A folder or a path without the suffix
            ``.safetensors`` means a ``best.safetensors`` in it, as in the folder of a run.

    Returns:
        The folder or the file.

    Raises:
        UserError: ``to`` is not a format, ``source`` cannot be opened, the format does not have its detector, or
            ``output`` exists or cannot be written.
    """
    if to not in FORMATS:
        raise UserError(f"Expected 'transformers' or 'detrs' as the format, got '{to}'.{did_you_mean(to, FORMATS)}")
    if to == "detrs":
        path = output if output.suffix == SUFFIX and not os.path.isdir(output) else output / f"best{SUFFIX}"
        with os_errors(f"Cannot write to '{path}'"):
            is_used = is_present(path)
        if is_used:
            raise UserError(f"'{path}' exists. Expected a new file.")
    else:
        check_new(output)
    detector = open_weights(source)
    if to == "transformers":
        save_transformers(detector, output)
        return output
    with os_errors(f"Cannot create the folder '{path.parent}'"):
        path.parent.mkdir(parents=True, exist_ok=True)
    save_detector(path, detector)
    return path
