"""Where a detector fails: everything that ``detrs evaluate --report`` shows, from one set of detections."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from detrs.checkpoints.detector import DEFAULT_THRESHOLD
from detrs.evaluation.calibration import Calibration, calibration
from detrs.evaluation.coco import (
    ALL,
    LARGE,
    MEDIUM,
    SMALL,
    Id,
    accumulated,
    mean,
    numbering,
    result_rows,
    validated_truth,
)
from detrs.evaluation.confusion import ConfusionMatrix, confusion_matrix
from detrs.evaluation.errors import Duplicates, ErrorCounts, duplicates, error_counts, found_objects
from detrs.evaluation.label_errors import LabelError, label_errors
from detrs.evaluation.layers import ImageLayers, LayerScore, QueryUse, layer_scores, query_use
from detrs.evaluation.matching import Matching, matching
from detrs.evaluation.thresholds import Curve, best_threshold, class_curves, curve

GRID = np.arange(101) / 100
"""Recalls of the precision-recall curves, thresholds of the F1 curves."""
MAX_IMAGES = 100
"""Images with errors that are listed, those with most errors first."""
TIDE = {
    "Loc": "localization",
    "Cls": "classification",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Both": "both",
    "Miss": "missed",
    "FP": "all false positives",
    "FN": "all false negatives",
}

Origin = Literal["checkpoint", "best F1", "default"]
"""Where the threshold of a diagnosis comes from: stored in the checkpoint; the best F1 of this evaluation; 0.5, since
nothing is right."""


@dataclass(frozen=True)
class Counts:
    """Right and wrong detections and objects that are not found, at a threshold and IoU 0.5."""

    right: int
    wrong: int
    lost: int
    precision: float | None
    """``None`` without detections."""
    recall: float | None
    """``None`` without objects."""
    f1: float | None


@dataclass(frozen=True)
class ClassReport:
    """One class."""

    num_objects: int
    ap: float | None
    ap50: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    best_threshold: float | None
    """Of the best F1."""
    best_f1: float | None
    at_threshold: Counts


@dataclass(frozen=True)
class ImageErrors:
    """The errors of one image at the threshold."""

    image_id: Id
    right: int
    wrong: int
    lost: int


@dataclass(frozen=True)
class Curves:
    """Curves at IoU 0.5."""

    recall: tuple[float, ...]
    """0, 0.01 .. 1"""
    precision: dict[str, tuple[float, ...] | None]
    """Class -> precision at each recall, as in AP50: the largest at this recall or above. ``""``: mean over classes."""
    threshold: tuple[float, ...]
    """0, 0.01 .. 1"""
    f1: dict[str, tuple[float, ...]]
    """Class -> F1 at each threshold. ``""``: all detections together."""


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The numbers of a report, at IoU 0.5; ``ap`` over IoU 0.50 to 0.95."""

    threshold: float
    """Of all numbers at a threshold."""
    threshold_origin: Origin
    best_threshold: float | None
    """Of the best F1 of all detections in this evaluation."""
    best_f1: float | None
    at_threshold: Counts
    per_class: dict[str, ClassReport]
    curves: Curves
    confusion: ConfusionMatrix
    errors: ErrorCounts
    calibration: Calibration
    duplicates: Duplicates
    queries: QueryUse | None
    """``None`` for detectors without queries."""
    layers: tuple[LayerScore, ...]
    """AP of each decoder layer; empty if unknown, and for detectors without queries."""
    worst_images: tuple[ImageErrors, ...]
    """Images with errors, those with most errors first; at most ``MAX_IMAGES``."""
    label_errors: tuple[LabelError, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable dictionary."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in values.items()}


def diagnose(
    ground_truth: dict[str, Any],
    results: Sequence[dict[str, Any]],
    *,
    matched: Matching | None = None,
    threshold: float | None = None,
    max_detections: int = 100,
    layers: Sequence[ImageLayers] = (),
) -> Diagnosis:
    """Diagnose detections that ``coco_report`` has checked.

    Args:
        ground_truth: a COCO dictionary.
        results: COCO results.
        matched: their matching, if it is known.
        threshold: of all numbers at a threshold; by default that of the best F1.
        max_detections: as in ``coco_report``.
        layers: detections of each decoder layer.
    """
    matched = matching(ground_truth, results) if matched is None else matched
    whole = curve(matched)
    best = best_threshold(whole)
    origin: Origin = "checkpoint" if threshold is not None else "default" if best is None else "best F1"
    used = next(value for value in (threshold, best, DEFAULT_THRESHOLD) if value is not None)
    images = numbering(image["id"] for image in ground_truth["images"])
    categories = numbering(category["id"] for category in ground_truth["categories"])
    rows = result_rows(results, images, categories)
    evaluator, precision, _ = accumulated(validated_truth(ground_truth, images, categories), rows, max_detections)
    tide = evaluator.tide_errors(pos_thr=0.5, bg_thr=0.1)["delta_ap"]
    of_classes = class_curves(matched)
    return Diagnosis(
        threshold=used,
        threshold_origin=origin,
        best_threshold=best,
        best_f1=_best(whole),
        at_threshold=counts(matched, used),
        per_class=_classes(matched, precision, of_classes, used),
        curves=_curves(matched.names, precision, whole, of_classes),
        confusion=confusion_matrix(matched, used),
        errors=error_counts(matched, used, {name: float(tide[key]) for key, name in TIDE.items()}),
        calibration=calibration(evaluator),
        duplicates=duplicates(matched, used),
        queries=query_use(ground_truth, layers, used, max_detections),
        layers=layer_scores(ground_truth, layers, max_detections),
        worst_images=worst_images(matched, used),
        label_errors=tuple(label_errors(matched, used)),
    )


def counts(matched: Matching, threshold: float, label: int | None = None) -> Counts:
    """Right and wrong detections of one class, or of all, with a score of at least ``threshold``."""
    accepted = matched.found.scores >= threshold
    objects = ~matched.objects.is_crowd
    if label is not None:
        accepted = accepted & (matched.found.label == label)
        objects = objects & (matched.objects.label == label)
    right, wrong = int((matched.is_right & accepted).sum()), int((matched.is_wrong & accepted).sum())
    total = int(objects.sum())
    return Counts(
        right=right,
        wrong=wrong,
        lost=total - right,
        precision=right / (right + wrong) if right + wrong else None,
        recall=right / total if total else None,
        f1=2 * right / (right + wrong + total) if right + wrong + total else None,
    )


def worst_images(matched: Matching, threshold: float) -> tuple[ImageErrors, ...]:
    """The images with most wrong detections and lost objects together; of as many, those with fewer right ones."""
    accepted, size = matched.found.scores >= threshold, len(matched.image_ids)
    lost = ~found_objects(matched, threshold) & ~matched.objects.is_crowd
    right = np.bincount(matched.found.image[matched.is_right & accepted], minlength=size)
    wrong = np.bincount(matched.found.image[matched.is_wrong & accepted], minlength=size)
    missing = np.bincount(matched.objects.image[lost], minlength=size)
    errors = wrong + missing
    order = [index for index in np.lexsort((right, -errors))[:MAX_IMAGES].tolist() if errors[index]]
    return tuple(
        ImageErrors(matched.image_ids[index], int(right[index]), int(wrong[index]), int(missing[index]))
        for index in order
    )


def _classes(
    matched: Matching, precision: np.ndarray, of_classes: list[Curve], threshold: float
) -> dict[str, ClassReport]:
    objects = np.bincount(matched.objects.label[~matched.objects.is_crowd], minlength=len(matched.names))
    return {
        name: ClassReport(
            num_objects=int(objects[label]),
            ap=mean(precision[:, :, label, ALL, -1]),
            ap50=mean(precision[0, :, label, ALL, -1]),
            ap_small=mean(precision[:, :, label, SMALL, -1]),
            ap_medium=mean(precision[:, :, label, MEDIUM, -1]),
            ap_large=mean(precision[:, :, label, LARGE, -1]),
            best_threshold=best_threshold(of_classes[label]),
            best_f1=_best(of_classes[label]),
            at_threshold=counts(matched, threshold, label),
        )
        for label, name in enumerate(matched.names)
    }


def _curves(names: tuple[str, ...], precision: np.ndarray, whole: Curve, of_classes: list[Curve]) -> Curves:
    found: dict[str, tuple[float, ...] | None] = {}
    at_50 = precision[0, :, :, ALL, -1]  # (101, K); -1: no objects
    defined = at_50[:, at_50[0] > -1]
    found[""] = tuple(defined.mean(1).tolist()) if defined.size else None
    found |= {
        name: tuple(at_50[:, label].tolist()) if at_50[0, label] > -1 else None for label, name in enumerate(names)
    }
    f1 = {"": _f1(whole)} | {name: _f1(of) for name, of in zip(names, of_classes, strict=True)}
    grid = tuple(GRID.tolist())
    return Curves(grid, found, grid, f1)


def _f1(of: Curve) -> tuple[float, ...]:
    """F1 at the thresholds of ``GRID``; 0 above the highest score."""
    accepted = np.searchsorted(-of.scores, -GRID, "right")  # scores of at least the threshold
    return tuple(np.append(0.0, of.f1)[accepted].tolist())


def _best(of: Curve) -> float | None:
    return float(of.f1.max()) if of.f1.size and of.f1.max() > 0 else None


def _plain(value: Any) -> Any:
    if isinstance(value, ConfusionMatrix):
        return value.to_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
