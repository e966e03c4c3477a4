"""The terms of the loss that are about boxes; those about classes are in ``detrs.classification``."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from detrs.boxes import cxcywh_to_xyxy, generalized_iou
from detrs.config.criterion import BoxCoordinates


def unchanged(boxes: Tensor) -> Tensor:
    """Boxes are cxcywh already."""
    return boxes


COORDINATES: dict[BoxCoordinates, Callable[[Tensor], Tensor]] = {"cxcywh": unchanged, "xyxy": cxcywh_to_xyxy}
"""Boxes, cxcywh, to the coordinates of the L1 distance."""


def box_iou(boxes: Float[Tensor, "N 4"], others: Float[Tensor, "N 4"]) -> Float[Tensor, "N"]:
    """IoU of each pair of cxcywh boxes; 0 where the union is empty."""
    a, b = cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(others)
    sides = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    shared = sides.clamp(min=0).prod(-1)
    union = boxes[:, 2:].prod(-1) + others[:, 2:].prod(-1) - shared
    return torch.where(union > 0, shared / union, 0.0)


def box_losses(
    boxes: Float[Tensor, "N 4"], targets: Float[Tensor, "N 4"], coordinates: BoxCoordinates = "cxcywh"
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """L1 distance and 1 - GIoU of each matched pair of normalized cxcywh boxes."""
    of = COORDINATES[coordinates]
    distance = (of(boxes) - of(targets)).abs().sum(-1)
    return distance, 1 - generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
