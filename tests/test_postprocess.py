import torch

from detrs.classification import Focal
from detrs.postprocess import detections
from detrs.structures import Classes, Prediction

CLASSES = Classes(("ape", "bee", "cat"), (7, 3, 90))


def test_best_pairs_of_query_and_class_in_pixels_of_each_image() -> None:
    logits = torch.full((2, 4, 3), -5.0)
    logits[0, 1, 2], logits[0, 3, 0], logits[0, 1, 0] = 2.0, 1.0, 0.0
    logits[1, 0, 1] = 3.0
    boxes = torch.rand(2, 4, 4)
    boxes[0, 1] = torch.tensor([0.5, 0.25, 0.2, 0.1])
    first, second = detections(Prediction(logits, boxes), [(100, 200), (31, 17)], CLASSES, Focal(), max_detections=3)
    assert first.names == ["cat", "ape", "ape"]  # one query may answer twice
    torch.testing.assert_close(first.scores, torch.tensor([2.0, 1.0, 0.0]).sigmoid())
    torch.testing.assert_close(first.boxes_xyxy[0], torch.tensor([80.0, 20.0, 120.0, 30.0]))
    assert torch.equal(first.boxes_xyxy[0], first.boxes_xyxy[2])
    assert second.names[0] == "bee"
    x, y, w, h = boxes[1, 0].tolist()
    expected = torch.tensor([(x - w / 2) * 17, (y - h / 2) * 31, (x + w / 2) * 17, (y + h / 2) * 31])
    torch.testing.assert_close(second.boxes_xyxy[0], expected)
    assert second.image_size == (31, 17)


def test_no_more_detections_than_pairs() -> None:
    (found,) = detections(Prediction(torch.randn(1, 2, 3), torch.rand(1, 2, 4)), [(5, 7)], CLASSES, Focal())
    assert len(found) == 6
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
