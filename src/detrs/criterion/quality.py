"""Quality-aware classification: the score of a matched query is trained to be the quality of its box, not 1.

Sums of losses over queries and classes, with the arguments of ``FocalLogits.loss`` and the IoU of each matched query
with its object.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from detrs.classification import Matched
from detrs.config.criterion import Quality

QualityLoss = Callable[[Tensor, Matched, Tensor, Tensor], Tensor]
ALPHA, GAMMA = 0.75, 2.0
"""Of the varifocal loss, as in RT-DETR."""
MATCHABILITY_GAMMA = 1.5
"""DEIM, 4.1."""


def varifocal_loss(
    logits: Float[Tensor, "Y B Q K"], matched: Matched, labels: Int[Tensor, "N"], iou: Float[Tensor, "N"]
) -> Float[Tensor, "Y"]:
    """Cross entropy with the IoU q, times q; of all other logits, times alpha p^gamma (Zhang et al. 2021, Eq. 2)."""
    return _loss(logits, matched, labels, target=iou, weight=iou, alpha=ALPHA, gamma=GAMMA)


def matchability_loss(
    logits: Float[Tensor, "Y B Q K"], matched: Matched, labels: Int[Tensor, "N"], iou: Float[Tensor, "N"]
) -> Float[Tensor, "Y"]:
    """Cross entropy with q^gamma; of all other logits, times p^gamma (DEIM, Huang et al. 2025, Eq. 4)."""
    target = iou**MATCHABILITY_GAMMA
    return _loss(logits, matched, labels, target, target.new_ones(()), alpha=1.0, gamma=MATCHABILITY_GAMMA)


def _loss(
    logits: Tensor, matched: Matched, labels: Tensor, target: Tensor, weight: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Weights are constant: no gradient flows through the scores or the boxes in them."""

    def negative(x: Tensor) -> Tensor:
        return alpha * x.detach().sigmoid() ** gamma * F.softplus(x)

    picked = logits[(*matched, labels)]  # the logits of positives, which are few
    positive = weight * F.binary_cross_entropy_with_logits(picked, target, reduction="none")
    return negative(logits).sum((1, 2, 3)).index_add(0, matched[0], positive - negative(picked))


QUALITY: dict[Quality, QualityLoss | None] = {
    "none": None,
    "varifocal": varifocal_loss,
    "matchability": matchability_loss,
}
