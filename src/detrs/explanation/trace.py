"""Questions to the trace: which other classes did a query predict, and which other queries predict the same object?"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torchvision.ops import box_iou

from detrs.boxes import cxcywh_to_xyxy
from detrs.explanation.views import Duplicate, Explanation, LayerTrace

DUPLICATE_IOU = 0.5
"""Two queries of one class whose boxes overlap more are duplicates."""
VISIBLE_SCORE = 0.05
"""Smallest score of a duplicate: most queries predict something everywhere, with scores near zero."""


class RunnerUp(NamedTuple):
    """Another class of the same query."""

    label: int
    score: float


def runners_up(last: LayerTrace, query: int, label: int, count: int = 5) -> list[RunnerUp]:
    """The classes of a query other than ``label`` with the highest scores, best first."""
    scores, labels = last.scores[query].sort(descending=True, stable=True)
    pairs = zip(labels.tolist(), scores.tolist(), strict=True)
    return [RunnerUp(other, score) for other, score in pairs if other != label][:count]


def duplicates(last: LayerTrace, query: int, label: int) -> list[Duplicate]:
    """Other queries whose best class is ``label``, whose box overlaps and whose score is visible, best first."""
    scores, labels = last.scores.max(1)
    iou = overlaps(last.boxes, query)
    same = (labels == label) & (iou > DUPLICATE_IOU) & (scores >= VISIBLE_SCORE)
    same[query] = False
    found = same.nonzero()[:, 0]
    found = found[scores[found].argsort(descending=True, stable=True)]
    return [Duplicate(i, label, float(scores[i]), float(iou[i]), tuple(last.boxes[i].tolist())) for i in found.tolist()]


def duplicates_of(explanation: Explanation, index: int) -> Sequence[Duplicate]:
    """Of a detection: the boxes that non-maximum suppression removed for it or, without suppression, ``duplicates``."""
    if explanation.suppressed is not None:
        return explanation.suppressed[index]
    return duplicates(explanation.trace[-1], explanation.queries[index], int(explanation.detections.labels[index]))


def overlaps(boxes: Tensor, query: int) -> Tensor:
    """IoU of each box (Q, 4), cxcywh, with that of ``query``: (Q,). It does not depend on the size of the image."""
    corners = cxcywh_to_xyxy(boxes.double())
    return box_iou(corners[query : query + 1], corners)[0].nan_to_num(0.0)


def best_queries(last: LayerTrace, first: list[int], count: int) -> Tensor:
    """``count`` queries, ascending: those of ``first``, then those with the highest scores of any class."""
    priority = last.scores.amax(1)
    priority[first] += 1.0  # above all scores, whose order is kept among them
    best = priority.sort(descending=True, stable=True).indices
    return best[:count].sort().values
