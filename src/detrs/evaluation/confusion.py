"""The confusion matrix of detections, with the background as an additional class.

Detections with a score of at least the threshold are matched regardless of class, from the highest score to the lowest:
each takes the free object with the largest IoU of at least 0.5. Objects that no detection takes are found as
background; detections that take no object are detections of the background, except in crowd regions of their class,
where they are ignored as in COCO's AP. (``hotcoco`` counts those as detections of the background.)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from detrs.evaluation.matching import MATCH_IOU, Matching, Pairs, greedy


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Numbers of objects and detections by true class and detected class."""

    names: tuple[str, ...]
    """K classes."""
    matrix: np.ndarray
    """(K+1, K+1) int: row: class of the object, column: class of the detection; the last is the background. The sum of
    a row is the number of objects of that class, the last row has the detections of nothing."""

    def to_json(self) -> dict[str, Any]:
        """Only entries that are not 0, so that 1,000 classes stay a small file."""
        names = (*self.names, None)
        rows, columns = np.nonzero(self.matrix)
        entries = [
            {"truth": names[row], "detected": names[column], "count": int(self.matrix[row, column])}
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
        return {"names": list(self.names), "entries": entries}


def confusion_matrix(matched: Matching, threshold: float) -> ConfusionMatrix:
    """The confusion matrix of the detections with a score of at least ``threshold``."""
    found, objects, pairs = matched.found, matched.objects, matched.pairs
    accepted = found.scores >= threshold
    usable = (pairs.iou >= MATCH_IOU) & ~objects.is_crowd[pairs.object] & accepted[pairs.found]
    match = greedy(Pairs(*(column[usable] for column in pairs)), len(found.scores))
    size = len(matched.names) + 1
    matrix = np.zeros((size, size), dtype=np.int64)
    taken = match >= 0
    np.add.at(matrix, (objects.label[match[taken]], found.label[taken]), 1)
    wrong = accepted & ~taken & ~matched.in_crowd
    np.add.at(matrix, (-1, found.label[wrong]), 1)
    missed = ~objects.is_crowd
    missed[match[taken]] = False
    np.add.at(matrix, (objects.label[missed], -1), 1)
    return ConfusionMatrix(matched.names, matrix)
