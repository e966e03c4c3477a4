"""The threshold of the best F1, against a search over all scores."""

from typing import Any

import numpy as np
import pytest
import torch
from crowded import dataset

from detrs.evaluation.matching import matching
from detrs.evaluation.thresholds import best_threshold, between, curve, curve_of, f1_thresholds


def f1_at(threshold: float, matched: Any, label: int | None) -> float:
    """F1 by counting."""
    accepted = right = objects = 0
    for index, score in enumerate(matched.found.scores.tolist()):
        if score >= threshold and not matched.ignored[index] and label in (None, matched.found.label[index]):
            accepted += 1
            right += matched.match[index] >= 0
    for own, crowd in zip(matched.objects.label.tolist(), matched.objects.is_crowd.tolist(), strict=True):
        objects += not crowd and label in (None, own)
    return 2 * right / (accepted + objects) if accepted + objects else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_has_a_higher_f1(seed: int) -> None:
    truth, results = dataset(seed)
    matched = matching(truth, results)
    thresholds = f1_thresholds(truth, results)
    assert list(thresholds.per_class) == ["class 2", "class 4", "class 9"]  # in the order of their ids
    assert thresholds.per_class["class 9"] is None  # without objects
    for label, threshold in ((None, thresholds.overall), *zip((0, 1), thresholds.per_class.values(), strict=False)):
        assert threshold is not None
        best = f1_at(threshold, matched, label)
        others = [f1_at(score, matched, label) for score in np.unique(matched.found.scores)]
        assert best == max(others) > 0
        first = max(score for score in np.unique(matched.found.scores) if f1_at(score, matched, label) == best)
        assert first - 1 / 8 < threshold <= first  # scores are multiples of 1/8; of equal F1, the fewest detections


def test_curve_by_hand() -> None:
    """Four detections, two of equal score, three objects; one detection is wrong."""
    found = curve_of(np.array([0.5, 0.9, 0.5, 0.2]), np.array([True, True, False, True]), 3)
    assert found.scores.tolist() == [0.9, 0.5, 0.2]
    assert found.precision.tolist() == pytest.approx([1, 2 / 3, 3 / 4])
    assert found.recall.tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert found.f1.tolist() == pytest.approx([2 / 4, 4 / 6, 6 / 7])
    assert best_threshold(found) == 0.1  # between 0.2 and none


def test_without_right_detections_there_is_no_threshold() -> None:
    assert best_threshold(curve_of(np.array([0.5]), np.array([False]), 2)) is None
    assert best_threshold(curve_of(np.array([]), np.array([], bool), 2)) is None
    assert best_threshold(curve_of(np.array([]), np.array([], bool), 0)) is None
    truth, results = dataset(0)
    assert f1_thresholds(truth, []).overall is None
    matched = matching({**truth, "annotations": []}, results)
    assert best_threshold(curve(matched)) is None and not curve(matched).recall.any()


def test_the_threshold_can_be_typed_and_accepts_the_same_detections() -> None:
    assert between(0.4, 0.6) == 0.5 and between(0.412, 0.4139) == 0.413 and between(0.41, 0.42) == 0.42
    assert between(0.0, 1.0) == 0.5 and between(0.12345, 0.12349) == 0.12347 and between(1e-7, 3e-7) == 2e-7
    random = np.random.default_rng(0)
    for digits in (1, 3, 5, 9):
        scores = np.unique((random.random(200) ** digits).astype(np.float32))
        for below, score in zip(scores.tolist(), scores[1:].tolist(), strict=False):
            threshold = float(str(between(below, score)))  # printed and typed
            accepted = torch.tensor([below, score]) >= threshold
            assert accepted.tolist() == [False, True] and below < threshold <= score
    close = np.float32(0.7), np.nextafter(np.float32(0.7), np.float32(1))
    threshold = between(*map(float, close))
    assert (torch.tensor(close) >= float(str(threshold))).tolist() == [False, True]
