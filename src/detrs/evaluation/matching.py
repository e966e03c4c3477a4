"""Detections and objects of a dataset as arrays, which of them overlap, and which detection finds which object.

The rules are those of COCO's evaluation at IoU 0.5: within an image and class, detections are matched from the highest
score to the lowest; each takes the free object with the largest IoU. Detections that find no object but lie in a crowd
region of their class are ignored: neither right nor wrong. ``pycocotools`` and ``hotcoco`` keep these matches per
image, class, area and IoU threshold; here they are arrays over all detections, which every figure of a report uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from detrs.data.annotation_rows import AnnotationRows
from detrs.evaluation.coco import Id, class_names, numbered, numbering

MATCH_IOU = 0.5
"""Smallest IoU of a detection with the object that it finds."""
NEAR_IOU = 0.1
"""Smallest IoU of the pairs that are kept; detections below are on the background (TIDE, Sec. 2.3)."""
MAX_PAIRS = 5_000_000
"""Pairs of a detection and an object whose IoU is computed at once."""


class Objects(NamedTuple):
    """The ground truth of all images, in the order of the annotations."""

    image: np.ndarray
    """(M,) index into the images."""
    label: np.ndarray
    """(M,) index into the classes."""
    boxes: np.ndarray
    """(M, 4) x, y, w, h in pixels."""
    is_crowd: np.ndarray
    """(M,) bool."""


class Found(NamedTuple):
    """The detections of all images: by image, best first, those of equal score in the order given."""

    image: np.ndarray
    """(N,)"""
    label: np.ndarray
    """(N,)"""
    boxes: np.ndarray
    """(N, 4) x, y, w, h in pixels."""
    scores: np.ndarray
    """(N,)"""


class Pairs(NamedTuple):
    """Detections and objects of one image that overlap with an IoU of at least ``NEAR_IOU``, of any classes."""

    found: np.ndarray
    """(P,) index of the detection, ascending."""
    object: np.ndarray
    """(P,) index of the object."""
    iou: np.ndarray
    """(P,) for crowd regions the part of the detection that lies in the region."""


@dataclass(frozen=True, eq=False)
class Matching:
    """All detections and objects, and their matches."""

    image_ids: tuple[Id, ...]
    names: tuple[str, ...]
    """Of the classes."""
    objects: Objects
    found: Found
    pairs: Pairs
    match: np.ndarray
    """(N,) the object that a detection finds; -1: none."""
    in_crowd: np.ndarray
    """(N,) bool: overlaps a crowd region of its class."""
    finder: np.ndarray
    """(M,) the detection that finds an object; -1: none. Crowd regions are never found."""

    @property
    def ignored(self) -> np.ndarray:
        """(N,) In a crowd region, and without an object: neither right nor wrong."""
        return self.in_crowd & ~self.is_right

    @property
    def is_right(self) -> np.ndarray:
        """(N,) True positives."""
        return self.match >= 0

    @property
    def is_wrong(self) -> np.ndarray:
        """(N,) False positives."""
        return ~self.is_right & ~self.ignored


def matching(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]]) -> Matching:
    """Match the detections of ``coco_report``, which has checked both.

    Args:
        ground_truth: a COCO dictionary.
        results: COCO results.
    """
    images = numbering(image["id"] for image in ground_truth["images"])
    categories = numbering(category["id"] for category in ground_truth["categories"])
    names = class_names(ground_truth["categories"])
    annotations = ground_truth["annotations"]
    if isinstance(annotations, AnnotationRows):
        given = annotations.objects
        image, label = numbered(given, images, categories)
        objects = Objects(image - 1, label - 1, given.boxes, given.crowd)
    else:
        is_crowd = np.array([bool(each.get("iscrowd", 0)) for each in annotations], dtype=bool)
        objects = Objects(*_columns(annotations, images, categories), is_crowd=is_crowd)
    image, label, boxes = _columns(results, images, categories)
    scores = np.array([result["score"] for result in results], dtype=np.float64)
    order = np.lexsort((-scores, image))  # stable
    found = Found(image[order], label[order], boxes[order], scores[order])
    pairs = overlapping(found, objects, len(images))
    near = pairs.iou >= MATCH_IOU
    same = near & (found.label[pairs.found] == objects.label[pairs.object])
    crowd = objects.is_crowd[pairs.object]
    match = greedy(Pairs(*(column[same & ~crowd] for column in pairs)), len(scores))
    in_crowd = np.zeros(len(scores), dtype=bool)
    in_crowd[pairs.found[same & crowd]] = True
    finder = np.full(len(objects.image), -1)
    finder[match[match >= 0]] = np.flatnonzero(match >= 0)
    of_classes = tuple(names[id] for id in categories)
    return Matching(tuple(images), of_classes, objects, found, pairs, match, in_crowd, finder)


def _columns(
    entries: Sequence[dict[str, Any]], images: dict[Id, int], categories: dict[Id, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and class, from 0, and box of annotations or results."""
    return (
        np.array([images[each["image_id"]] - 1 for each in entries], dtype=np.int64),
        np.array([categories[each["category_id"]] - 1 for each in entries], dtype=np.int64),
        np.array([each["bbox"] for each in entries], dtype=np.float64).reshape(-1, 4),
    )


def overlapping(found: Found, objects: Objects, num_images: int) -> Pairs:
    """The pairs of a detection and an object of the same image whose IoU is at least ``NEAR_IOU``."""
    by_image = np.argsort(objects.image, kind="stable")
    count = np.bincount(objects.image, minlength=num_images)
    first = np.cumsum(count) - count
    sizes = count[found.image]  # objects beside each detection
    ends = np.cumsum(sizes)
    parts: list[Pairs] = []
    begin = 0
    while begin < len(sizes):
        before = ends[begin] - sizes[begin]
        end = max(begin + 1, int(np.searchsorted(ends, before + MAX_PAIRS, "right")))
        size = sizes[begin:end]
        index = np.repeat(np.arange(begin, end), size)
        within = np.arange(len(index)) - np.repeat(np.cumsum(size) - size, size)
        other = by_image[first[found.image[index]] + within]
        iou = box_iou(found.boxes[index], objects.boxes[other], objects.is_crowd[other])
        near = iou >= NEAR_IOU
        parts.append(Pairs(index[near], other[near], iou[near]))
        begin = end
    if not parts:
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def box_iou(boxes: np.ndarray, others: np.ndarray, is_crowd: np.ndarray) -> np.ndarray:
    """The IoU of boxes (P, 4) with as many others, x, y, w, h; with crowd regions the intersection over the box."""
    high = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    sides = np.maximum(high - np.maximum(boxes[:, :2], others[:, :2]), 0)
    intersection = sides[:, 0] * sides[:, 1]
    area = boxes[:, 2] * boxes[:, 3]
    union = np.where(is_crowd, area, area + others[:, 2] * others[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def greedy(pairs: Pairs, num_found: int) -> np.ndarray:
    """The object of each detection (-1: none): each takes its best free object, in the order of the detections."""
    match = np.full(num_found, -1)
    # Of equal IoU the later object, as pycocotools.
    order = np.lexsort((-pairs.object, -pairs.iou, pairs.found))
    taken: set[int] = set()
    for found, candidate in zip(pairs.found[order].tolist(), pairs.object[order].tolist(), strict=True):
        if match[found] < 0 and candidate not in taken:
            match[found] = candidate
            taken.add(candidate)
    return match
