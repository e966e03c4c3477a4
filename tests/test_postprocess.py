from typing import Any

import pytest
import torch

from detrs.boxes import cxcywh_to_xyxy
from detrs.classification import Focal, Softmax, class_logits
from detrs.config.detection import check_nms
from detrs.errors import UserError
from detrs.postprocess import best_boxes, detections, non_maximum, without_duplicates
from detrs.structures import Boxes, Classes, Detections, Prediction

CLASSES = Classes(("ape", "bee", "cat"), (7, 3, 90))


def test_best_pairs_of_query_and_class_in_pixels_of_each_image() -> None:
    logits = torch.full((2, 4, 3), -5.0)
    logits[0, 1, 2], logits[0, 3, 0], logits[0, 1, 0] = 2.0, 1.0, 0.0
    logits[1, 0, 1] = 3.0
    boxes = torch.rand(2, 4, 4)
    boxes[0, 1] = torch.tensor([0.5, 0.25, 0.2, 0.1])
    best = best_boxes(Prediction(logits, boxes), class_logits(Focal()), max_detections=3)
    first, second = detections(best, [(100, 200), (31, 17)], CLASSES)
    assert first.names == ["cat", "ape", "ape"]  # one query can appear with several classes
    torch.testing.assert_close(first.scores, torch.tensor([2.0, 1.0, 0.0]).sigmoid())
    torch.testing.assert_close(first.boxes_xyxy[0], torch.tensor([80.0, 20.0, 120.0, 30.0]))
    assert torch.equal(first.boxes_xyxy[0], first.boxes_xyxy[2])
    assert second.names[0] == "bee"
    x, y, w, h = boxes[1, 0].tolist()
    expected = torch.tensor([(x - w / 2) * 17, (y - h / 2) * 31, (x + w / 2) * 17, (y + h / 2) * 31])
    torch.testing.assert_close(second.boxes_xyxy[0], expected)
    assert second.image_size == (31, 17)


def test_no_more_detections_than_pairs() -> None:
    best = best_boxes(Prediction(torch.randn(1, 2, 3), torch.rand(1, 2, 4)), class_logits(Focal()), max_detections=100)
    (found,) = detections(best, [(5, 7)], CLASSES)
    assert len(found) == 6
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


@pytest.mark.parametrize(("classification", "expected"), [(Focal(), 6), (Softmax(), 2)])
def test_sizes_are_the_same_for_every_image(classification: Focal | Softmax, expected: int) -> None:
    meaning = class_logits(classification)
    logits = torch.randn(3, 2, meaning.num_logits(3))
    best = best_boxes(Prediction(logits, torch.rand(3, 2, 4)), meaning, max_detections=100)
    assert (best.boxes.shape, best.scores.shape, best.labels.shape) == ((3, expected, 4), (3, expected), (3, expected))


def test_boxes_of_score_zero_are_padding() -> None:
    boxes = Boxes(torch.rand(2, 3, 4), torch.tensor([[0.9, 0.4, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([[2, 1, 0]] * 2))
    first, second = detections(boxes, [(5, 7), (11, 13)], CLASSES, ["a.jpg", None])
    assert first.names == ["cat", "bee"] and len(second) == 0
    assert (first.source, second.source) == ("a.jpg", None)
    assert [found.source for found in detections(boxes, [(5, 7), (11, 13)], CLASSES)] == [None, None]


def suppressed(boxes: list[list[float]], scores: list[float], labels: list[int], iou: float) -> list[int]:
    """Greedy non-maximum suppression by its definition."""

    def overlap(a: list[float], b: list[float]) -> float:
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        common = max(width, 0) * max(height, 0)
        area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
        return common / (area_a + area_b - common)

    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(labels[i] != labels[j] or overlap(boxes[i], boxes[j]) <= iou for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("iou", [0.3, 0.6, 1.0])
def test_duplicates_of_a_batch(iou: float) -> None:
    """Each image by the definition; the rest of the fixed size has score 0."""
    torch.manual_seed(0)
    boxes = torch.cat([0.3 + 0.2 * torch.rand(2, 40, 2), 0.2 + 0.3 * torch.rand(2, 40, 2)], -1)
    scores = torch.rand(2, 40).sort(dim=1, descending=True).values
    labels = torch.randint(3, (2, 40))
    found, order = without_duplicates(Boxes(boxes, scores, labels), iou, 3)
    for i in range(2):
        kept = suppressed(cxcywh_to_xyxy(boxes[i]).tolist(), scores[i].tolist(), labels[i].tolist(), iou)
        assert order[i, : len(kept)].tolist() == kept and (len(kept) < 40) == (iou < 1)
        assert torch.equal(found.boxes[i, : len(kept)], boxes[i, kept])
        assert torch.equal(found.scores[i, : len(kept)], scores[i, kept])
        assert torch.equal(found.labels[i, : len(kept)], labels[i, kept])
        assert (found.scores[i, len(kept) :] == 0).all()


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7, 1.0])
def test_non_maximum_suppression_within_classes(iou: float) -> None:
    torch.manual_seed(0)
    corner, size = torch.rand(200, 2) * 30_000, torch.rand(200, 2) * 9_000 + 2_000  # as large as images may be
    boxes = torch.cat([corner, corner + size], 1)
    scores, labels = torch.rand(200).sort(descending=True).values, torch.randint(3, (200,))
    found = Detections(boxes, scores, labels, CLASSES, (40_000, 40_000))
    rows = non_maximum(found, iou).tolist()
    assert rows == suppressed(boxes.double().tolist(), scores.tolist(), labels.tolist(), iou)
    assert (len(rows) < 200) == (iou < 1)


def test_suppression_of_nothing() -> None:
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), CLASSES, (5, 7))
    assert len(none.rows(non_maximum(none, 0.5))) == 0


@pytest.mark.parametrize("iou", [0, -0.5, 1.5, 70, float("nan"), True, "0.5"])
def test_iou_out_of_range(iou: Any) -> None:
    with pytest.raises(UserError, match="^nms is .* but must be an IoU above 0 and at most 1"):
        check_nms(iou)
    check_nms(None)
    check_nms(1)
