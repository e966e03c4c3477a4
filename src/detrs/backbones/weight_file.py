"""Backbone weights: the one entrance for weight files, local or downloaded. Only safetensors files are read.

PyTorch's own formats (.pth, .pt, .bin) are pickles, which can execute code. No function here, and none of timm that
is called with what it returns, unpickles anything.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import timm
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detrs import files
from detrs.errors import UserError, did_you_mean
from detrs.magic import kind_of

MAX_HEADER_BYTES = 8_000_000
"""As for checkpoints: a damaged length field must not allocate gigabytes."""
LENGTH_BYTES = 8  # safetensors: little-endian length of the header, the header, the data
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".zip", ".tar", ".npz")
"""Suffixes of weight files in other formats: a name with one of them is a file, not a timm model."""
EXPECTED = "Expected backbone weights in a .safetensors file"


class WeightFile(NamedTuple):
    """The checked content of a file."""

    tensors: dict[str, Tensor]
    """On the CPU; all values are finite."""
    metadata: dict[str, str]


def is_file_name(weights: str) -> bool:
    """Whether ``weights`` names a file, not a timm model."""
    return weights.endswith((".safetensors", *PICKLE_SUFFIXES)) or os.path.isfile(weights)


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a file; its tensors are not read.

    Raises:
        UserError: The file is missing, or is not a complete safetensors file.
    """
    try:
        with files.open_regular(path) as file:
            return _read_header(path, file)
    except OSError as error:
        raise files.unreadable(path, error, EXPECTED) from error


def read(path: str | Path) -> WeightFile:
    """The tensors and the metadata of a file.

    Raises:
        UserError: The file is missing, is not a complete safetensors file, has no tensors, or contains NaN or infinity.
    """
    metadata = read_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"'{path}' is not a valid .safetensors file: {str(error).rstrip('.')}. {EXPECTED}.") from error
    except OSError as error:
        raise files.unreadable(path, error, EXPECTED) from error
    if not tensors:
        raise UserError(f"'{path}' contains no tensors. {EXPECTED}.")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"'{path}' contains NaN or infinity in '{name}'. Use another weight file.")
    return WeightFile(tensors, metadata)


def download(model: str) -> Path:
    """The file with timm's weights of ``model``, downloaded once.

    Raises:
        UserError: timm has no weights of this model in safetensors format, or they cannot be downloaded.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    trained_on = pretrained_config(model)
    if trained_on is None or not trained_on.hf_hub_id:
        raise UserError(
            f"timm has no weights of '{model}' in safetensors format; pickles are not loaded. Pass another model or a "
            f".safetensors file with --backbone."
        )
    repository, _, revision = trained_on.hf_hub_id.partition("@")
    name = Path(trained_on.hf_hub_filename or "model.safetensors").with_suffix(".safetensors").name
    name = name.replace("pytorch_model.", "model.")
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision or None))
    except (OSError, EntryNotFoundError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, FileNotFoundError):  # online, not found
            raise UserError(
                f"The repository '{repository}' of the weights of '{model}' has no {name}; pickles are not loaded. "
                "Pass another model or a .safetensors file with --backbone."
            ) from error
        raise UserError(
            f"The pretrained weights of '{model}' could not be downloaded ({type(error).__name__}): connect "
            f"once, pass --backbone with a .safetensors file, or train from scratch with "
            f"--model.backbone.weights none --model.backbone.norm batch --model.backbone.freeze-stem False."
        ) from error


def pretrained_config(model: str) -> Any:
    """timm's description of the weights of ``model``; ``None`` if it has none.

    Raises:
        UserError: The tag of the name (after the dot) is unknown.
    """
    try:
        return timm.models.get_pretrained_cfg(model)
    except RuntimeError as error:
        raise UserError(
            f"timm has no weights called '{model}'.{did_you_mean(model, timm.list_pretrained())}"
        ) from error


def _read_header(path: str | Path, file: BinaryIO) -> dict[str, str]:
    """The metadata in the header, after a check of its length, its JSON and the size of the file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(LENGTH_BYTES)
    length = int.from_bytes(start, "little")
    header = file.read(length if size >= LENGTH_BYTES and length <= MAX_HEADER_BYTES else 512)
    try:
        table = json.loads(header)
        metadata = table.pop("__metadata__", {})
        needed = LENGTH_BYTES + length + max((int(entry["data_offsets"][1]) for entry in table.values()), default=0)
        readable = all(isinstance(value, str) for value in metadata.values())
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
        readable = False
    if not readable or length > MAX_HEADER_BYTES:
        kind = kind_of(start + header) or "not a .safetensors file, or it is damaged"
        raise UserError(f"'{path}' is {kind}. {EXPECTED}; other formats are never loaded.")
    if size != needed:
        raise UserError(
            f"'{path}' has {size:,} bytes, but should have {needed:,}: it is truncated or damaged. Download it again."
        )
    return dict(metadata)
