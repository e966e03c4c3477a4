"""The terms of the loss that are about boxes; those about classes are in ``detrs.classification``."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from detrs.boxes import cxcywh_to_xyxy, generalized_iou
from detrs.config.criterion import BoxCoordinates


def unchanged(boxes: Tensor) -> Tensor:
    """Boxes are cxcywh already."""
    return boxes


COORDINATES: dict[BoxCoordinates, Callable[[Tensor], Tensor]] = {"cxcywh": unchanged, "xyxy": cxcywh_to_xyxy}
"""Boxes, cxcywh, to the coordinates of the L1 distance."""


def box_losses(
    boxes: Float[Tensor, "N 4"], targets: Float[Tensor, "N 4"], coordinates: BoxCoordinates = "cxcywh"
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """L1 distance and 1 - GIoU of each matched pair of normalized cxcywh boxes."""
    of = COORDINATES[coordinates]
    distance = (of(boxes) - of(targets)).abs().sum(-1)
    return distance, 1 - generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
