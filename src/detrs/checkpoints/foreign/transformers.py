"""Folders of ``transformers``: DETR, Conditional DETR, Deformable DETR and DAB-DETR, read and written.

A folder has ``config.json``, weights (``model.safetensors``, its parts with ``model.safetensors.index.json``, or
``pytorch_model.bin``) and ``preprocessor_config.json``; without the last, preprocessing is that of the papers. The
package ``transformers`` is not needed.
"""

import contextlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from detrs.backbones.timm import TimmBackbone
from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.file_names import CONFIG, INDEX, OLD_WEIGHTS, PREPROCESSING, WEIGHTS
from detrs.checkpoints.foreign.loading import trained
from detrs.checkpoints.foreign.torch_file import read_torch_file
from detrs.checkpoints.foreign.transformers_backbone import check_equal_in_transformers
from detrs.checkpoints.foreign.transformers_names import renaming
from detrs.checkpoints.foreign.transformers_settings import (
    read_config,
    read_preprocessing,
    written_config,
    written_preprocessing,
)
from detrs.checkpoints.format import check_foreign
from detrs.checkpoints.skeleton import Skeleton
from detrs.config.models import check_model
from detrs.errors import UserError
from detrs.files import open_regular

MAX_JSON_BYTES = 2_000_000
"""``config.json`` has 10 kB, and the list of tensors of a model in several files 200 kB."""


def load_transformers(folder: Path) -> TrainedDetector:
    """Read a folder of ``transformers``.

    Returns:
        The detector on the CPU, in evaluation mode, with the training settings of the closest preset.

    Raises:
        UserError: a file is missing or cannot be read, a setting is not supported, or the weights do not fit the
            settings.
    """
    values = read_json(folder / CONFIG)
    path = folder / PREPROCESSING
    try:
        model, hf_resnet, classes = read_config(values)
        check_model(model)  # before tables and modules of these sizes are built
        with Skeleton():
            check_equal_in_transformers(TimmBackbone(model.backbone), model.backbone)
        preprocessing = read_preprocessing(read_json(path) if path.exists() else {})
    except UserError as error:
        raise UserError(f"Cannot use the checkpoint '{folder}': {error}") from None
    tensors = read_weights(folder)
    return trained(model, renaming(model, hf_resnet, tensors), tensors, classes, preprocessing, folder)


def save_transformers(detector: TrainedDetector, folder: Path) -> None:
    """Write a folder that ``from_pretrained`` of ``transformers`` reads.

    Args:
        detector: one of these four, with settings that ``transformers`` has.
        folder: does not exist or is empty. It is complete, or it is not written at all.

    Raises:
        UserError: ``transformers`` does not have the detector or one of its settings, ``folder`` is not empty, or it
            cannot be written.
    """
    folder = folder.absolute()
    check_new(folder)
    config = written_config(detector)
    model: Any = detector.experiment.model
    check_equal_in_transformers(detector.module.get_submodule("backbone"), model.backbone)
    weights = {
        name: tensor.detach().cpu().contiguous().clone()  # the format has no tensors that share memory
        for name, tensor in renaming(model).write(detector.module.state_dict()).items()
    }
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        (temporary / CONFIG).write_text(as_json(config), encoding="utf-8")
        (temporary / PREPROCESSING).write_text(as_json(written_preprocessing(detector)), encoding="utf-8")
        safetensors.torch.save_file(weights, temporary / WEIGHTS, metadata={"format": "pt"})
        for path in temporary.iterdir():
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"Cannot write '{folder}': {getattr(error, 'strerror', None) or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)


def check_new(folder: Path) -> None:
    """Check that a folder does not exist or is empty.

    Raises:
        UserError: it is not empty, is a file, or cannot be read.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"'{folder}' exists. Expected a new or an empty folder.")
    except OSError as error:
        raise UserError(f"Cannot read the folder '{folder}': {error.strerror}.") from error


def as_json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file with an object.

    Raises:
        UserError: it cannot be read, or has other content.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror}.") from None
    if len(content) > MAX_JSON_BYTES:
        raise UserError(f"'{path}' has more than {MAX_JSON_BYTES:,} bytes, so it is not a file of transformers.")
    try:
        values = json.loads(content)
    except json.JSONDecodeError as error:
        raise UserError(f"'{path}': invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of too many digits, brackets without end
        raise UserError(f"'{path}' is not valid JSON ({type(error).__name__}).") from None
    if not isinstance(values, dict):
        raise UserError(f"'{path}': expected an object, got {values!r:.80}.")
    return values


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder: of ``model.safetensors``, else of its parts, else of ``pytorch_model.bin``.

    Raises:
        UserError: there is none of these, or a file cannot be read.
    """
    if (folder / WEIGHTS).exists():
        return read_safetensors(folder / WEIGHTS)
    if (folder / INDEX).exists():
        parts = read_json(folder / INDEX).get("weight_map")
        if not isinstance(parts, dict) or any(not is_file_name(name) for name in parts.values()):
            raise UserError(f"'{folder / INDEX}': expected the file of each tensor as 'weight_map'.")
        tensors: dict[str, Tensor] = {}
        for name in sorted(set(parts.values())):
            tensors |= read_safetensors(folder / name)
        return tensors
    if (folder / OLD_WEIGHTS).exists():
        return dict(read_torch_file(folder / OLD_WEIGHTS).tensors)
    raise UserError(f"The folder '{folder}' has no weights. Expected {WEIGHTS}, {INDEX} or {OLD_WEIGHTS}.")


def is_file_name(name: object) -> bool:
    """Whether it is the name of a safetensors file in the same folder."""
    return isinstance(name, str) and name.endswith(".safetensors") and not set("/\\:") & set(name)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file that another program wrote.

    Raises:
        UserError: it cannot be read, or its header is invalid.
    """
    check_foreign(path)
    try:
        with open_regular(path) as file:
            return safetensors.torch.load(file.read())
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror}.") from None
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"'{path}' is not a valid safetensors file ({error!s:.200}). Use another copy.") from None
