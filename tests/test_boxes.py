import pytest
import torch
from torchvision import ops

from detrs import boxes


def random_xyxy(n: int, seed: int) -> torch.Tensor:
    corner = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    size = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64) + 0.01
    return torch.cat([corner, corner + size], dim=1)


def test_conversions_agree_with_torchvision_and_invert_each_other() -> None:
    xyxy = random_xyxy(13, seed=0)
    cxcywh = boxes.xyxy_to_cxcywh(xyxy)
    torch.testing.assert_close(cxcywh, ops.box_convert(xyxy, "xyxy", "cxcywh"))
    torch.testing.assert_close(boxes.cxcywh_to_xyxy(cxcywh), xyxy)


def test_generalized_iou_of_all_pairs_agrees_with_torchvision() -> None:
    a, b = random_xyxy(7, seed=1), random_xyxy(11, seed=2)
    torch.testing.assert_close(boxes.generalized_iou(a[:, None], b[None]), ops.generalized_box_iou(a, b))


def test_generalized_iou_by_hand() -> None:
    a, b = torch.tensor([0.0, 0.0, 2.0, 1.0]), torch.tensor([3.0, 0.0, 4.0, 1.0])  # apart by one unit
    assert boxes.generalized_iou(a, b).item() == pytest.approx(0 - (4 - 3) / 4)


def test_inverse_sigmoid_inverts_inside_and_stays_finite_outside() -> None:
    x = torch.linspace(0.01, 0.99, 31, dtype=torch.float64)
    torch.testing.assert_close(boxes.inverse_sigmoid(x).sigmoid(), x)
    edges = boxes.inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64))
    assert edges.tolist() == pytest.approx([-11.51292546, -11.51292546, 11.51292546, 11.51292546])


def test_offsets_of_zero_keep_the_reference() -> None:
    reference = torch.tensor([[0.2, 0.7, 0.1, 0.4]])
    torch.testing.assert_close(boxes.offset_from_box(torch.zeros(1, 4), reference), reference)
    from_point = boxes.offset_from_point(torch.zeros(1, 4), reference[:, :2])
    torch.testing.assert_close(from_point, torch.tensor([[0.2, 0.7, 0.5, 0.5]]))


def test_absolute_boxes_refer_to_nothing() -> None:
    raw = torch.randn(2, 3, 4)
    torch.testing.assert_close(boxes.absolute(raw, torch.zeros(2, 3, 0)), raw.sigmoid())


def test_iou_of_all_pairs_agrees_with_torchvision() -> None:
    a, b = random_xyxy(7, seed=1), random_xyxy(11, seed=2)
    torch.testing.assert_close(boxes.iou(a[:, None], b[None]), ops.box_iou(a, b))


def test_iou_of_pairs_and_of_boxes_without_area() -> None:
    a = torch.tensor([[0.4, 0.4, 0.6, 0.6], [0.4, 0.4, 0.6, 0.6], [0.0, 0.0, 0.1, 0.1], [0.3, 0.3, 0.3, 0.3]])
    b = torch.tensor([[0.4, 0.4, 0.6, 0.6], [0.5, 0.4, 0.7, 0.6], [0.8, 0.8, 0.9, 0.9], [0.3, 0.3, 0.3, 0.3]])
    torch.testing.assert_close(boxes.iou(a, b), torch.tensor([1, 1 / 3, 0, 0]))
