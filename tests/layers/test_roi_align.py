"""RoI pooling equals torchvision's RoIAlign level by level, and the authors' numbers."""

from pathlib import Path

import goldens
import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from detrs.boxes import cxcywh_to_xyxy
from detrs.layers.neck import centers
from detrs.layers.roi_align import Extents, RoIAlign, valid_levels, whole_levels
from detrs.structures import Pyramid

STRIDES = (4, 8, 16, 32)
BOXES = torch.tensor(
    [
        [0.5, 0.5, 1.0, 1.0],
        [0.2, 0.3, 0.1, 0.2],
        [0.7, 0.6, 0.4, 0.3],
        [0.5, 0.5, 0.02, 0.03],
        [0.4, 0.8, 0.3, 0.3],
        [0.9, 0.1, 0.15, 0.15],
    ]
)
"""Those of the golden values."""
OUTSIDE = torch.tensor([[0.02, 0.97, 0.4, 0.3], [1.4, 0.5, 0.3, 0.3], [0.5, 0.5, 3.0, 2.5], [0.5, 0.5, 0.0, 0.0]])
"""Across the border, outside, larger than the image, without area."""


def pyramid(maps: list[Tensor], sizes: list[tuple[int, int]]) -> Pyramid:
    """Maps of strides 4, 8, ... and the (height, width) of each image in pixels."""
    shapes = tuple((level.shape[2], level.shape[3]) for level in maps)
    images = torch.tensor(sizes)
    valid = torch.stack([-(-images.flip(1) // stride) for stride in STRIDES], dim=1).float()  # (B, L, 2)
    padding = []
    for level, (height, width) in enumerate(shapes):
        columns, rows = valid[:, level].unbind(1)
        outside = torch.arange(height)[:, None] >= rows[:, None, None]
        padding.append((outside | (torch.arange(width) >= columns[:, None, None])).flatten(1))
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
    ratio = valid / torch.tensor([(width, height) for height, width in shapes])
    return Pyramid(tokens, tokens[..., :0], centers(shapes, valid), torch.cat(padding, dim=1), shapes, ratio, images)


def one_by_one(boxes: Tensor, maps: list[Tensor], sizes: list[tuple[int, int]], canonical_size: float) -> Tensor:
    """Every box alone, with torchvision: (B, Q, C, 7, 7)."""
    pooled = []
    for image, (height, width) in enumerate(sizes):
        for box in cxcywh_to_xyxy(boxes[image]) * torch.tensor([width, height, width, height]):
            side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
            level = int(torch.floor(4 + torch.log2(side / canonical_size + 1e-8)).clamp(2, 5)) - 2
            features = maps[level][image : image + 1]
            pooled.append(roi_align(features, [box[None]], 7, 1 / STRIDES[level], sampling_ratio=2, aligned=True)[0])
    return torch.stack(pooled).unflatten(0, boxes.shape[:2])


def random_maps(height: int, width: int, channels: int = 8) -> list[Tensor]:
    return [torch.randn(2, channels, -(-height // stride), -(-width // stride)) for stride in STRIDES]


@pytest.mark.parametrize("canonical_size", [224.0, 40.0])
def test_values_and_gradients_are_those_of_torchvision(canonical_size: float) -> None:
    torch.manual_seed(0)
    sizes, maps = [(203, 331), (171, 202)], random_maps(203, 331)
    near = torch.cat([torch.rand(60, 2), torch.rand(60, 2) * 1.3], dim=-1)
    boxes = torch.stack([torch.cat([OUTSIDE, BOXES, part]) for part in near.split(30)])
    pooling = RoIAlign(STRIDES, whole_levels, canonical_size=canonical_size)
    leaves = [level.clone().requires_grad_() for level in maps]
    found = pooling(boxes, pyramid(leaves, sizes))
    others = [level.clone().requires_grad_() for level in maps]
    expected = one_by_one(boxes, others, sizes, canonical_size).flatten(3).transpose(2, 3)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    levels = pooling.level(boxes[..., 2:] * torch.tensor([[[331, 203]], [[202, 171]]]))
    assert set(levels.flatten().tolist()) >= {0, 1, 2} and found[0, 1].abs().max() == 0
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, other in zip(leaves, others, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_boxes_receive_no_gradient() -> None:
    boxes = BOXES.expand(2, -1, -1).clone().requires_grad_()
    maps = [level.requires_grad_() for level in random_maps(64, 96)]
    RoIAlign(STRIDES, whole_levels)(boxes, pyramid(maps, [(64, 96), (64, 96)])).sum().backward()
    assert boxes.grad is None and maps[0].grad.abs().max() > 0


@pytest.mark.parametrize("extents", [whole_levels, valid_levels])
@torch.no_grad()
def test_valid_levels_pool_as_from_the_image_without_padding(extents: Extents) -> None:
    """Also at the border, where interpolation would reach into the padding."""
    torch.manual_seed(0)
    maps, (height, width) = random_maps(192, 320), (128, 224)
    cropped = [x[..., : height // stride, : width // stride] for x, stride in zip(maps, STRIDES, strict=True)]
    boxes = torch.cat([BOXES, OUTSIDE]).expand(2, -1, -1)
    pooling, sizes = RoIAlign(STRIDES, extents, canonical_size=60.0), [(height, width)] * 2
    padded, alone = pooling(boxes, pyramid(maps, sizes)), pooling(boxes, pyramid(cropped, sizes))
    assert alone[:, -2].abs().max() > 0
    if extents is valid_levels:
        torch.testing.assert_close(padded, alone)
    else:
        assert (padded - alone).abs().max() > 0.1


@torch.no_grad()
def test_boxes_that_are_not_finite_raise_no_error() -> None:
    """A diverging model is reported by its loss."""
    boxes = BOXES.clone()
    boxes[0], boxes[1, 2], boxes[2, 0], boxes[3, 2:] = torch.nan, torch.inf, -torch.inf, 1e30
    found = RoIAlign(STRIDES, whole_levels)(boxes.expand(2, -1, -1), pyramid(random_maps(64, 96), [(64, 96)] * 2))
    assert found.shape == (2, 6, 49, 8)


@torch.no_grad()
def test_golden_values_of_the_official_pooling(shared: Path) -> None:
    sizes = ((64, 96), (32, 48), (16, 24), (8, 12))
    maps = [goldens.inputs(1000 + k, 2, 32, *size) for k, size in enumerate(sizes)]
    pooling = RoIAlign(STRIDES, whole_levels)
    found = pooling(BOXES.expand(2, -1, -1), pyramid(maps, [(256, 384), (200, 320)]))
    goldens.check(found.transpose(2, 3).reshape(12, 32, 7, 7), goldens.golden(shared, "sparse.roi")["out"])
