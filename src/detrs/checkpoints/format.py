"""The file a checkpoint is kept in: one safetensors file whose header carries JSON and a sha256 of every tensor.

safetensors runs no code on load, but notices no flipped byte, and writers that overwrite in place lose the old file on
a full disk. So here every byte is verified, each tensor by its own hash and the header by one that stands inside it
(computed with that hash's own 64 digits set to zero); and a file is replaced only by a whole one that is on the disk.

Any safetensors reader opens these files; the JSON is the entry ``detrs`` of their metadata.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from detrs.errors import UserError, did_you_mean
from detrs.files import replaced

FORMAT = 1
"""Version of the layout. A reader refuses a newer one; raise it when an old reader would misread the file."""

LENGTH_BYTES = 8  # safetensors: little-endian length of the header, the header, the data
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
NO_DIGEST = b"0" * 64

OTHER_FILES = (
    (b"PK\x03\x04", "a PyTorch .pth file (or another zip); detrs reads only .safetensors, which cannot run code"),
    (b"\x80", "a Python pickle (.pth, .pt, .pkl); detrs reads only .safetensors, which cannot run code"),
    (b"<", "a web page, so probably a failed download; download it again"),
    (b"version https://git-lfs", "a Git LFS pointer; run 'git lfs pull' to get the file itself"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file; detrs reads only .safetensors"),
    (b"{", "a JSON file; give the .safetensors file that belongs to it"),
)
"""First bytes of files that people take for a checkpoint, and what they are."""


class Checkpoint(NamedTuple):
    """What a file holds, verified."""

    tensors: dict[str, Tensor]
    """On the CPU, in the order in which they were saved."""
    meta: dict[str, Any]
    """As saved, through JSON (tuples are lists now), and ``format``."""


def save(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint so that ``path`` holds the old file or the whole new one, whatever happens meanwhile.

    Args:
        path: File to write or to replace; its folder exists.
        tensors: On any device, with any strides; those that share memory become independent copies.
        meta: Whatever JSON holds, finite numbers only. ``format`` is added.

    Raises:
        UserError: The file cannot be written (disk full, no permission); the old one stands, nothing else is left.
    """
    header, data = _serialize(tensors, {**meta, "format": FORMAT})
    needed = len(header) + len(data)
    with replaced(path, what="the checkpoint", needed=needed) as temporary, open(temporary, "xb") as file:
        file.write(header)
        file.write(data)


def load(path: Path, *, allow_non_finite: bool = False) -> Checkpoint:
    """Reads and verifies a checkpoint.

    Args:
        path: A file written by :func:`save`.
        allow_non_finite: Accept NaN and infinity in the weights, to look at a diverged run.

    Raises:
        UserError: There is no such file, it is no checkpoint (the message says what it is), it was written by a newer
            version, it is truncated or damaged anywhere, or it holds NaN or infinity.
    """
    try:
        with open(path, "rb") as file:
            hashes, meta = _read_header(path, file)
            file.seek(0)
            tensors = safetensors.torch.load(file.read())
    except OSError as error:
        _refuse_unreadable(path, error)
    except (SafetensorError, KeyError, RuntimeError) as error:  # a header whose hash is right and whose content is not
        raise UserError(f"The checkpoint {path} is damaged ({error}); use another copy of it.") from error
    if hashes.keys() != tensors.keys():
        raise UserError(f"The checkpoint {path} is damaged (its list of tensors is wrong); use another copy of it.")

    tensors = {name: tensors[name] for name in hashes}  # the order they were saved in
    wrong = [name for name, tensor in tensors.items() if _sha256(tensor) != hashes[name]]
    if wrong:
        raise UserError(
            f"The checkpoint {path} is damaged: the bytes of {some_of(wrong)} are not those that were saved; "
            "use another copy of it."
        )
    poisoned = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if poisoned and not allow_non_finite:
        raise UserError(
            f"The checkpoint {path} holds NaN or infinity in {some_of(poisoned)}: the run that wrote it had diverged; "
            "use an earlier checkpoint."
        )
    return Checkpoint(tensors, meta)


def read_meta(path: Path) -> dict[str, Any]:
    """Reads only the header, whatever the size of the file: meta data verified, tensors neither read nor verified.

    Raises:
        UserError: As :func:`load`, for everything that the header and the size of the file show.
    """
    try:
        with open(path, "rb") as file:
            return _read_header(path, file)[1]
    except OSError as error:
        _refuse_unreadable(path, error)


def _serialize(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> tuple[bytes, memoryview]:
    """The file in two pieces: header (with its length) and data."""
    independent: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        independent[name] = tensor.clone() if storage in storages else tensor  # safetensors refuses shared memory
        storages.add(storage)
    envelope = {
        "header_sha256": NO_DIGEST.decode(),
        "meta": meta,
        "sha256": {name: _sha256(tensor) for name, tensor in independent.items()},
    }
    content = safetensors.torch.save(independent, metadata={"detrs": json.dumps(envelope, allow_nan=False)})
    data_at = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    header = content[LENGTH_BYTES:data_at]
    digest = hashlib.sha256(header).hexdigest().encode()
    # The metadata come first in the header, and the hash first in them: the first 64 zeros are its place.
    return content[:LENGTH_BYTES] + header.replace(NO_DIGEST, digest, 1), memoryview(content)[data_at:]


def _read_header(path: Path, file: BinaryIO) -> tuple[dict[str, str], dict[str, Any]]:
    """Hashes of the tensors and meta data, both verified, and the size of the file checked."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length_field = file.read(LENGTH_BYTES)
    length = int.from_bytes(length_field, "little")
    if size < LENGTH_BYTES or length > MAX_HEADER_BYTES:
        _refuse_other_file(path, length_field + file.read(64))
    header = file.read(length)
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", {})
        data_bytes = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        _refuse_other_file(path, length_field + header)
    if not isinstance(metadata, dict) or "detrs" not in metadata:
        raise UserError(
            f"{path} is a safetensors file of another program: it lacks the entry that says which detector it is; "
            "give a checkpoint that detrs saved."
        )
    try:
        envelope = json.loads(metadata["detrs"])
        digest, meta, hashes = envelope["header_sha256"].encode(), envelope["meta"], envelope["sha256"]
        newer, version = meta["format"] > FORMAT, meta.get("detrs", "unknown")
        intact = hashlib.sha256(header.replace(digest, NO_DIGEST, 1)).hexdigest().encode() == digest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"The checkpoint {path} is damaged (its header is unreadable); use another copy.") from error
    if newer:
        raise UserError(
            f"The checkpoint {path} has format {meta['format']} (written by detrs {version}), and this version of "
            f"detrs reads formats up to {FORMAT}; update detrs."
        )
    if not intact:
        raise UserError(f"The checkpoint {path} is damaged (its header is not as it was saved); use another copy.")
    if size != LENGTH_BYTES + length + data_bytes:
        raise UserError(
            f"The checkpoint {path} holds {size:,} bytes and should hold {LENGTH_BYTES + length + data_bytes:,}: "
            "it was cut off or damaged; use another copy."
        )
    return hashes, meta


def _refuse_other_file(path: Path, start: bytes) -> NoReturn:
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise UserError(f"{path} is empty; a checkpoint was expected. Use another copy.")
    for prefix, what in OTHER_FILES:
        if start.startswith(prefix):
            raise UserError(f"{path} is no checkpoint: it is {what}.")
    raise UserError(f"{path} is no checkpoint, or a damaged one; give a .safetensors file that detrs saved.")


def _refuse_unreadable(path: Path, error: OSError) -> NoReturn:
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a dangling link to {os.readlink(path)}; a checkpoint was expected.") from error
    if isinstance(error, FileNotFoundError):
        near = [file.name for file in path.parent.glob("*.safetensors")] if path.parent.is_dir() else []
        raise UserError(f"There is no checkpoint {path}.{did_you_mean(path.name, near)}") from error
    if path.is_dir():
        raise UserError(f"{path} is a folder; give the .safetensors file in it.") from error
    raise UserError(f"Cannot read the checkpoint {path}: {error.strerror}.") from error


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def _is_finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())


def some_of(names: list[str]) -> str:
    """The first five names and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
