"""Objects and detections whose labels should be checked: where a detector that is usually right contradicts the labels.

A detection is *confident* if its score reaches the threshold and the median score of the right detections of its class,
and if at least half of the detections of this class with that score are right.

=============  ========================================================================================================
missing label  a confident detection; no object, of any class, overlaps it with an IoU of 0.1 or more, and no better
               such detection with an IoU of 0.5 or more
wrong class    a confident detection; the object that it fits with an IoU of at least 0.7 has another class, and no
               detection of that class finds it
shifted box    a confident detection of the class of the nearest object, with an IoU between 0.1 and 0.5, and no other
               detection finds this object
no object      an object that no detection with at least half the threshold overlaps, while at least 80% of the objects
               of its class and of similar area (from half to double; at least 10 of them) are found
=============  ========================================================================================================

Many of them are errors of the detector: these are candidates. Check the image before a label is changed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from detrs.evaluation.coco import Id
from detrs.evaluation.errors import CLASSIFICATION, LOCALIZATION, error_kinds, found_objects, nearest, same_class
from detrs.evaluation.matching import MATCH_IOU, Matching, box_iou

MISSING, WRONG_CLASS, SHIFTED, NO_OBJECT = "missing label", "wrong class", "shifted box", "no object"
FIT_IOU = 0.7
"""Smallest IoU at which a detection of another class means the same object."""
MIN_PRECISION = 0.5
"""Share of right detections of a class among those that are confident."""
NEIGHBOURS = 10
"""Similar objects that must exist."""
SHARE_FOUND = 0.8
"""Share of the similar objects that must be found."""
MAX_CANDIDATES = 200
"""Candidates that are kept, the best first."""


@dataclass(frozen=True)
class LabelError:
    """A candidate for a wrong label."""

    kind: str
    image_id: Id
    label: str | None
    """Class of the object; ``None`` for a missing label."""
    box: tuple[float, ...] | None
    """x, y, w, h in pixels of the object."""
    detected_label: str | None
    """Class of the detection; ``None`` for an object without detection."""
    detected_box: tuple[float, ...] | None
    score: float
    """Of the detection; for an object without detection, the share of similar objects that are found."""
    iou: float


def label_errors(matched: Matching, threshold: float) -> list[LabelError]:
    """Candidates of all kinds, those with the highest scores first within a kind; at most ``MAX_CANDIDATES``."""
    confident = (matched.found.scores >= confident_scores(matched, threshold)[matched.found.label]) & matched.is_wrong
    near = nearest(matched, np.ones(len(matched.pairs.iou), dtype=bool))
    in_any_crowd = np.zeros(len(confident), dtype=bool)
    in_any_crowd[matched.pairs.found[matched.objects.is_crowd[matched.pairs.object]]] = True
    kinds, concerned = error_kinds(matched, threshold)
    is_found = found_objects(matched, threshold)
    open_object = np.zeros(len(confident), dtype=bool)
    open_object[concerned >= 0] = ~is_found[concerned[concerned >= 0]]
    other = nearest(matched, ~same_class(matched))
    own = nearest(matched, same_class(matched))
    cases = {
        MISSING: confident & (near.object < 0) & ~in_any_crowd,
        WRONG_CLASS: confident & (kinds == CLASSIFICATION) & open_object & (other.iou >= FIT_IOU),
        SHIFTED: confident & (kinds == LOCALIZATION) & open_object,
    }
    listed: list[LabelError] = []
    for kind, chosen in cases.items():
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(-matched.found.scores[rows], kind="stable")]
        if kind == MISSING:
            rows = distinct(matched, rows)
        else:  # the best of each object
            rows = rows[np.sort(np.unique(concerned[rows], return_index=True)[1])]
        for row in rows.tolist():
            target = {MISSING: -1, WRONG_CLASS: int(other.object[row]), SHIFTED: int(own.object[row])}[kind]
            iou = {MISSING: 0.0, WRONG_CLASS: float(other.iou[row]), SHIFTED: float(own.iou[row])}[kind]
            listed.append(_candidate(matched, kind, row, target, float(matched.found.scores[row]), iou))
    listed += _without_detection(matched, threshold, is_found)
    return _balanced(listed)


def distinct(matched: Matching, rows: np.ndarray) -> np.ndarray:
    """Detections (R,), best first, without those that overlap a better one with an IoU of at least 0.5."""
    kept: dict[int, list[int]] = {}
    chosen = []
    for row in rows.tolist():
        others = kept.setdefault(int(matched.found.image[row]), [])
        own = np.repeat(matched.found.boxes[row : row + 1], len(others), 0)
        if not (box_iou(own, matched.found.boxes[others], np.zeros(len(others), bool)) >= MATCH_IOU).any():
            others.append(row)
            chosen.append(row)
    return np.array(chosen, dtype=np.int64)


def confident_scores(matched: Matching, threshold: float) -> np.ndarray:
    """(K,) The score from which detections of each class are confident; infinity: no detection is."""
    scores = np.full(len(matched.names), np.inf)
    right = matched.is_right & (matched.found.scores >= threshold)
    for label in np.unique(matched.found.label[right]).tolist():
        own = matched.found.label == label
        score = np.median(matched.found.scores[right & own])
        above = own & (matched.found.scores >= score)
        if (right & above).sum() >= MIN_PRECISION * (above & ~matched.ignored).sum():
            scores[label] = score
    return scores


def _without_detection(matched: Matching, threshold: float, is_found: np.ndarray) -> list[LabelError]:
    """Objects that nothing overlaps though similar ones are found."""
    objects, pairs = matched.objects, matched.pairs
    touched = np.zeros(len(objects.label), dtype=bool)
    touched[pairs.object[matched.found.scores[pairs.found] >= threshold / 2]] = True
    area = objects.boxes[:, 2] * objects.boxes[:, 3]
    found: list[tuple[float, int]] = []
    for label in range(len(matched.names)):
        own = np.flatnonzero((objects.label == label) & ~objects.is_crowd)
        order = own[np.argsort(area[own], kind="stable")]
        sizes, total = area[order], np.append(0, np.cumsum(is_found[order]))
        low, high = np.searchsorted(sizes, sizes / 2), np.searchsorted(sizes, sizes * 2, "right")
        others = high - low - 1
        share = (total[high] - total[low]) / np.maximum(others, 1)  # it is not found itself
        chosen = ~touched[order] & (others >= NEIGHBOURS) & (share >= SHARE_FOUND)
        found += zip(share[chosen].tolist(), order[chosen].tolist(), strict=True)
    found.sort(key=lambda each: -each[0])
    return [_candidate(matched, NO_OBJECT, -1, target, share, 0.0) for share, target in found]


def _candidate(matched: Matching, kind: str, row: int, target: int, score: float, iou: float) -> LabelError:
    found, objects = matched.found, matched.objects
    image = found.image[row] if row >= 0 else objects.image[target]
    return LabelError(
        kind=kind,
        image_id=matched.image_ids[image],
        label=matched.names[objects.label[target]] if target >= 0 else None,
        box=tuple(objects.boxes[target].tolist()) if target >= 0 else None,
        detected_label=matched.names[found.label[row]] if row >= 0 else None,
        detected_box=tuple(found.boxes[row].tolist()) if row >= 0 else None,
        score=score,
        iou=iou,
    )


def _balanced(listed: list[LabelError]) -> list[LabelError]:
    """At most ``MAX_CANDIDATES``, the same number of each kind where there are enough."""
    kinds: dict[str, list[LabelError]] = {}
    for each in listed:
        kinds.setdefault(each.kind, []).append(each)
    turns: list[tuple[int, Any]] = sorted(
        ((place, each) for found in kinds.values() for place, each in enumerate(found)), key=lambda turn: turn[0]
    )
    kept = {id(each) for _, each in turns[:MAX_CANDIDATES]}
    return [each for each in listed if id(each) in kept]
