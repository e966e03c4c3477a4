"""``best.safetensors``: a trained detector in one file, with everything needed to predict and its validation scores."""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from detrs import config, models, schema
from detrs.checkpoints import format
from detrs.checkpoints.lookup import advice, best_of
from detrs.checkpoints.skeleton import Skeleton
from detrs.choices import Precision, Resolved
from detrs.config import Experiment
from detrs.config.detection import check_nms
from detrs.data.preprocessing import Preprocessing
from detrs.devices import memory_errors
from detrs.errors import UserError
from detrs.models.detector import Model
from detrs.postprocess import detections, non_maximum, without_duplicates
from detrs.precision import autocast, resolve
from detrs.schema import from_dict, to_dict
from detrs.structures import Batch, Boxes, Classes, Detections
from detrs.tile_merging import merge
from detrs.tiling import Tiling, whole

DEFAULT_THRESHOLD = 0.5
"""Smallest score of a prediction of detectors without a threshold of their own: published weights, and those trained
without validation."""


class LayerDetections(NamedTuple):
    """The detections of one decoder layer in a batch."""

    detections: list[Detections]
    queries: list[Tensor] | None
    """For each image (N,) the query of each detection; ``None`` for models without queries."""
    num_queries: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedDetector:
    """A model with its weights, and everything else that determines what it detects."""

    module: Model
    classes: Classes
    preprocessing: Preprocessing
    experiment: Experiment
    """Its training settings; ``evaluation.max_detections`` limits the detections per image."""
    scores: dict[str, Any]
    """Promised scores on the validation split: ``ap``, ``ap50``, ... (``None``: undefined)."""
    step: int
    """Optimizer steps done."""
    epoch: int
    """Epoch of that step, from 1."""
    threshold: float | None = None
    """The score that maximizes F1 at IoU 0.5 on the validation split, which predictions use by default; ``None``:
    unknown, as in published weights, files of older versions and after training without validation."""
    class_thresholds: dict[str, float | None] = field(default_factory=dict)
    """Likewise for each class of the validation split alone."""
    precision: Resolved = "fp32"
    """Precision of ``detect`` and ``detect_layers``; without effect on exported files. Not stored, see ``on``."""
    own_precision: str | None = None
    """Precision of an exported file: ``fp32``, ``fp16``, ``int8``; ``None`` for other detectors."""

    own_nms: float | None = None
    """IoU of the non-maximum suppression in the graph of an exported file, which also is its ``evaluation.nms``."""

    @property
    def arithmetic(self) -> str:
        """The precision of detections, to report: ``fp32``, ``bf16``, ``fp16``; of exported files also ``int8``."""
        return self.own_precision or self.precision

    def on(self, device: torch.device, precision: Precision = "auto") -> Self:
        """The detector, ready to detect: moved to ``device``, in evaluation mode, with a precision.

        Raises:
            UserError: the device does not support the precision, or that of an exported file is another one.
        """
        if self.own_precision is None:
            precision = resolve(precision, device)
        elif precision in ("auto", self.own_precision):
            precision = "fp32"
        else:
            raise UserError(
                f"precision (--precision) is '{precision}', but an exported file has its own, {self.own_precision}: "
                "omit it, or use the checkpoint."
            )
        self.module.to(device).eval()
        return replace(self, precision=precision)

    def suppressing(self, nms: float | None) -> Self:
        """The detector with another ``evaluation.nms``; 1: no suppression; ``None``: its own.

        Raises:
            UserError: it is out of range, or an exported file has a suppression of its own.
        """
        check_nms(nms)
        evaluation = self.experiment.evaluation
        if nms is None or nms == evaluation.nms:
            return self
        if self.own_nms is not None:
            raise UserError(
                f"nms (--nms) is {nms:g}, but the exported file suppresses at {self.own_nms:g} itself: omit it, or "
                "export the checkpoint again with another one (detrs export --nms)."
            )
        return replace(self, experiment=replace(self.experiment, evaluation=replace(evaluation, nms=float(nms))))

    @torch.no_grad()  # not inference_mode, whose tensors cannot be changed in place later
    def detect(
        self, batch: Batch, image_sizes: Sequence[tuple[int, int]], sources: Sequence[str | None] | None = None
    ) -> list[Detections]:
        """The detections of a batch: the one path of evaluation, prediction and serving.

        Boxes are clipped to the image, unless ``evaluation.clip`` is False.

        Args:
            batch: uint8, resized and padded, on the device of ``module``.
            image_sizes: (height, width) in pixels of each original image.
            sources: path or URL of each image.
        """
        return self.in_pixels(self.boxes(self.preprocessing.normalize(batch)), image_sizes, sources)

    @torch.no_grad()
    def boxes(self, batch: Batch) -> Boxes:
        """What the model detects in a batch of normalized images, after ``evaluation.nms``."""
        return self.without_duplicates(self.candidates(batch))[0]

    @torch.no_grad()
    def candidates(self, batch: Batch) -> Boxes:
        """What the model detects in a batch of normalized images, before ``evaluation.nms``."""
        with self._computing(batch):
            return self.module.detect(batch.images, batch.padding, self.experiment.evaluation.max_detections)

    def without_duplicates(self, found: Boxes) -> tuple[Boxes, Int[Tensor, "B N"]]:
        """What remains after ``evaluation.nms``, and the place of each detection in ``found``."""
        nms = self.experiment.evaluation.suppression if self.own_nms is None else None
        return without_duplicates(found, nms, len(self.classes.names))

    def detect_images(
        self,
        images: Sequence[UInt8[Tensor, "3 _ _"]],
        sources: Sequence[str | None] | None = None,
        *,
        device: torch.device | str,
        batch_size: int = 8,
        tiling: Tiling | None = None,
    ) -> list[Detections]:
        """The detections of images of any size, by ``detect``. Those of equal resized size share a forward pass.

        Args:
            images: uint8, RGB, upright, not resized.
            sources: path or URL of each image.
            device: that of ``module``.
            batch_size: images or tiles per forward pass.
            tiling: detect objects in tiles of images that are larger than a tile. ``evaluation.max_detections`` is the
                limit of each tile then, and ``evaluation.nms`` is also of the whole image, after the tiles are merged.

        Raises:
            UserError: an image has too many tiles.
        """
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        windows = [[whole(size)] if tiling is None else tiling.views(size) for size in sizes]
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}  # resized size -> (image, view)
        for number, views in enumerate(windows):
            for view, window in enumerate(views):
                groups.setdefault(self.preprocessing.size_of(window.size), []).append((number, view))
        of_view: dict[tuple[int, int], Detections] = {}
        for group in groups.values():
            for start in range(0, len(group), batch_size):
                part = group[start : start + batch_size]
                parts = [windows[number][view].of(images[number]) for number, view in part]
                names = None if sources is None else [sources[number] for number, _ in part]
                batch = unpadded([self.preprocessing.resize(each) for each in parts]).to(device)
                found = self.detect(batch, [(each.shape[1], each.shape[2]) for each in parts], names)
                of_view |= zip(part, found, strict=True)
        merged = [
            merge(views, [of_view[number, view] for view in range(len(views))], sizes[number])
            for number, views in enumerate(windows)
        ]
        nms = self.experiment.evaluation.suppression
        return [
            each if nms is None or len(views) == 1 else each.rows(non_maximum(each, nms))
            for each, views in zip(merged, windows, strict=True)
        ]

    @torch.no_grad()
    def detect_layers(self, batch: Batch, image_sizes: Sequence[tuple[int, int]]) -> list[LayerDetections]:
        """The detections of each decoder layer; those of the last are ``detect``'s. Arguments as in ``detect``."""
        batch, limit = self.preprocessing.normalize(batch), self.experiment.evaluation.max_detections
        with self._computing(batch):
            layers = self.module.detect_layers(batch.images, batch.padding, limit)
        found = []
        for layer in layers:
            boxes, places = self.without_duplicates(layer.boxes)
            queries = None
            if layer.queries is not None:  # without the padding, as in ``detections``
                own = layer.queries.gather(1, places)
                queries = [of_image[real].cpu() for of_image, real in zip(own, boxes.scores != 0, strict=True)]
            found.append(LayerDetections(self.in_pixels(boxes, image_sizes), queries, layer.num_queries))
        return found

    @contextmanager
    def _computing(self, batch: Batch) -> Iterator[None]:
        """The context of every forward pass that detects."""
        remedy = "Lower --batch-size or the image size"
        with memory_errors(batch.images, remedy), autocast(self.precision, batch.images.device.type):
            yield

    def in_pixels(
        self, boxes: Boxes, image_sizes: Sequence[tuple[int, int]], sources: Sequence[str | None] | None = None
    ) -> list[Detections]:
        """Boxes of the model as detections in pixels of the original images, on the CPU."""
        found = detections(boxes, image_sizes, self.classes, sources)
        return [each.clipped() for each in found] if self.experiment.evaluation.clip else found


def unpadded(images: Sequence[Tensor]) -> Batch:
    """Images of equal size (3, H, W) as a batch without padding or targets, channels-last."""
    padding = torch.zeros(len(images), *images[0].shape[1:], dtype=torch.bool)  # (B, H, W)
    return Batch(torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2), padding, ())


def preprocessing_of(experiment: Experiment) -> Preprocessing:
    """The preprocessing of an experiment's evaluation."""
    backbone = experiment.model.backbone
    return Preprocessing(resize_to=experiment.data.resize_to, mean=backbone.mean, std=backbone.std)


def save_detector(path: Path, detector: TrainedDetector) -> None:
    """Write a trained detector.

    Raises:
        UserError: the file cannot be written.
    """
    format.save(path, detector.module.state_dict(), metadata_of(detector))


def metadata_of(detector: TrainedDetector) -> dict[str, Any]:
    """Everything but the weights as JSON-serializable values: the metadata of checkpoints and of exported files."""
    preprocessing = to_dict(detector.preprocessing)
    del preprocessing["fixed"]  # of exported files only, which have it in ``export``
    return {
        "detrs": importlib.metadata.version("detrs"),
        "experiment": to_dict(detector.experiment),
        "classes": {"names": list(detector.classes.names), "category_ids": list(detector.classes.category_ids)},
        "preprocessing": preprocessing,
        "scores": detector.scores,
        "step": detector.step,
        "epoch": detector.epoch,
        "threshold": detector.threshold,
        "class_thresholds": detector.class_thresholds,
    }


def load_detector(path: Path) -> TrainedDetector:
    """Read a file written by ``save_detector``; the model is on the CPU, in evaluation mode.

    Args:
        path: The file, or the folder of a run, which means its ``best.safetensors``.

    Raises:
        UserError: the file is not such a checkpoint, or this version builds another model from its settings.
    """
    if path.is_dir():
        path = best_of(path)
    header = format.read_header(path)
    meta = header.meta
    if "classes" not in meta:
        raise UserError(f"'{path}' is a training state, not a detector: {advice(path.parent)}.")
    with metadata_errors(f"the checkpoint '{path}'", meta):
        settings = read_metadata(meta)
        with Skeleton():  # a forged file must not make this process allocate more than the file contains
            module = models.build(settings["experiment"].model)
    if wrong := state_dict_differences(shapes(module), header.shapes):
        raise UserError(
            f"Cannot use the checkpoint '{path}' ({origin_of(meta)}): its weights do not fit the model that its "
            f"settings describe: {format.abbreviated(wrong)}. Use the version of detrs that wrote it."
        )
    checkpoint = format.load(path)
    if checkpoint.meta != meta:
        raise UserError(f"The checkpoint '{path}' was replaced while it was read. Repeat the command.")
    with Skeleton("cpu"):
        module = models.build(settings["experiment"].model)
    module.load_state_dict(checkpoint.tensors)
    return TrainedDetector(module=module.eval(), **settings)


def read_metadata(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``TrainedDetector`` but ``module``, from what ``metadata_of`` returned.

    Raises:
        UserError: a setting is unknown or out of range.
        KeyError, TypeError, ValueError, OverflowError: the metadata is malformed; within ``metadata_errors``.
    """
    experiment: Experiment = from_dict(Experiment, meta["experiment"])
    config.validate(experiment)
    preprocessing: Preprocessing = from_dict(Preprocessing, meta["preprocessing"], "preprocessing")
    schema.check(preprocessing, "preprocessing")
    scores, step, epoch = meta["scores"], meta["step"], meta["epoch"]
    if not (isinstance(scores, dict) and type(step) is type(epoch) is int):
        raise ValueError("expected scores as an object, step and epoch as integers")
    threshold, class_thresholds = read_thresholds(meta)
    return {
        "classes": read_classes(meta["classes"], experiment.model.num_classes),
        "preprocessing": preprocessing,
        "experiment": experiment,
        "scores": scores,
        "step": step,
        "epoch": epoch,
        "threshold": threshold,
        "class_thresholds": class_thresholds,
    }


@contextmanager
def metadata_errors(what: str, meta: Mapping[str, Any]) -> Iterator[None]:
    """Converts the errors of malformed metadata.

    Args:
        what: the file, for messages.
        meta: its metadata.

    Raises:
        UserError: with the versions that wrote and read it.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"Cannot use {what} ({origin_of(meta)}): {error}") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"Cannot use {what} ({origin_of(meta)}): missing or malformed metadata: {error}.") from error


def origin_of(meta: Mapping[str, Any]) -> str:
    """The versions of this library that wrote and read a file."""
    return f"written by detrs {meta.get('detrs', 'unknown')}, read with detrs {importlib.metadata.version('detrs')}"


def read_classes(values: Any, num_classes: int) -> Classes:
    """The classes of a checkpoint: unique names and unique ids, one of each per class.

    Raises:
        ValueError: they are not.
    """
    names, ids = values["names"], values["category_ids"]
    for entries, kind in ((names, str), (ids, int)):
        is_list = isinstance(entries, list) and all(type(entry) is kind for entry in entries)
        if not is_list or not len(set(entries)) == len(entries) == num_classes:
            raise ValueError(f"classes: expected {num_classes} unique {kind.__name__} values, got {entries!r:.80}")
    return Classes(tuple(names), tuple(ids))


def read_thresholds(meta: Mapping[str, Any]) -> tuple[float | None, dict[str, float | None]]:
    """The thresholds of a checkpoint, overall and per class; files of older versions have none.

    Raises:
        ValueError: one is not a number in [0, 1].
    """
    overall, per_class = meta.get("threshold"), meta.get("class_thresholds", {})
    if not isinstance(per_class, dict):
        raise ValueError(f"class_thresholds: expected an object, got {per_class!r:.80}")
    for value in (overall, *per_class.values()):
        if value is not None and not (type(value) in (int, float) and 0 <= value <= 1):
            raise ValueError(f"threshold: expected a number in [0, 1] or null, got {value!r:.80}")
    return overall, per_class


Shapes = Mapping[str, tuple[int, ...]]


def shapes(module: nn.Module) -> Shapes:
    """Name and shape of every tensor in the state of ``module``."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def state_dict_differences(built: Shapes, saved: Shapes) -> list[str]:
    """Differences in name or shape between the weights of a model and those of a file."""
    missing = [f"{name} (missing)" for name in built if name not in saved]
    unknown = [f"{name} (unknown)" for name in saved if name not in built]
    other = [
        f"{name} ({shape} instead of {built[name]})"
        for name, shape in saved.items()
        if name in built and shape != built[name]
    ]
    return missing + unknown + other
