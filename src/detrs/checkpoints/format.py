"""The checkpoint file: one safetensors file whose metadata holds JSON and the SHA-256 of all its parts.

safetensors files execute no code when they are loaded, but they do not detect corrupted bytes. Here every byte is
verified on load: each tensor against its own hash in the JSON, and the header against ``detrs_sha256``. A file is
written to a temporary name and renamed once it is on the disk, so that a full disk or a crash leaves the old file.

The metadata of the header has two entries::

    detrs          JSON: {"meta": {..}, "sha256": {name: hash}, "aliases": {name: name of the stored tensor}}
    detrs_sha256   SHA-256 of the header without this entry

Tensors that share the same memory, such as a head used by all decoder layers, are stored once; the others are aliases.
Any safetensors reader opens these files and returns the stored tensors.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from detrs.checkpoints.lookup import raise_unreadable
from detrs.errors import UserError
from detrs.errors import abbreviated as abbreviated
from detrs.files import atomic_write, open_regular
from detrs.magic import kind_of

FORMAT = 2
"""Version of the layout. Only this version is read; increase it with every incompatible change."""

LENGTH_BYTES = 8  # safetensors: little-endian length of the header, the header, the data
ALIGNMENT = 8
MAX_HEADER_BYTES = 8_000_000
"""Enough for 20,000 tensors; a damaged length field must not allocate gigabytes."""
METADATA = "__metadata__"
ITEMSIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""dtype in a header -> bytes of an element."""


class Checkpoint(NamedTuple):
    """The verified content of a file."""

    tensors: dict[str, Tensor]
    """On the CPU, in the order in which they were saved. Aliases are the same tensor object."""
    meta: dict[str, Any]
    """As saved, after a round trip through JSON (tuples become lists), and ``format``."""


class Header(NamedTuple):
    """The verified header of a file."""

    hashes: dict[str, str]
    """SHA-256 of each tensor, aliases included, in the order in which they were saved."""
    aliases: dict[str, str]
    """Name of each alias -> name of the stored tensor."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each tensor, aliases included."""
    meta: dict[str, Any]


class ForeignError(UserError):
    """A safetensors file that another program wrote."""


class NonFiniteError(UserError):
    """Weights or optimizer state with NaN or infinity, which must not replace a file that can be loaded."""


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, allow_non_finite: bool = False) -> None:
    """Writes a checkpoint. ``path`` holds either the old file or the complete new one at any time.

    Args:
        path: File to write or to replace; its folder exists.
        tensors: On any device, with any strides. Tensors with the same memory, shape and strides are stored once; other
            tensors that share memory are stored as independent copies.
        meta: JSON-serializable, finite numbers only. ``format`` is added.
        allow_non_finite: Write NaN and infinity. ``load`` rejects such a file by default.

    Raises:
        NonFiniteError: A tensor contains NaN or infinity. The old file is unchanged.
        UserError: The file cannot be written (disk full, no permission). The old file is unchanged.
    """
    if not allow_non_finite and (non_finite := [name for name, tensor in tensors.items() if not _is_finite(tensor)]):
        raise NonFiniteError(f"Cannot save {path}: NaN or infinity in {abbreviated(non_finite)}.")
    header, data = _serialize(tensors, {**meta, "format": FORMAT})
    needed = len(header) + len(data)
    with atomic_write(path, what="the checkpoint", needed=needed) as temporary, open(temporary, "xb") as file:
        file.write(header)
        file.write(data)


def load(path: Path, *, allow_non_finite: bool = False) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Args:
        path: A file written by :func:`save`.
        allow_non_finite: Accept NaN and infinity in the weights, for example to inspect a diverged run.

    Raises:
        UserError: The file does not exist, is not a checkpoint, has another format version, is truncated or damaged, or
            holds NaN or infinity.
    """
    try:
        with open_regular(path) as file:
            header = _read_header(path, file)
            file.seek(0)
            stored = safetensors.torch.load(file.read())
    except OSError as error:
        raise_unreadable(path, error)
    except (SafetensorError, KeyError, RuntimeError) as error:  # a header with a valid hash and invalid content
        raise UserError(f"The checkpoint {path} is damaged ({error}). Use another copy.") from error
    names = [name for name in header.hashes if name not in header.aliases]
    if stored.keys() != set(names) or not stored.keys() >= set(header.aliases.values()):
        raise UserError(f"The checkpoint {path} is damaged (its list of tensors is wrong). Use another copy.")

    damaged = [name for name in names if _sha256(stored[name]) != header.hashes[name]]
    if damaged:
        raise UserError(f"The checkpoint {path} is damaged: wrong SHA-256 of {abbreviated(damaged)}. Use another copy.")
    non_finite = [name for name in names if not _is_finite(stored[name])]
    if non_finite and not allow_non_finite:
        raise UserError(
            f"The checkpoint {path} contains NaN or infinity in {abbreviated(non_finite)}: the training diverged. "
            "Use an earlier checkpoint."
        )
    return Checkpoint({name: stored[header.aliases.get(name, name)] for name in header.hashes}, header.meta)


def read_header(path: Path) -> Header:
    """Reads and verifies the header only. The tensors are neither read nor verified.

    Raises:
        UserError: As in :func:`load`, as far as the header and the size of the file show it.
    """
    try:
        with open_regular(path) as file:
            return _read_header(path, file)
    except OSError as error:
        raise_unreadable(path, error)


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata of :func:`read_header`."""
    return read_header(path).meta


def check_foreign(path: Path) -> None:
    """Checks header and size of a safetensors file that another program wrote, before it is read as a whole.

    Raises:
        UserError: The file cannot be read, its header is too long or invalid, or the file has another size.
    """
    try:
        with open_regular(path) as file:
            _check_size(path, file, _read_table(path, file).needed)
    except OSError as error:
        raise_unreadable(path, error)


def _serialize(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> tuple[bytes, memoryview]:
    """The file in two parts: the header including its length, and the data."""
    stored: dict[str, Tensor] = {}
    hashes: dict[str, str] = {}
    aliases: dict[str, str] = {}
    owners: dict[object, str] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        owner = owners.setdefault(_memory(tensor), name) if tensor.numel() else name
        if owner != name:
            aliases[name], hashes[name] = owner, hashes[owner]
            continue
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if storage in storages else tensor  # safetensors rejects overlapping memory
        storages.add(storage)
        hashes[name] = _sha256(stored[name])
    envelope = {"meta": meta, "sha256": hashes, "aliases": aliases}
    content = safetensors.torch.save(stored)
    data_at = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    table = json.loads(content[LENGTH_BYTES:data_at])
    table.pop(METADATA, None)
    header = _header_bytes(json.dumps(envelope, allow_nan=False), table)
    assert len(header) <= MAX_HEADER_BYTES, len(header)
    return len(header).to_bytes(LENGTH_BYTES, "little") + header, memoryview(content)[data_at:]


def _are_consistent(hashes: Any, aliases: Any) -> bool:
    """Whether both are tables of strings, and each alias has the hash of a stored tensor."""
    tables = [table for table in (hashes, aliases) if isinstance(table, dict)]
    if len(tables) < 2 or not all(isinstance(value, str) for table in tables for value in table.values()):
        return False
    return all(
        name in hashes and target not in aliases and hashes[name] == hashes.get(target)
        for name, target in aliases.items()
    )


def _memory(tensor: Tensor) -> object:
    """Equal for tensors that are the same elements in the same order."""
    where = tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return *where, tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg()


def _header_bytes(envelope: str, table: Mapping[str, Any]) -> bytes:
    """The only header with this content: every other spelling of the same JSON is rejected as damaged."""

    def encode(metadata: dict[str, str]) -> bytes:
        text = json.dumps({METADATA: metadata, **table}, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % ALIGNMENT)

    digest = hashlib.sha256(encode({"detrs": envelope})).hexdigest()
    return encode({"detrs": envelope, "detrs_sha256": digest})


def _read_header(path: Path, file: BinaryIO) -> Header:
    """Reads the header and verifies it and the size of the file."""
    header, table, metadata, needed = _read_table(path, file)
    if not isinstance(metadata, dict) or "detrs" not in metadata:
        raise ForeignError(
            f"{path} is a safetensors file without detrs metadata. Expected a checkpoint that was saved by detrs."
        )
    try:
        envelope = json.loads(metadata["detrs"])
        meta = envelope["meta"]
        version, writer = meta["format"], meta.get("detrs", "unknown")
        advice = "Update detrs." if version > FORMAT else "Load it with the version of detrs that wrote it."
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"The checkpoint {path} is damaged (its header is unreadable). Use another copy.") from error
    if version != FORMAT:
        raise UserError(
            f"The checkpoint {path} has format {version} (written by detrs {writer}), but this version of detrs reads "
            f"format {FORMAT}. {advice}"
        )
    hashes, aliases = envelope.get("sha256"), envelope.get("aliases")
    if not _are_consistent(hashes, aliases) or header != _header_bytes(metadata["detrs"], table):
        raise UserError(f"The checkpoint {path} is damaged (wrong SHA-256 of its header). Use another copy.")
    _check_size(path, file, needed)
    try:
        shapes = {name: tuple(map(int, table[aliases.get(name, name)]["shape"])) for name in hashes}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"The checkpoint {path} is damaged (wrong list of tensors). Use another copy.") from error
    return Header(hashes, aliases, shapes, meta)


class _Table(NamedTuple):
    header: bytes
    tensors: dict[str, Any]
    metadata: Any
    needed: int
    """Length of the file in bytes, as the tensors require it."""


def _read_table(path: Path, file: BinaryIO) -> _Table:
    """Reads the header of a safetensors file, of this or another program."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length_field = file.read(LENGTH_BYTES)
    length = int.from_bytes(length_field, "little")
    if size < LENGTH_BYTES or length > MAX_HEADER_BYTES:
        _raise_other_file(path, length_field + file.read(512))
    header = file.read(length)
    try:
        table = json.loads(header)
        metadata = table.pop(METADATA, {})
        data_bytes = max((_end(entry) for entry in table.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
        _raise_other_file(path, length_field + header)
    return _Table(header, table, metadata, LENGTH_BYTES + length + data_bytes)


def _end(entry: Mapping[str, Any]) -> int:
    """Where a tensor ends in the data; it must have the length of its shape, so that a file has no other content."""
    start, end = map(int, entry["data_offsets"])
    itemsize = ITEMSIZES.get(entry["dtype"])
    if itemsize is not None and end - start != itemsize * math.prod(map(int, entry["shape"])):
        raise ValueError("the length of a tensor is not that of its shape")
    return end


def _check_size(path: Path, file: BinaryIO, needed: int) -> None:
    if (size := file.seek(0, os.SEEK_END)) != needed:
        raise UserError(
            f"The checkpoint {path} has {size:,} bytes, but should have {needed:,}: it is truncated or damaged. Use "
            "another copy."
        )


def _raise_other_file(path: Path, start: bytes) -> NoReturn:
    if start[LENGTH_BYTES:].startswith(b'{"' + METADATA.encode()):
        raise UserError(f"The checkpoint {path} is truncated or damaged. Use another copy.")
    kind = kind_of(start)
    if kind is None:
        raise UserError(f"{path} is not a checkpoint, or it is damaged. Expected a .safetensors file.")
    raise UserError(f"{path} is not a checkpoint but {kind}. Expected a .safetensors file.")


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _is_finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())
