"""The terms of the loss that are about boxes; those about classes are in ``detrs.classification``."""

from jaxtyping import Float
from torch import Tensor

from detrs.boxes import cxcywh_to_xyxy, generalized_iou


def box_losses(
    boxes: Float[Tensor, "N 4"], targets: Float[Tensor, "N 4"]
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """L1 distance of normalized cxcywh boxes, and 1 - GIoU, of each matched pair."""
    distance = (boxes - targets).abs().sum(-1)
    return distance, 1 - generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
