"""The one entrance for trained detectors: our own checkpoints and exported files, those of others, the Hub.

``open_detector`` decides by the content of a file, not by its name, and never executes code in it. The tables of
:data:`READERS` cover official files; :mod:`detrs.checkpoints.published` has what their weights do not show.
"""

import hashlib
import importlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from detrs.checkpoints import format, hub, lookup, published
from detrs.checkpoints.detector import TrainedDetector, load_detector
from detrs.checkpoints.file_names import BEST, CONFIG, OLD_WEIGHTS, TORCH_SUFFIXES, WEIGHTS
from detrs.checkpoints.foreign.torch_file import read_torch_file
from detrs.checkpoints.foreign.transformers import load_transformers, read_json, read_safetensors
from detrs.checkpoints.onnx_file import START as ONNX_START
from detrs.checkpoints.onnx_file import load_onnx
from detrs.checkpoints.program_file import is_program, load_program
from detrs.checkpoints.published import Published
from detrs.errors import UserError
from detrs.files import open_regular

logger = logging.getLogger("detrs")

READERS = ("official_detr", "official_dab", "official_anchor_detr", "official_sparse_rcnn", "torchvision_faster_rcnn")
"""Modules of ``foreign`` with ``matches(keys)`` and ``read(tensors, source, args)``; the first match is used."""

TORCH_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

OF_TRANSFORMERS = ("model.backbone.", "model.encoder.", "model.decoder.")
"""Starts of the names of tensors in ``transformers``."""

WRAPPERS = ("module.", "_orig_mod.", "ema.")
"""Prefixes of DistributedDataParallel, ``torch.compile``, and averages of the weights in other programs."""

OWN, FOLDER, OFFICIAL = "checkpoint of detrs", "folder of transformers", "official weights"
EXPORTED = "exported file"
"""Kinds of sources."""


class Source(NamedTuple):
    """A detector, and what it was read from."""

    detector: TrainedDetector
    kind: str
    """One of ``OWN``, ``FOLDER``, ``OFFICIAL`` and ``EXPORTED``."""
    path: Path
    """The file, or the folder of ``transformers``."""
    published: Published | None
    """Entry of the table if the Hub id or the file name is known."""


def open_detector(source: str | Path) -> TrainedDetector:
    """Read a detector from any supported source; the model is on the CPU, in evaluation mode.

    Args:
        source: A ``best.safetensors`` or the folder of a run; a .onnx or .pt2 file of ``detrs.export``; a folder of
            ``transformers``, or its weights; a .pth, .pt or .bin file of an official repository; a Hub id
            ``owner/name`` or ``owner/name@revision``, which is used if there is no such path.

    Raises:
        UserError: There is no such source, it is damaged or not supported, or it contains code.
    """
    return open_source(source).detector


def open_weights(source: str | Path) -> TrainedDetector:
    """As :func:`open_detector`, for what needs the weights of a model: exported files do not have them by name.

    Raises:
        UserError: as for ``open_detector``; or it is an exported file.
    """
    found = open_source(source)
    if found.kind == EXPORTED:
        raise UserError(
            f"'{source}' is an exported file, which predicts, but has no weights to train, convert or upload. Expected "
            "the checkpoint that it was exported from."
        )
    return found.detector


def open_source(source: str | Path) -> Source:
    """As :func:`open_detector`, with a description of the source."""
    found = lookup.find(source)
    if isinstance(found, Path):
        return _open_path(found, published.find(found.name))
    known = None if found.revision else published.find(found.name)
    return _open_path(hub.download(found), known)


def _open_path(path: Path, known: Published | None) -> Source:
    if path.is_dir():
        return _open_folder(path, known)
    if path.name == CONFIG and path.is_file():
        raise UserError(f"'{path}' has settings, but no weights. Pass its folder '{path.parent}'.")
    try:
        with open_regular(path) as file:
            start = file.read(4)
    except OSError:
        start = b""  # load_detector has the message
    if path.suffix == ".onnx" or (start[:1] == ONNX_START and path.suffix != ".safetensors"):
        return Source(load_onnx(path), EXPORTED, path, None)
    if is_program(start, path):
        return Source(load_program(path), EXPORTED, path, None)
    if (start.startswith(TORCH_STARTS) and path.suffix != ".safetensors") or path.suffix in TORCH_SUFFIXES:
        if path.name == OLD_WEIGHTS and (path.parent / CONFIG).exists():
            return _open_folder(path.parent, known)
        return _open_official(path, *read_torch_file(path), known)
    try:
        return Source(load_detector(path), OWN, path, None)
    except format.ForeignError:
        if path.name == WEIGHTS and (path.parent / CONFIG).exists():
            return _open_folder(path.parent, known)
        return _open_official(path, read_safetensors(path), {}, known)


def _open_folder(folder: Path, known: Published | None) -> Source:
    lookup.check_folder(folder)
    if lookup.is_run_folder(folder):
        return Source(load_detector(folder), OWN, folder / BEST, None)
    detector = load_transformers(folder)
    return Source(_promised(detector, known), FOLDER, folder, known)


def _open_official(path: Path, tensors: dict[str, Tensor], args: dict[str, Any], known: Published | None) -> Source:
    tensors = without_wrapper(tensors)
    for name in READERS:
        reader = importlib.import_module(f"detrs.checkpoints.foreign.{name}")
        if not reader.matches(tensors.keys()):
            continue
        if known is not None:
            args = {"dilation": known.dilated, **args}
        detector = reader.read(tensors, path, args)
        if known is not None and known.sha256 is not None and not file_sha256(path).startswith(known.sha256):
            logger.warning(
                "'%s' is not the published file: its SHA-256 does not begin with %s. If you did not replace it, "
                "download it again.",
                path,
                known.sha256,
            )
            known = None
        return Source(_promised(detector, known), OFFICIAL, path, known)
    if not tensors:
        raise UserError(f"'{path}' has no tensors. Expected the weights of a detector.")
    if any(name.startswith(OF_TRANSFORMERS) for name in tensors):
        raise UserError(
            f"'{path}' has no {CONFIG} beside it. Weights of transformers are read with the settings in the same "
            "folder, as save_pretrained writes it."
        )
    if any(name.startswith(("mask_head.", "detr.")) for name in tensors):
        raise UserError(f"The weights in '{path}' are for segmentation. Expected those of object detection.")
    if any(name.startswith("layer1.0.conv1.") for name in tensors):
        raise UserError(
            f"'{path}' has the weights of a ResNet, not of a detector. A backbone is selected with --backbone, by the "
            "name of its timm model or a .safetensors file."
        )
    raise UserError(
        f"The weights in '{path}' are not of a supported detector: they begin with {format.abbreviated(list(tensors))}."
        " Expected the official files of DETR, Conditional DETR, Deformable DETR, DAB-DETR, DN-DETR, DINO, Anchor DETR "
        "or Sparse R-CNN, or torchvision's Faster R-CNN."
    )


def without_wrapper(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` without the prefix that a wrapper of the model puts before all of their names."""
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return without_wrapper({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def _promised(detector: TrainedDetector, known: Published | None) -> TrainedDetector:
    return detector if known is None else replace(detector, scores=known.scores)


def writer(source: Source) -> str:
    """Which program wrote a checkpoint, as far as the file shows it."""
    if source.kind == EXPORTED:
        return "detrs export"
    if source.kind == OWN:
        return f"detrs {format.read_meta(source.path).get('detrs', 'unknown')}"
    if source.kind == FOLDER:
        version = read_json(source.path / CONFIG).get("transformers_version")
        return f"transformers {version}" if isinstance(version, str) else "transformers"
    return "PyTorch (torch.save)" if source.path.suffix != ".safetensors" else "safetensors"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
