"""Runners-up, duplicates and the best queries."""

import numpy as np
import torch

from detrs.explanation.trace import best_queries, duplicates, overlaps, runners_up
from detrs.explanation.views import LayerTrace

BOXES = torch.tensor(
    [
        [0.4, 0.5, 0.2, 0.4],
        [0.41, 0.5, 0.2, 0.4],  # the same object
        [0.42, 0.5, 0.2, 0.4],  # the same place, another class
        [0.48, 0.5, 0.2, 0.4],  # IoU 0.43
        [0.4, 0.51, 0.2, 0.38],  # the same object, not visible
        [0.4, 0.5, 0.21, 0.4],  # the same object, better
        [0.4, 0.5, 0.0, 0.0],  # no area
    ]
)
SCORES = torch.tensor(
    [
        [0.8, 0.3, 0.1, 0.2],
        [0.4, 0.1, 0.1, 0.1],
        [0.5, 0.6, 0.1, 0.1],
        [0.7, 0.1, 0.1, 0.1],
        [0.04, 0.01, 0.01, 0.01],
        [0.9, 0.1, 0.1, 0.1],
        [0.3, 0.1, 0.1, 0.1],
    ]
)
LAST = LayerTrace(torch.zeros(7, 0), BOXES, SCORES)


def test_runners_up_are_the_other_classes_best_first() -> None:
    found = runners_up(LAST, query=0, label=0)
    assert [each.label for each in found] == [1, 3, 2]
    assert np.allclose([each.score for each in found], [0.3, 0.2, 0.1])
    assert [each.label for each in runners_up(LAST, query=2, label=0, count=1)] == [1]


def test_duplicates_are_visible_overlapping_queries_of_the_same_class() -> None:
    found = duplicates(LAST, query=0, label=0)
    assert [each.query for each in found] == [5, 1]
    assert np.allclose([each.iou for each in found], [0.2 / 0.21, 0.19 / 0.21], atol=1e-6)
    assert [each.label for each in found] == [0, 0]
    assert duplicates(LAST, query=2, label=1) == []


def test_overlap_by_hand() -> None:
    corners = np.stack([BOXES[:, 0] - BOXES[:, 2] / 2, BOXES[:, 0] + BOXES[:, 2] / 2], 1).astype(float)
    heights = np.stack([BOXES[:, 1] - BOXES[:, 3] / 2, BOXES[:, 1] + BOXES[:, 3] / 2], 1).astype(float)
    wide = (np.minimum(corners[:, 1], corners[0, 1]) - np.maximum(corners[:, 0], corners[0, 0])).clip(0)
    high = (np.minimum(heights[:, 1], heights[0, 1]) - np.maximum(heights[:, 0], heights[0, 0])).clip(0)
    areas = (corners[:, 1] - corners[:, 0]) * (heights[:, 1] - heights[:, 0])
    assert np.allclose(overlaps(BOXES, 0).numpy(), wide * high / (areas + areas[0] - wide * high), atol=1e-6)


def test_best_queries_are_those_of_detections_then_those_with_the_highest_scores() -> None:
    assert best_queries(LAST, [4], 3).tolist() == [0, 4, 5]
    assert best_queries(LAST, [], 2).tolist() == [0, 5]
    assert best_queries(LAST, [4, 1, 6], 2).tolist() == [1, 6]
    assert best_queries(LAST, [], 100).tolist() == list(range(7))
    assert SCORES.max() == 0.9, "scores are not changed"
