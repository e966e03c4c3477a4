"""Kinds of errors as in TIDE (Bolya et al. 2020, arXiv 2008.08115), at a threshold.

Every detection that is neither right nor ignored has exactly one kind, in the order of the official code:

================  ===================================================================================
localization      same class as an object, 0.1 <= IoU < 0.5
classification    IoU of at least 0.5 with an object of another class
duplicate         IoU of at least 0.5 with an object of its class that a better detection has found
background        IoU below 0.1 with every object
both              the rest: 0.1 <= IoU < 0.5 with an object of another class
================  ===================================================================================

Every object that is not found is either *covered*, if a localization or classification error is closest to it (fixing
that detection would find it), or *missed*.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from detrs.evaluation.matching import MATCH_IOU, Matching

KINDS = ("localization", "classification", "duplicate", "background", "both")
LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND, BOTH = range(5)


class Nearest(NamedTuple):
    """The object with the largest IoU of each detection; crowd regions are left out."""

    iou: np.ndarray
    """(N,) 0 below an IoU of 0.1."""
    object: np.ndarray
    """(N,) -1: none."""


@dataclass(frozen=True)
class ErrorCounts:
    """Numbers of errors at a threshold, and what they cost."""

    right: int
    """Detections that find an object."""
    ignored: int
    """Detections in crowd regions."""
    wrong: dict[str, int]
    """Kind -> detections. Their sum, ``right`` and ``ignored`` are all detections with at least the threshold."""
    covered: int
    """Objects that are not found, but would be with a better box or class."""
    missed: int
    """Objects that no detection is close to. ``right``, ``covered`` and ``missed`` are all objects."""
    delta_ap50: dict[str, float]
    """Kind -> by how much AP50 rises when this kind of error is fixed, over all scores (TIDE); also ``missed``, ``all
    false positives`` and ``all false negatives``."""


@dataclass(frozen=True)
class Duplicates:
    """Several detections of one object at a threshold. DETR's one-to-one matching should leave none."""

    num_detections: int
    """Detections of objects that a better detection has found."""
    num_objects: int
    """Objects with more than one detection."""
    most: int
    """Largest number of detections of one object."""
    num_images: int
    """Images with such objects."""


def nearest(matched: Matching, usable: np.ndarray) -> Nearest:
    """The nearest object of each detection among the pairs (P,) that are ``usable``."""
    usable = usable & ~matched.objects.is_crowd[matched.pairs.object]
    index, other, iou = (column[usable] for column in matched.pairs)
    order = np.lexsort((iou, index))
    best_iou, best = np.zeros(len(matched.found.scores)), np.full(len(matched.found.scores), -1)
    best_iou[index[order]], best[index[order]] = iou[order], other[order]  # the last one of each detection remains
    return Nearest(best_iou, best)


def same_class(matched: Matching) -> np.ndarray:
    """(P,) Whether both of a pair have the same class."""
    return matched.found.label[matched.pairs.found] == matched.objects.label[matched.pairs.object]


def found_objects(matched: Matching, threshold: float) -> np.ndarray:
    """(M,) Objects that a detection with a score of at least ``threshold`` finds."""
    is_found = matched.finder >= 0
    is_found[is_found] = matched.found.scores[matched.finder[is_found]] >= threshold
    return is_found


def error_kinds(matched: Matching, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The kind of error of each detection (-1: none), and the object that it concerns (-1: none)."""
    wrong = matched.is_wrong & (matched.found.scores >= threshold)
    same = same_class(matched)
    own, other = nearest(matched, same), nearest(matched, ~same)
    taken = nearest(matched, same & found_objects(matched, threshold)[matched.pairs.object])
    cases = (
        (own.object >= 0) & (own.iou < MATCH_IOU),
        other.iou >= MATCH_IOU,
        taken.iou >= MATCH_IOU,
        (own.object < 0) & (other.object < 0),
    )
    kinds = np.where(wrong, np.select(cases, range(4), BOTH), -1)
    concerned = np.select(
        [kinds == LOCALIZATION, kinds == DUPLICATE, kinds >= 0], [own.object, taken.object, other.object], -1
    )
    return kinds, concerned


def error_counts(matched: Matching, threshold: float, delta_ap50: dict[str, float]) -> ErrorCounts:
    """The errors of the detections with a score of at least ``threshold``."""
    kinds, concerned = error_kinds(matched, threshold)
    accepted = matched.found.scores >= threshold
    lost = ~found_objects(matched, threshold) & ~matched.objects.is_crowd
    covered = np.zeros_like(lost)
    covered[concerned[(kinds == LOCALIZATION) | (kinds == CLASSIFICATION)]] = True
    return ErrorCounts(
        right=int((matched.is_right & accepted).sum()),
        ignored=int((matched.ignored & accepted).sum()),
        wrong={name: int((kinds == number).sum()) for number, name in enumerate(KINDS)},
        covered=int((lost & covered).sum()),
        missed=int((lost & ~covered).sum()),
        delta_ap50=delta_ap50,
    )


def duplicates(matched: Matching, threshold: float) -> Duplicates:
    """Detections of objects that are found already, with a score of at least ``threshold``."""
    kinds, concerned = error_kinds(matched, threshold)
    repeated = concerned[kinds == DUPLICATE]
    objects, counts = np.unique(repeated, return_counts=True)
    return Duplicates(
        num_detections=len(repeated),
        num_objects=len(objects),
        most=int(counts.max(initial=0)) + 1 if len(objects) else 0,
        num_images=len(np.unique(matched.objects.image[objects])),
    )
