"""Calibration: how often detections of a score are right, by hotcoco."""

from dataclasses import dataclass
from typing import Any

BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """Detections with a score in an interval."""

    low: float
    high: float
    count: int
    score: float | None
    """Their mean score; ``None`` without detections."""
    precision: float | None
    """The share of them that is right at IoU 0.5."""


@dataclass(frozen=True)
class Calibration:
    """The scores of all detections beside their precision; crowd regions are left out."""

    bins: tuple[CalibrationBin, ...]
    expected_error: float | None
    """Expected calibration error: the mean over all detections of the distance between score and precision of their
    bin."""
    largest_error: float | None
    """The distance of the worst bin."""
    num_detections: int


def calibration(evaluator: Any) -> Calibration:
    """The calibration of the detections of an evaluator, a ``hotcoco.COCOeval`` after its computations."""
    found = evaluator.calibration(n_bins=BINS, iou_threshold=0.5)
    bins = tuple(
        CalibrationBin(
            low=each["bin_lower"],
            high=each["bin_upper"],
            count=each["count"],
            score=each["avg_confidence"] if each["count"] else None,
            precision=each["avg_accuracy"] if each["count"] else None,
        )
        for each in found["bins"]
    )
    count = found["num_detections"]
    return Calibration(bins, found["ece"] if count else None, found["mce"] if count else None, count)
