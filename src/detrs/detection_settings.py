"""The settings of prediction: thresholds, classes, non-maximum suppression and tiles."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from detrs.checkpoints.classes import labels_of
from detrs.checkpoints.detector import DEFAULT_THRESHOLD, TrainedDetector
from detrs.config.detection import PER_CLASS, Threshold, check_threshold
from detrs.errors import UserError
from detrs.structures import Detections
from detrs.tiling import Tiling, tiling_of


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """How objects are detected, and which of the detections are returned."""

    thresholds: float | tuple[float, ...]
    """Smallest score of a detection, or that of each class."""
    batch_size: int = 8
    """Images read at a time; images or tiles per forward pass."""
    labels: frozenset[int] | None = None
    """The classes that are returned; ``None``: all."""
    nms: float | None = None
    """IoU of non-maximum suppression; ``None``: that of the detector."""
    tiling: Tiling | None = None
    """Tiles of large images; ``None``: every image as a whole."""

    def selected(self, found: Detections) -> Detections:
        """The detections of these classes that reach the threshold."""
        found = found.filter(self.thresholds)
        if self.labels is None:
            return found
        return found.rows(torch.isin(found.labels, torch.tensor(sorted(self.labels))))


def settings_of(
    detector: TrainedDetector,
    *,
    threshold: Threshold | None,
    batch_size: int,
    classes: str | Iterable[str] | None,
    nms: float | None,
    tile: int | None,
    overlap: float,
    whole_image: bool,
) -> DetectionSettings:
    """The arguments of ``Predictor.predict_iter``, checked.

    Raises:
        UserError: one is out of range, or the detector has no such class or threshold.
    """
    thresholds = thresholds_of(detector, threshold)
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}, but must be at least 1.")
    return DetectionSettings(
        thresholds=thresholds,
        batch_size=batch_size,
        labels=None if classes is None else labels_of(classes, detector.classes.names),
        nms=detector.suppressing(nms).experiment.evaluation.nms,
        tiling=tiling_of(tile, overlap, whole_image),
    )


def default_threshold(detector: TrainedDetector) -> float:
    """The detector's own threshold, or 0.5 if it has none."""
    return DEFAULT_THRESHOLD if detector.threshold is None else detector.threshold


def thresholds_of(detector: TrainedDetector, threshold: Threshold | None) -> float | tuple[float, ...]:
    """The smallest score of a detection, or that of each class.

    Args:
        detector: its classes without a threshold of their own have that of ``default_threshold``.
        threshold: a score in [0, 1], or ``per-class``; ``None``: ``default_threshold``.

    Raises:
        UserError: it is out of range, or no class has a threshold.
    """
    if threshold is None:
        return default_threshold(detector)
    check_threshold(threshold)
    if threshold != PER_CLASS:
        return threshold
    own = [detector.class_thresholds.get(name) for name in detector.classes.names]
    if all(value is None for value in own):
        raise UserError(
            "threshold is 'per-class', but the checkpoint has no thresholds of its classes, like published weights and "
            "detectors that were trained without validation: pass a number."
        )
    return tuple(default_threshold(detector) if value is None else value for value in own)
