"""PyTorch's own weight files (.pth, .pt, .bin): the only place where they are read, and no code in them runs.

A file is inspected first (``pickle_inspection``): it may contain dense tensors, containers and plain values, and the
tensors may not need more memory than the file has. Then ``torch.load(weights_only=True)`` reads it. Both formats of
``torch.save`` are supported: ZIP archives (PyTorch 1.6 and later) and the older series of pickles.
"""

import argparse
import math
import os
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from detrs.checkpoints.file_names import TORCH_SUFFIXES
from detrs.checkpoints.foreign.pickle_inspection import MAX_PICKLE_BYTES, RejectedError, inspect
from detrs.checkpoints.format import abbreviated
from detrs.errors import UserError
from detrs.files import open_regular, unreadable
from detrs.isolation import warnings_ignored
from detrs.magic import kind_of

STATE_DICTS = ("model", "state_dict", "model_state")
"""Entries of a training checkpoint that may hold the state dict."""
ZIP_START = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
DAMAGED_ZIP = "is a damaged or truncated ZIP archive. Download it again."
MAX_DIRECTORY_BYTES = 4_000_000
"""Length of the table of contents of a ZIP archive; 20,000 storages need 2 MB."""
MAX_SHARED = 2
"""All tensors together may have this many times the bytes of the file: some share memory, such as tied heads."""
MAX_ARGS = 10_000
MAX_ARGS_DEPTH = 20

_allowing = threading.Lock()


class TorchFile(NamedTuple):
    """The content of a file."""

    tensors: dict[str, Tensor]
    """The state dict, on the CPU; all values are finite. Tensors may share memory."""
    args: dict[str, Any]
    """Settings saved beside it: the entries of ``args`` (DETR and its descendants), and ``meta`` (mmdetection) if
    present. Plain Python values; others are replaced by the name of their type."""


def read_torch_file(path: str | Path) -> TorchFile:
    """Read a file without executing code in it.

    Raises:
        UserError: The file does not exist, is damaged, contains anything but tensors and plain values, needs more
            memory than its size, or contains NaN or infinity.
    """
    try:
        with open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            loaded = _load(file, size)
            return TorchFile(_state_dict(loaded, size), _args(loaded))
    except OSError as error:
        raise unreadable(path, error, f"Expected a weight file ({', '.join(TORCH_SUFFIXES)})") from error
    except RejectedError as error:
        raise UserError(f"'{path}' {error}") from error


def _load(file: BinaryIO, size: int) -> Any:
    file.seek(0)
    start = file.read(64)
    if start.startswith(ZIP_START):
        _inspect_zip(file, size)
    else:
        _inspect_legacy(file, size, start)
    file.seek(0)
    try:
        with _namespace_allowed(), warnings_ignored():
            return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # pickles, ZIP archives and storages raise errors of many types
        raise RejectedError("is damaged: PyTorch cannot read it. Download it again.") from error


@contextmanager
def _namespace_allowed() -> Iterator[None]:
    """Inside, ``torch.load`` accepts the command line arguments that the authors of DETR save beside the weights."""
    with _allowing:  # the list is global, and torch.serialization.safe_globals does not count its users
        if argparse.Namespace in torch.serialization.get_safe_globals():
            yield
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                yield


def _inspect_zip(file: BinaryIO, size: int) -> None:
    """Check the entries of an archive, then its pickle and the sizes that it declares."""
    _check_directory(file, size)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            _check_entries(archive.infolist(), size)
            root = next((name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")), None)
            if root is None:
                raise RejectedError("is a ZIP archive without weights. Expected a file written by torch.save.")
            if any(name.startswith((f"{root}code/", f"{root}constants.pkl")) for name in entries):
                raise RejectedError(
                    "is a TorchScript archive, which contains code. Code in weight files is never executed. Expected a "
                    "state dict: save it with torch.save(model.state_dict(), path)."
                )
            if entries[f"{root}data.pkl"].file_size > MAX_PICKLE_BYTES:
                raise RejectedError(f"has a pickle above {MAX_PICKLE_BYTES:,} bytes. Expected a state dict.")
            inspection = inspect(archive.read(f"{root}data.pkl"))
    except RejectedError:  # a ValueError
        raise
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise RejectedError(DAMAGED_ZIP) from error
    for key, storage in inspection.storages.items():
        entry = entries.get(f"{root}data/{key}")
        if entry is None or entry.file_size != storage.num_bytes:
            found = "no bytes" if entry is None else f"{entry.file_size:,} bytes"
            raise RejectedError(
                f"is damaged: a storage should have {storage.num_bytes:,} bytes, but the file has {found}. "
                "Download it again."
            )


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    names = {entry.filename.casefold() for entry in entries}  # PyTorch finds entries without regard to case
    roots = {name.split("/")[0] for name in names}
    if len(names) != len(entries) or len(roots) != 1:
        raise RejectedError("is a ZIP archive with ambiguous names. Expected a file written by torch.save.")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise RejectedError(
                f"has a compressed entry '{entry.filename[:80]}'. torch.save does not compress: save it again with "
                "torch.save(model.state_dict(), path)."
            )
    if sum(entry.file_size for entry in entries) > size:
        raise RejectedError("is damaged: its entries are larger than the file. Download it again.")


def _check_directory(file: BinaryIO, size: int) -> None:
    """Check length and place of the table of contents of a ZIP archive, without reading it (APPNOTE.TXT, 4.3.14 to 16).

    It must be directly before its end record, where Python and PyTorch both read it: of two archives one after the
    other, Python reads the second and PyTorch the first.
    """
    end, locator, end64 = 22, 20, 56
    file.seek(max(size - end - locator - end64, 0))
    tail = file.read()
    record = tail[-end:]
    if not record.startswith(b"PK\x05\x06") or record[-2:] != b"\0\0":
        raise RejectedError(DAMAGED_ZIP)
    length, start, at = _number(record[12:16]), _number(record[16:20]), size - end
    if tail[-end - locator :].startswith(b"PK\x06\x07"):
        if not tail.startswith(b"PK\x06\x06"):
            raise RejectedError(DAMAGED_ZIP)
        at -= locator + end64
        length, start = (
            _number(tail[place : place + 8]) if short == 2**32 - 1 else short
            for place, short in ((40, length), (48, start))
        )
        if (_number(tail[40:48]), _number(tail[48:56])) != (length, start):
            raise RejectedError(DAMAGED_ZIP)
    if length > MAX_DIRECTORY_BYTES:
        raise RejectedError("is a ZIP archive with too many entries. Expected a file written by torch.save.")
    if start + length != at:
        raise RejectedError(DAMAGED_ZIP)


def _number(field: bytes) -> int:
    return int.from_bytes(field, "little")


def _inspect_legacy(file: BinaryIO, size: int, start: bytes) -> None:
    """Check the five pickles: magic number, version, platform, content, keys of the storages that follow."""
    if start[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and start[:1] not in (b"c", b"(", b"}"):
        kind = kind_of(start) or "not a PyTorch file, or it is damaged"
        raise RejectedError(f"is {kind}. Expected a file written by torch.save.")
    file.seek(0)
    head = file.read(MAX_PICKLE_BYTES)
    magic = inspect(head)
    if magic.value != LEGACY_MAGIC:
        raise RejectedError("is a Python pickle without tensors. Expected a file written by torch.save.")
    version = inspect(head, magic.end)
    platform = inspect(head, version.end)
    content = inspect(head, platform.end)
    keys = inspect(head, content.end)
    others = (magic, version, platform, keys)
    if version.value != LEGACY_PROTOCOL or any(each.storages for each in others):
        raise RejectedError("is damaged: its pickles are invalid. Download it again.")
    if type(keys.value) is not list or sorted(map(str, keys.value)) != sorted(content.storages):
        raise RejectedError("is damaged: its list of tensors is wrong. Download it again.")
    at = keys.end
    for key in keys.value:
        storage = content.storages[key]
        file.seek(at)
        stored = int.from_bytes(file.read(8), "little")
        at += 8 + storage.num_bytes
        if stored != storage.num_elements or at > size:
            raise RejectedError("is truncated or damaged: its tensors are larger than the file. Download it again.")


def _state_dict(loaded: Any, size: int) -> dict[str, Tensor]:
    """The tensors by name.

    Raises:
        RejectedError: There are none, an entry is not a dense tensor, or a value is not finite.
    """
    name = next((name for name in STATE_DICTS if _has_tensors(loaded, name)), None)
    found = loaded if name is None else loaded[name]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise RejectedError(
            f"contains no weights. Expected a state dict, or one in the entry {' or '.join(map(repr, STATE_DICTS))}."
        )
    tensors = {}
    for key, value in found.items():
        if type(key) is not str or not isinstance(value, Tensor):
            raise RejectedError(f"has an entry {str(key)[:80]!r} of type {type(value).__name__} among its weights.")
        tensors[key] = value.detach()
    needed = sum(value.numel() * value.element_size() for value in tensors.values())
    if needed > MAX_SHARED * size:
        raise RejectedError(
            f"has {size:,} bytes, but its tensors have {needed:,} in the same memory, which is too much."
        )
    non_finite = [key for key, value in tensors.items() if not _is_finite(value)]
    if non_finite:
        raise RejectedError(f"contains NaN or infinity in {abbreviated(non_finite)}. Use another weight file.")
    return tensors


def _has_tensors(loaded: Any, name: str) -> bool:
    found = loaded.get(name) if isinstance(loaded, Mapping) else None
    return isinstance(found, Mapping) and any(isinstance(value, Tensor) for value in found.values())


def _is_finite(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())


def _args(loaded: Any) -> dict[str, Any]:
    if not isinstance(loaded, Mapping):
        return {}
    args, meta = loaded.get("args"), loaded.get("meta")
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    budget = [MAX_ARGS]
    result = _plain(args, budget) if isinstance(args, Mapping) else {}
    if isinstance(meta, Mapping):
        result["meta"] = _plain(meta, budget)
    return dict(result)


def _plain(value: Any, budget: list[int], depth: int = 0) -> Any:
    """A copy of JSON-like values. Containers may be shared many times in the file, so their number is limited."""
    budget[0] -= 1
    if budget[0] < 0 or depth > MAX_ARGS_DEPTH:
        raise RejectedError("has settings beside its weights that are too large. Expected a state dict.")
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry, budget, depth + 1) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(entry, budget, depth + 1) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float) else f"{type(value).__name__}"
