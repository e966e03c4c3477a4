"""Prediction: images to detections, with decoding, resizing and normalization as in training."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Self

import torch
from jaxtyping import UInt8
from torch import Tensor

from detrs.checkpoints.detector import DEFAULT_THRESHOLD, TrainedDetector
from detrs.checkpoints.sources import open_detector
from detrs.devices import pick_device
from detrs.errors import UserError
from detrs.sources import OnError, Source, decoded, handler
from detrs.structures import Batch, Detections


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
        readable = decoded(sources, allow_urls, handler(on_error))
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
