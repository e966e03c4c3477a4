"""Thresholds, classes, non-maximum suppression and tiles as arguments of the predictor."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from made_detector import CLASSES, RectangleFinder, finder, painted
from PIL import Image

from detrs.boxes import xyxy_to_cxcywh
from detrs.errors import UserError
from detrs.predictor import Predictor
from detrs.structures import Boxes

SIZE = (90, 130)


class Fixed(RectangleFinder):
    """Returns the same detections for every image."""

    ROWS = (
        (0.9, 0, (10, 10, 50, 50)),
        (0.8, 1, (10, 10, 50, 50)),
        (0.7, 0, (10, 10, 50, 45)),  # IoU 0.875 with the first
        (0.6, 2, (60, 10, 100, 50)),
        (0.3, 1, (60, 55, 90, 80)),
        (0.2, 0, (100, 55, 120, 80)),
    )

    def detect(self, images: torch.Tensor, padding: torch.Tensor, max_detections: int = 100) -> Boxes:
        scores, labels, boxes = zip(*self.ROWS, strict=True)
        height, width = SIZE
        relative = xyxy_to_cxcywh(torch.tensor(boxes, dtype=torch.float32)) / torch.tensor(
            [width, height, width, height]
        )
        rows = relative, torch.tensor(scores), torch.tensor(labels)
        return Boxes(*(each[None].repeat(len(images), *[1] * each.ndim) for each in rows))


def predictor(**changes: Any) -> Predictor:
    return Predictor(finder(64, Fixed(), **changes), "cpu")


def scores(found: Any) -> list[float]:
    return [round(score, 3) for score in found[0].scores.tolist()]


IMAGE = painted(SIZE, [])


def test_classes_by_name() -> None:
    everything = predictor()(IMAGE, threshold=0.0)
    assert scores(everything) == [0.9, 0.8, 0.7, 0.6, 0.3, 0.2]
    for classes, expected in (
        ("red", [0.9, 0.7, 0.2]),
        (["blue", "green"], [0.8, 0.6, 0.3]),
        (("red", "red"), [0.9, 0.7, 0.2]),
        (CLASSES.names, scores(everything)),
    ):
        found = predictor()(IMAGE, threshold=0.0, classes=classes)
        assert scores(found) == expected
        assert {*found[0].names} <= ({classes} if isinstance(classes, str) else {*classes})
        assert found[0].classes == CLASSES  # labels keep their meaning
    assert scores(predictor()(IMAGE, threshold=0.5, classes="red")) == [0.9, 0.7]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("rde", "^The detector has no class 'rde'. Did you mean 'red'\\? Its classes are red, green, blue.$"),
        (["red", "RED"], "^The detector has no class 'RED'. Did you mean 'red'\\?"),
        (["dog"], "^The detector has no class 'dog'. Its classes are red, green, blue.$"),
        ("", "^The detector has no class ''. Its classes"),
        ([3], "^The detector has no class '3'. Its classes"),
        ([], "^classes: expected some of red, green, blue, got none.$"),
    ],
)
def test_unknown_classes(classes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predictor()(IMAGE, classes=classes)


def test_the_suppression_of_the_training_is_the_default() -> None:
    """``nms`` replaces it: 1 switches it off."""
    plain = predictor()
    detector = plain.detector
    evaluation = replace(detector.experiment.evaluation, nms=0.87)
    own = Predictor(replace(detector, experiment=replace(detector.experiment, evaluation=evaluation)), "cpu")
    assert scores(own(IMAGE, threshold=0.0)) == [0.9, 0.8, 0.6, 0.3, 0.2]
    everything = [row[0] for row in Fixed.ROWS]
    assert scores(own(IMAGE, threshold=0.0, nms=1.0)) == scores(plain(IMAGE, threshold=0.0)) == everything
    tiled = {"threshold": 0.0, "tile": 48, "batch_size": 2}
    assert scores(own(IMAGE, **tiled)) == scores(plain(IMAGE, nms=0.87, **tiled)) != scores(plain(IMAGE, **tiled))


def test_a_file_with_its_own_suppression() -> None:
    """Its detections are unchanged, and another value is rejected."""
    detector = predictor().detector
    evaluation = replace(detector.experiment.evaluation, nms=0.87)
    experiment = replace(detector.experiment, evaluation=evaluation)
    own = Predictor(replace(detector, experiment=experiment, own_precision="fp32", own_nms=0.87), "cpu")
    expected = [row[0] for row in Fixed.ROWS]
    assert scores(own(IMAGE, threshold=0.0)) == scores(own(IMAGE, threshold=0.0, nms=0.87)) == expected
    with pytest.raises(
        UserError, match=r"^nms \(--nms\) is 0.5, but the exported file suppresses at 0.87 itself: omit it"
    ):
        own(IMAGE, nms=0.5)
    without = Predictor(replace(detector, own_precision="fp32"), "cpu")
    assert scores(without(IMAGE, threshold=0.0)) == expected
    assert scores(without(IMAGE, threshold=0.0, nms=0.87)) == [0.9, 0.8, 0.6, 0.3, 0.2]


def test_the_suppression_of_a_predictor() -> None:
    """It is that of all calls without another one."""
    own = Predictor(predictor().detector, "cpu", nms=0.87)
    assert own.nms == 0.87 and predictor().nms is None
    assert scores(own(IMAGE, threshold=0.0)) == [0.9, 0.8, 0.6, 0.3, 0.2]
    assert len(own(IMAGE, threshold=0.0, nms=1.0)[0]) == len(Fixed.ROWS)
    with pytest.raises(UserError, match="^nms is 2, but must be"):
        Predictor(predictor().detector, "cpu", nms=2)


def test_suppression_is_off_by_default() -> None:
    assert scores(predictor()(IMAGE, threshold=0.0, nms=0.87)) == [0.9, 0.8, 0.6, 0.3, 0.2]
    assert scores(predictor()(IMAGE, threshold=0.0, nms=0.88)) == [0.9, 0.8, 0.7, 0.6, 0.3, 0.2]
    with pytest.raises(UserError, match="^nms is 2, but must be"):
        predictor()(IMAGE, nms=2)


def test_thresholds_of_the_classes() -> None:
    own = {"red": 0.8, "green": 0.25, "blue": None}
    assert scores(predictor(class_thresholds=own)(IMAGE)) == [0.9, 0.8, 0.7, 0.6]  # the default stays one for all
    assert scores(predictor(class_thresholds=own)(IMAGE, threshold="per-class")) == [0.9, 0.8, 0.6, 0.3]
    high = predictor(class_thresholds=own, threshold=0.65)
    assert scores(high(IMAGE, threshold="per-class")) == [0.9, 0.8, 0.3]  # blue has none: that of the detector
    exact = {"red": float(torch.tensor(0.7)), "green": 0.8, "blue": 1.0}
    assert scores(predictor(class_thresholds=exact)(IMAGE, threshold="per-class")) == [0.9, 0.8, 0.7]


@pytest.mark.parametrize("own", [{}, {"red": None}, {"of another class": 0.3}])
def test_a_detector_without_thresholds_of_its_classes(own: dict[str, float | None]) -> None:
    with pytest.raises(UserError, match="^threshold is 'per-class', but the checkpoint has no thresholds of its"):
        predictor(class_thresholds=own)(IMAGE, threshold="per-class")


@pytest.mark.parametrize("threshold", ["per_class", "0.5"])
def test_other_words_are_no_threshold(threshold: Any) -> None:
    with pytest.raises(UserError, match=rf"^threshold is '{threshold}', but must be a number in \[0, 1\] or 'per-c"):
        predictor()(IMAGE, threshold=threshold)


def test_tiles_of_large_images() -> None:
    size, small, large = (300, 500), (1, (240, 100, 250, 110)), (0, (40, 30, 480, 280))
    image = painted(size, [small, large])
    detector = Predictor(finder(100, RectangleFinder(border_score=0.25)), "cpu")
    (plain,) = detector(image, threshold=0.0)
    (tiled,) = detector(image, threshold=0.0, tile=100)
    assert plain.names == ["red", "green"] and sorted(tiled.names) == ["green", "red"]
    exact = tiled.boxes_xyxy[tiled.labels == 1]
    assert exact.tolist() == [list(map(float, small[1]))]  # not resized in a tile of 100 pixels
    assert plain.boxes_xyxy[plain.labels == 1].tolist() != exact.tolist()
    without = detector(image, threshold=0.0, tile=100, overlap=0.5, whole_image=False, classes="red")
    assert scores(without) == [0.25]  # united
    torch.testing.assert_close(without[0].boxes_xyxy, torch.tensor([large[1]], dtype=torch.float32))
    with pytest.raises(UserError, match="^tile is 3"):
        detector(image, tile=3)
    with pytest.raises(UserError, match="^overlap is 20"):
        detector(image, tile=100, overlap=20)


def test_the_limit_of_detections_is_that_of_each_tile() -> None:
    image = painted((64, 640), [(0, (x, 10, x + 6, 16)) for x in range(4, 630, 10)])
    assert len(Predictor(finder(640), "cpu", max_detections=5)(image, threshold=0.0)[0]) == 5
    detector = Predictor(finder(64), "cpu", max_detections=5)
    assert len(detector(image, threshold=0.0, tile=64, overlap=0.25, whole_image=False)[0]) > 40


@pytest.mark.parametrize("nms", [0.5, 0.01])
def test_suppression_is_applied_to_merged_tiles(nms: float) -> None:
    """Two boxes of one tile, and one of another, of which the merging compares only those of different tiles."""
    detector = predictor()
    arguments: dict[str, Any] = {"threshold": 0.0, "tile": 80, "overlap": 0.0, "whole_image": False}
    before, after = detector(IMAGE, **arguments)[0], detector(IMAGE, nms=nms, **arguments)[0]
    assert 0 < len(after) < len(before)
    import torchvision

    kept = torchvision.ops.batched_nms(before.boxes_xyxy, before.scores, before.labels, nms)
    assert torch.equal(after.boxes_xyxy, before.boxes_xyxy[kept]) and torch.equal(after.scores, before.scores[kept])


def test_an_image_with_too_many_tiles_is_skipped(tmp_path: Any) -> None:
    for name, size in (("a.png", (50, 60)), ("b.png", (2100, 2100)), ("c.png", (40, 70))):
        Image.fromarray(painted(size, []).permute(1, 2, 0).numpy()).save(tmp_path / name)
    errors: list[tuple[str, UserError]] = []
    detector = Predictor(finder(32), "cpu")
    found = detector(tmp_path, tile=32, overlap=0.0, on_error=lambda *error: errors.append(error))
    assert [each.image_size for each in found] == [(50, 60), (40, 70)]
    ((source, error),) = errors
    assert source == str(tmp_path / "b.png") and "2100 x 2100 pixels has 4,356 tiles" in str(error)
    with pytest.raises(UserError, match="4,356 tiles"):
        detector(tmp_path, tile=32, overlap=0.0)
