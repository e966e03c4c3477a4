"""The terms of the loss, per decoder layer."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from detrs.boxes import cxcywh_to_xyxy, generalized_iou


def focal_loss(
    logits: Float[Tensor, "Y B Q K"], onehot: Float[Tensor, "Y B Q K"], alpha: float, gamma: float
) -> Float[Tensor, "Y"]:
    """Sigmoid focal loss (Lin et al. 2017, Eq. 5), summed over everything but the layers."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, onehot, reduction="none")
    probability = logits.sigmoid()
    missed = probability + onehot - 2 * probability * onehot  # 1 - p_t
    weight = (1 - alpha) + (2 * alpha - 1) * onehot  # alpha_t
    return (weight * missed**gamma * cross_entropy).sum((1, 2, 3))


def box_losses(
    boxes: Float[Tensor, "N 4"], targets: Float[Tensor, "N 4"]
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """L1 distance of normalised cxcywh boxes, and 1 - GIoU, of each matched pair."""
    distance = (boxes - targets).abs().sum(-1)
    return distance, 1 - generalized_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets))
