"""Prediction: images to detections, with decoding, resizing and normalization as in training."""

import http.client
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from detrs.checkpoints.detector import DEFAULT_THRESHOLD, TrainedDetector
from detrs.checkpoints.sources import open_detector
from detrs.data.folders import IMAGE_SUFFIXES, find_images
from detrs.data.images import decode_image
from detrs.devices import pick_device
from detrs.errors import UserError
from detrs.structures import Batch, Detections

Source = str | Path | bytes | BinaryIO | Image.Image | NDArray[Any] | Tensor
"""A file, folder, glob pattern or URL; the bytes of a file; a file opened in binary mode (also ``BytesIO``), of which
the rest is read; a Pillow image; an array (H, W, 3); a tensor (3, H, W)."""
EXPECTED = "a path, URL, bytes, binary file, Pillow image, array (H, W, 3) or tensor (3, H, W)"
OnError = Literal["raise", "skip"] | Callable[[str, UserError], object]
"""``raise``; ``skip``: log a warning and continue; or a function of (source, error)."""

MAX_DOWNLOAD_BYTES = 100_000_000
DOWNLOAD_TIMEOUT_SECONDS = 30

logger = logging.getLogger("detrs")


class ImageDetections(NamedTuple):
    """An image and its detections."""

    image: UInt8[Tensor, "3 H W"]
    """As decoded: uint8, RGB, upright."""
    detections: Detections


class Predictor:
    """Detects objects in images with a trained detector.

    Args:
        detector: a model with its classes, preprocessing and settings; moved to ``device``, in evaluation mode.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        max_detections: largest number of detections per image; by default as in the detector's evaluation.

    Raises:
        UserError: there is no such device, or ``max_detections`` is below 1.
    """

    def __init__(self, detector: TrainedDetector, device: str = "auto", max_detections: int | None = None) -> None:
        if max_detections is not None:
            if max_detections < 1:
                raise UserError(f"max_detections is {max_detections}, but must be at least 1.")
            experiment = detector.experiment
            evaluation = replace(experiment.evaluation, max_detections=max_detections)
            detector = replace(detector, experiment=replace(experiment, evaluation=evaluation))
        self.device = pick_device(device)
        self.detector = detector
        detector.module.to(self.device).eval()

    @classmethod
    def load(cls, checkpoint: str | Path, device: str = "auto", max_detections: int | None = None) -> Self:
        """The predictor of a trained detector.

        Args:
            checkpoint: a ``best.safetensors`` or the folder of a run; published weights: a Hub id such as
                ``facebook/detr-resnet-50``, a folder of ``transformers``, or a .pth file of an official repository.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
            max_detections: largest number of detections per image; by default as in the detector's evaluation.

        Raises:
            UserError: there is no such checkpoint, it cannot be used, or there is no such device.
        """
        return cls(open_detector(checkpoint), device, max_detections)

    @property
    def threshold(self) -> float:
        """The default of the smallest score of a detection: the detector's own ``threshold``, which maximizes F1 on
        its validation split, or 0.5 if it has none."""
        own = self.detector.threshold
        return DEFAULT_THRESHOLD if own is None else own

    def __call__(
        self,
        sources: Source | Iterable[Source],
        *,
        threshold: float | None = None,
        batch_size: int = 8,
        allow_urls: bool = False,
        on_error: OnError = "raise",
    ) -> list[Detections]:
        """The detections of each image, in the order of the sources; for the arguments see ``predict_iter``.

        Raises:
            UserError: as ``predict_iter``.
        """
        found = self.predict_iter(
            sources, threshold=threshold, batch_size=batch_size, allow_urls=allow_urls, on_error=on_error
        )
        return [detections for _, detections in found]

    def predict_iter(
        self,
        sources: Source | Iterable[Source],
        *,
        threshold: float | None = None,
        batch_size: int = 8,
        allow_urls: bool = False,
        on_error: OnError = "raise",
    ) -> Iterator[ImageDetections]:
        """Images and their detections, one by one, in the order of the sources.

        Args:
            sources: one source, or any iterable of them; it may be endless. A folder means the images directly in it,
                a glob those it matches (``**`` for sub-folders), both sorted and without hidden files.
            threshold: smallest score of a detection, in [0, 1]; by default ``self.threshold``.
            batch_size: images to read at a time. Images of equal size are batched without padding, so detections do
                not depend on other images.
            allow_urls: download ``http://`` and ``https://`` sources.
            on_error: what to do with a source that cannot be read.

        Yields:
            An image and its detections in pixels of that image; ``detections.source`` is its path or URL.

        Raises:
            UserError: an argument is out of range; or, with ``on_error="raise"``, a source cannot be read.
        """
        threshold = self.threshold if threshold is None else threshold
        check_threshold(threshold)
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, but must be at least 1.")
        readable = _decoded(sources, allow_urls, _handler(on_error))
        return self._batches(readable, threshold, batch_size)  # not a generator: arguments are checked now

    def _batches(
        self, readable: Iterator[tuple[str | None, Tensor]], threshold: float, batch_size: int
    ) -> Iterator[ImageDetections]:
        while items := list(islice(readable, batch_size)):
            yield from self._predict(items, threshold)

    def _predict(self, items: Sequence[tuple[str | None, Tensor]], threshold: float) -> list[ImageDetections]:
        """The detections of some images; those of equal size are one batch."""
        groups: dict[torch.Size, list[int]] = {}
        resized = [self.detector.preprocessing.resize(image) for _, image in items]
        for index, image in enumerate(resized):
            groups.setdefault(image.shape, []).append(index)
        found: dict[int, ImageDetections] = {}
        for group in groups.values():
            detected = self.detector.detect(
                _batch([resized[index] for index in group]).to(self.device),
                [(items[index][1].shape[1], items[index][1].shape[2]) for index in group],
                [items[index][0] for index in group],
            )
            found |= {
                i: ImageDetections(items[i][1], each.filter(threshold)) for i, each in zip(group, detected, strict=True)
            }
        return [found[index] for index in range(len(items))]


def check_threshold(threshold: float) -> None:
    """Raise ``UserError`` if ``threshold`` is not in [0, 1], for example a percentage."""
    if not 0 <= threshold <= 1:
        raise UserError(f"threshold is {threshold}, but must be in [0, 1].")


def load(checkpoint: str | Path, device: str = "auto") -> Predictor:
    """The predictor of a ``best.safetensors`` or of published weights: ``Predictor.load``."""
    return Predictor.load(checkpoint, device)


def _batch(images: list[Tensor]) -> Batch:
    """Images of equal size (3, H, W) as a batch without padding or targets."""
    padding = torch.zeros(len(images), *images[0].shape[1:], dtype=torch.bool)  # (B, H, W)
    return Batch(torch.stack(images), padding, ())


def _handler(on_error: OnError) -> Callable[[str, UserError], object]:
    if callable(on_error):
        return on_error
    if on_error not in ("raise", "skip"):
        raise UserError(f"on_error is {on_error!r}, but must be 'raise', 'skip' or a function of (source, error).")
    return _raise if on_error == "raise" else _warn


def _raise(source: str, error: UserError) -> None:
    raise error


def _warn(source: str, error: UserError) -> None:
    logger.warning("skipped: %s", error)


def _decoded(
    sources: Source | Iterable[Source], allow_urls: bool, handle: Callable[[str, UserError], object]
) -> Iterator[tuple[str | None, Tensor]]:
    """(name, image) of every source that can be read; ``handle`` is called for the others."""
    if _is_source(sources):
        sources = [sources]  # type: ignore[list-item]
    elif not isinstance(sources, Iterable) or isinstance(sources, dict):
        raise UserError(f"Expected {EXPECTED}, or an iterable of them, got {_described(sources)}.")
    for source in sources:
        try:
            images = _images_of(source)
        except UserError as error:
            handle(str(source), error)
            continue
        for image in images:
            name = str(image) if isinstance(image, str | Path) else None
            try:
                yield name, _downloaded(str(image), allow_urls) if _is_url(image) else decode_image(image)
            except UserError as error:
                handle(name or type(image).__name__, error)


def _is_source(value: object) -> bool:
    known = (str, Path, bytes, bytearray, memoryview, Image.Image, np.ndarray, Tensor)
    return isinstance(value, known) or callable(getattr(value, "read", None))


def _described(value: object) -> str:
    """A value that is not a source, in messages."""
    return "None" if value is None else f"an object of type '{type(value).__name__}'"


def _images_of(source: Any) -> list[Any]:
    """``_expanded``, with errors of the file system as ``UserError``."""
    try:
        return _expanded(source)
    except UserError:
        raise
    except OSError as error:  # no permission, a name that is too long
        raise UserError(f"'{source!s}' cannot be opened: {error.strerror}.") from error
    except (RuntimeError, ValueError, NotImplementedError) as error:  # unknown ~user, "**.jpg"
        if not isinstance(source, str | Path):
            raise
        hint = "" if "**" not in str(source) else "; '**' must be a whole path component, as in 'images/**/*.jpg'"
        raise UserError(f"'{source!s}' is not a valid path or pattern: {str(error).rstrip('.')}{hint}.") from error


def _expanded(source: Any) -> list[Any]:
    """The images of a folder or glob; any other source is itself.

    Raises:
        UserError: the folder or glob has no image.
    """
    if not _is_source(source):
        raise UserError(f"Expected {EXPECTED}, got {_described(source)}.")
    if isinstance(source, bytearray | memoryview):
        return [bytes(source)]
    if not isinstance(source, str | Path | bytes | Image.Image | np.ndarray | Tensor):
        return [_content(source)]
    if not isinstance(source, str | Path) or _is_url(source):
        return [source]
    if source == "":
        raise UserError("The source is an empty string. Expected a path; '.' is the working directory.")
    path = Path(source).expanduser()
    if path.is_dir():
        found = find_images(path.iterdir(), path)
        if not found.images:
            nested = find_images(path.rglob("*"), path).images
            within = f"; for images in sub-folders use '{path}/**/*'" if nested else ""
            also = f"; it contains {found.skipped()}: convert them to JPEG or PNG" if found.unsupported else ""
            raise UserError(f"The folder '{path}' has no images ({', '.join(IMAGE_SUFFIXES)}){also}{within}.")
        if found.unsupported:
            logger.warning("skipped in the folder '%s': %s", path, found.skipped())
        return [*found.images]
    if path.exists() or not any(sign in str(path) for sign in "*?["):
        return [path]
    root = Path(path.anchor)
    found = find_images(root.glob(str(path.relative_to(path.anchor))), path)
    if found.unsupported:
        logger.warning("skipped of those that match '%s': %s", path, found.skipped())
    if not found.images:
        raise UserError(f"No images ({', '.join(IMAGE_SUFFIXES)}) match '{path}'.")
    return [*found.images]


def _content(file: BinaryIO) -> bytes:
    """The rest of an open file.

    Raises:
        UserError: it was opened in text mode, or is closed.
    """
    try:
        content = file.read()
    except (OSError, ValueError) as error:  # closed, not readable, or text that is not UTF-8
        raise UserError(f"Cannot read the open file: {error}. Open it in binary mode ('rb').") from error
    if not isinstance(content, bytes):
        raise UserError("The open file returns text. Open it in binary mode ('rb').")
    return content


def _is_url(source: Source) -> bool:
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def _downloaded(url: str, allowed: bool) -> Tensor:
    if not allowed:
        raise UserError(
            f"{url} is a URL, and downloads are disabled by default: pass allow_urls=True (--allow-urls on the command "
            "line) or give a file."
        )
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            data = response.read(MAX_DOWNLOAD_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise UserError(f"{url} could not be downloaded: {error}.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(f"{url} could not be downloaded: {error}.") from error
    if len(data) > MAX_DOWNLOAD_BYTES:
        raise UserError(f"{url} is larger than {MAX_DOWNLOAD_BYTES // 10**6} MB: download it and give the file.")
    try:
        return decode_image(data)
    except UserError as error:
        raise UserError(f"{url}: {error}") from error
