"""Prediction: images to detections, with decoding, resizing and normalization as in training."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from jaxtyping import UInt8
from torch import Tensor

from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.sources import open_detector
from detrs.choices import Precision
from detrs.config.detection import Threshold
from detrs.data.images import decode_image
from detrs.detection_settings import DetectionSettings, default_threshold, settings_of
from detrs.devices import pick_device
from detrs.errors import UserError
from detrs.lists import in_lists
from detrs.sources import OnError, Source, decoded, handler
from detrs.structures import Detections
from detrs.tiling import Tiling
from detrs.video.connection import Frame
from detrs.video.reading import check_frame_arguments, frame_batches
from detrs.video.sources import parse_source


class ImageDetections(NamedTuple):
    """An image and its detections."""

    image: UInt8[Tensor, "3 H W"]
    """As decoded: uint8, RGB, upright."""
    detections: Detections


class FrameDetections(NamedTuple):
    """A frame of a video and its detections."""

    image: UInt8[Tensor, "3 H W"]
    """uint8, RGB, upright."""
    detections: Detections
    frame_index: int
    """Number of the frame in the video, from 0; frames that are not predicted count."""
    time_seconds: float
    """Since the start of the video; of a live source, since its first frame."""

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary: ``frame``, ``time_seconds``, and ``Detections.to_json``."""
        return {"frame": self.frame_index, "time_seconds": round(self.time_seconds, 6), **self.detections.to_json()}


class Predictor:
    """Detects objects in images with a trained detector.

    Args:
        detector: a model with its classes, preprocessing and settings; moved to ``device``, in evaluation mode.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        max_detections: largest number of detections per image; by default as in the detector's evaluation.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto``: ``bf16`` where the device multiplies it in hardware, else
            ``fp32``. Exported files have their own.
        nms: IoU of non-maximum suppression, in (0, 1]; 1: none; by default as in the detector's evaluation.

    Raises:
        UserError: there is no such device, it does not support the precision, ``max_detections`` is below 1, or ``nms``
            is out of range or that of an exported file with another one.
    """

    def __init__(
        self,
        detector: TrainedDetector,
        device: str = "auto",
        max_detections: int | None = None,
        precision: Precision = "auto",
        nms: float | None = None,
    ) -> None:
        if max_detections is not None:
            if max_detections < 1:
                raise UserError(f"max_detections is {max_detections}, but must be at least 1.")
            experiment = detector.experiment
            evaluation = replace(experiment.evaluation, max_detections=max_detections)
            detector = replace(detector, experiment=replace(experiment, evaluation=evaluation))
        self.device = pick_device(device)
        self.detector = detector.suppressing(nms).on(self.device, precision)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        device: str = "auto",
        max_detections: int | None = None,
        precision: Precision = "auto",
        nms: float | None = None,
    ) -> Self:
        """The predictor of a trained detector.

        Args:
            checkpoint: a ``best.safetensors`` or the folder of a run; published weights: a Hub id such as
                ``facebook/detr-resnet-50``, a folder of ``transformers``, or a .pth file of an official repository.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
            max_detections: largest number of detections per image; by default as in the detector's evaluation.
            precision: as for ``Predictor``.
            nms: as for ``Predictor``.

        Raises:
            UserError: there is no such checkpoint, it cannot be used, there is no such device or precision, or ``nms``
                cannot be used.
        """
        return cls(open_detector(checkpoint), device, max_detections, precision, nms)

    @property
    def precision(self) -> str:
        """``fp32``, ``bf16`` or ``fp16``; ``int8`` also of exported files."""
        return self.detector.arithmetic

    @property
    def nms(self) -> float | None:
        """IoU of non-maximum suppression where a call has none of its own; ``None``: there is no suppression."""
        return self.detector.experiment.evaluation.suppression

    @property
    def threshold(self) -> float:
        """The default of the smallest score of a detection: the detector's own ``threshold``, which maximizes F1 on
        its validation split, or 0.5 if it has none."""
        return default_threshold(self.detector)

    def __call__(
        self,
        sources: Source | Iterable[Source],
        *,
        threshold: Threshold | None = None,
        batch_size: int = 8,
        classes: str | Iterable[str] | None = None,
        nms: float | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        whole_image: bool = True,
        allow_urls: bool = False,
        on_error: OnError = "raise",
    ) -> list[Detections]:
        """The detections of each image, in the order of the sources; for the arguments see ``predict_iter``.

        Raises:
            UserError: as ``predict_iter``.
        """
        found = self.predict_iter(
            sources,
            threshold=threshold,
            batch_size=batch_size,
            classes=classes,
            nms=nms,
            tile=tile,
            overlap=overlap,
            whole_image=whole_image,
            allow_urls=allow_urls,
            on_error=on_error,
        )
        return [detections for _, detections in found]

    def predict_iter(
        self,
        sources: Source | Iterable[Source],
        *,
        threshold: Threshold | None = None,
        batch_size: int = 8,
        classes: str | Iterable[str] | None = None,
        nms: float | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        whole_image: bool = True,
        allow_urls: bool = False,
        on_error: OnError = "raise",
    ) -> Iterator[ImageDetections]:
        """Images and their detections, one by one, in the order of the sources.

        Args:
            sources: one source, or any iterable of them; it may be endless. A folder means the images directly in it,
                a glob those it matches (``**`` for sub-folders), both sorted and without hidden files.
            threshold: smallest score of a detection, in [0, 1]; by default ``self.threshold``. ``per-class``: that of
                each class, which the checkpoint contains.
            batch_size: images to read at a time. Images of equal size are batched without padding, so detections do
                not depend on other images.
            classes: names of the classes that are returned; by default all.
            nms: IoU above which a detection is suppressed by a better one of its class, in (0, 1]; 1: there is
                no non-maximum suppression. By default ``self.nms``.
            tile: sides in pixels of overlapping tiles, in which objects of larger images are detected. The limit
                ``max_detections`` is that of each tile then.
            overlap: smallest overlap of neighboring tiles, a fraction of their side.
            whole_image: with ``tile``, also detect objects in the whole image, for those that are larger than a tile.
            allow_urls: download ``http://`` and ``https://`` sources.
            on_error: what to do with a source that cannot be read, or that has too many tiles.

        Yields:
            An image and its detections in pixels of that image; ``detections.source`` is its path or URL.

        Raises:
            UserError: an argument is out of range; or, with ``on_error="raise"``, a source cannot be read.
        """
        settings = settings_of(
            self.detector,
            threshold=threshold,
            batch_size=batch_size,
            classes=classes,
            nms=nms,
            tile=tile,
            overlap=overlap,
            whole_image=whole_image,
        )
        handle = handler(on_error)
        readable = decoded(sources, allow_urls, handle)
        if settings.tiling is not None:
            readable = _with_few_tiles(readable, settings.tiling, handle)
        return self._batches(readable, settings)  # not a generator: arguments are checked now

    def detect(
        self,
        images: Sequence[UInt8[Tensor, "3 _ _"]],
        settings: DetectionSettings,
        sources: Sequence[str | None] | None = None,
    ) -> list[Detections]:
        """The detections of decoded images: the path of all methods.

        Args:
            images: uint8, RGB, upright, of any size.
            settings: of ``settings_of``.
            sources: path or URL of each image.
        """
        detector = self.detector.suppressing(settings.nms)
        found = detector.detect_images(
            images, sources, device=self.device, batch_size=settings.batch_size, tiling=settings.tiling
        )
        return [settings.selected(each) for each in found]

    def predict_video(
        self,
        source: str | Path | int,
        *,
        threshold: Threshold | None = None,
        batch_size: int = 8,
        stride: int = 1,
        max_frames: int | None = None,
        classes: str | Iterable[str] | None = None,
        nms: float | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
        whole_image: bool = True,
        allow_urls: bool = False,
        reconnect: int = 4,
        on_error: OnError = "skip",
    ) -> Iterator[FrameDetections]:
        """Frames of a video and their detections, one by one. Requires PyAV: ``pip install 'detrs[stream]'``.

        A frame is predicted as an image of its size is; it depends on no other frame. Files are read completely. Of a
        live source, frames are dropped if prediction is slower, and the newest are predicted.

        Args:
            source: a video file, the number of a camera such as 0, a device such as ``/dev/video0``, or the URL of a
                stream (RTSP, RTMP, HTTP, SRT, UDP).
            threshold: as in ``predict_iter``.
            batch_size: frames to read at a time.
            stride: step between two predicted frames; 5 predicts frames 0, 5, 10, ...
            max_frames: number of predicted frames after which to stop; by default all.
            classes: as in ``predict_iter``.
            nms: as in ``predict_iter``.
            tile: as in ``predict_iter``.
            overlap: as in ``predict_iter``.
            whole_image: as in ``predict_iter``.
            allow_urls: open URLs.
            reconnect: attempts to open a live source again after it broke off or ended, 1, 2, 4, ... seconds apart.
            on_error: what to do with a damaged frame, and if a live source breaks off.

        Yields:
            A frame, its detections in its pixels, its index and time; ``detections.source`` is the name of the video,
            without the password of a URL.

        Raises:
            UserError: an argument is out of range; PyAV is not installed; the video cannot be opened or has no frame;
                or, with ``on_error="raise"``, a frame is damaged.
        """
        settings = settings_of(
            self.detector,
            threshold=threshold,
            batch_size=batch_size,
            classes=classes,
            nms=nms,
            tile=tile,
            overlap=overlap,
            whole_image=whole_image,
        )
        check_frame_arguments(stride, max_frames, reconnect)
        video = parse_source(source, allow_urls)
        batches = frame_batches(
            video,
            batch_size=batch_size,
            stride=stride,
            max_frames=max_frames,
            reconnect=reconnect,
            damaged=handler(on_error),
        )
        return self._frames(batches, video.name, settings)  # not a generator: arguments are checked now

    def _frames(
        self, batches: Generator[list[Frame], None, None], name: str, settings: DetectionSettings
    ) -> Iterator[FrameDetections]:
        with closing(batches):
            for batch in batches:
                images = [decode_image(frame.pixels) for frame in batch]
                found = self.detect(images, settings, [name] * len(images))
                for frame, image, each in zip(batch, images, found, strict=True):
                    yield FrameDetections(image, each, frame.frame_index, frame.time_seconds)

    def _batches(
        self, readable: Iterator[tuple[str | None, Tensor]], settings: DetectionSettings
    ) -> Iterator[ImageDetections]:
        for items in in_lists(readable, settings.batch_size):
            images = [image for _, image in items]
            found = self.detect(images, settings, [name for name, _ in items])
            yield from map(ImageDetections, images, found)


def load(checkpoint: str | Path, device: str = "auto", precision: Precision = "auto") -> Predictor:
    """The predictor of a ``best.safetensors`` or of published weights: ``Predictor.load``."""
    return Predictor.load(checkpoint, device, precision=precision)


def _with_few_tiles(
    readable: Iterator[tuple[str | None, Tensor]], tiling: Tiling, handle: Callable[[str, UserError], object]
) -> Iterator[tuple[str | None, Tensor]]:
    """The images without those that have too many tiles, for which ``handle`` is called."""
    for name, image in readable:
        try:
            tiling.views((image.shape[1], image.shape[2]))
        except UserError as error:
            handle(name or type(image).__name__, error)
        else:
            yield name, image
