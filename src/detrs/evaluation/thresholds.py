"""The score threshold that maximizes F1, of all detections and of each class.

F1 = 2 TP / (2 TP + FP + FN) at IoU 0.5, for the detections with a score of at least the threshold. All objects count
alike: it is not a mean over classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from detrs.evaluation.matching import Matching, matching


class Thresholds(NamedTuple):
    """Thresholds that maximize F1; ``None`` where no detection is right."""

    overall: float | None
    per_class: dict[str, float | None]


class Curve(NamedTuple):
    """Precision, recall and F1 at every score, from the highest to the lowest."""

    scores: np.ndarray
    """(T,) distinct, descending."""
    precision: np.ndarray
    """(T,) of the detections with at least this score."""
    recall: np.ndarray
    """(T,) 0 without objects."""
    f1: np.ndarray
    """(T,)"""


def f1_thresholds(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> Thresholds:
    """The thresholds of detections that ``coco_report`` has checked.

    Args:
        ground_truth: a COCO dictionary.
        results: COCO results.
    """
    return thresholds(matching(ground_truth, results))


def thresholds(matched: Matching) -> Thresholds:
    """The thresholds of matched detections."""
    classes = dict(zip(matched.names, map(best_threshold, class_curves(matched)), strict=True))
    return Thresholds(best_threshold(curve(matched)), classes)


def curve(matched: Matching) -> Curve:
    """The curve of the detections of all classes together."""
    counted = ~matched.ignored
    return curve_of(matched.found.scores[counted], matched.is_right[counted], int((~matched.objects.is_crowd).sum()))


def class_curves(matched: Matching) -> list[Curve]:
    """The curve of each class. Detections are divided by one sort: there can be a thousand classes."""
    num_classes = len(matched.names)
    rows = np.flatnonzero(~matched.ignored)
    rows = rows[np.argsort(matched.found.label[rows], kind="stable")]
    ends = np.searchsorted(matched.found.label[rows], np.arange(1, num_classes))
    objects = np.bincount(matched.objects.label[~matched.objects.is_crowd], minlength=num_classes)
    return [
        curve_of(matched.found.scores[own], matched.is_right[own], number)
        for own, number in zip(np.split(rows, ends), objects.tolist(), strict=True)
    ]


def curve_of(scores: np.ndarray, is_right: np.ndarray, num_objects: int) -> Curve:
    """The curve of detections (N,); those of equal score are accepted together."""
    order = np.argsort(-scores, kind="stable")
    scores, is_right = scores[order], is_right[order]
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, np.int64)
    right = np.cumsum(is_right)[last]
    accepted = last + 1
    recall = right / num_objects if num_objects else np.zeros(len(last))
    return Curve(scores[last], right / accepted, recall, 2 * right / (accepted + num_objects))


def best_threshold(of: Curve) -> float | None:
    """The threshold that maximizes F1; of equal F1, the one that accepts the fewest detections."""
    if not of.f1.size or of.f1.max() == 0:
        return None
    best = int(of.f1.argmax())
    below = float(of.scores[best + 1]) if best + 1 < len(of.scores) else 0.0
    return between(below, float(of.scores[best]))


def between(below: float, score: float) -> float:
    """The number with the fewest decimals above ``below`` and up to ``score``; of those, the nearest to their middle.

    Any such number accepts the same detections. With few decimals it can be typed, and halfway between two scores it
    accepts them also where another device rounds scores otherwise. Detections compare scores in float32.
    """
    for decimals in range(2, 10):
        value = round((below + score) / 2, decimals)
        steps = (value, value + 10**-decimals, value - 10**-decimals)
        for candidate in (round(step, decimals) for step in steps):
            if below < candidate <= score and np.float32(below) < np.float32(candidate) <= np.float32(score):
                return candidate
    return score
