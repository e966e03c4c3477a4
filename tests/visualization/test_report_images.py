"""Ground truth and detections side by side, and parts of images."""

import numpy as np
import pytest
import torch

from detrs.visualization.report_images import GAP, ORANGE, PART, RIGHT_COLOR, SIDE, WHITE, Drawn, part, side_by_side

BLANK = torch.full((3, 100, 140), 90, dtype=torch.uint8)


def has(image: np.ndarray, color: tuple[int, ...]) -> bool:
    return bool((image == np.array(color)).all(-1).any())


def test_what_is_right_is_green_and_what_is_wrong_has_its_name() -> None:
    boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0], [70.0, 20.0, 130.0, 90.0]])
    truth, found = Drawn(boxes[:1], [0], [True]), Drawn(boxes[1:], [1], [False], [0.7])
    sheet = np.asarray(side_by_side(BLANK, truth, found, ["a", "b"]))
    left, right = sheet[:, :SIDE], sheet[:, SIDE + GAP :]
    assert left.shape == right.shape == (400, SIDE, 3)
    assert has(left, RIGHT_COLOR) and not has(right, RIGHT_COLOR)
    top = left[20 * 4, 10 * 4 : 50 * 4]
    assert (top == RIGHT_COLOR).all()
    assert (left[:, 300:] == 90).all() and (right[:, :260] == 90).all() and not (right == 90).all()


def test_sides_of_wide_images_are_one_below_the_other() -> None:
    nothing = Drawn(torch.zeros(0, 4), [], [])
    sheet = side_by_side(BLANK[:, :40], nothing, nothing, ["a"])
    assert sheet.size == (2 * SIDE, 2 * 320 + GAP)
    assert side_by_side(BLANK.transpose(1, 2), nothing, nothing, ["a"]).size == (2 * 400 + GAP, SIDE)


@pytest.mark.parametrize("box", [(0.0, 0.0, 10.0, 10.0), (120.0, 80.0, 20.0, 20.0), (-5.0, 0.0, 200.0, 120.0)])
def test_parts_contain_both_boxes(box: tuple[float, ...]) -> None:
    shifted = (box[0] + 3, box[1] + 2, box[2], box[3])
    for label, found in ((box, shifted), (box, None), (None, box)):
        cut = np.asarray(part(BLANK, label, found))
        assert max(cut.shape[:2]) == PART
        assert has(cut, WHITE) == (label is not None) and has(cut, ORANGE) == (found is not None)
