"""Classification: the meaning of class logits, from the size of the class head to the scores of detections.

A detector of the family is either ``Focal`` (one sigmoid per class, Deformable DETR and its successors) or ``Softmax``
(one distribution over all classes and "no object", DETR): settings, which are a field of the model's configuration.
Head, matching, loss and post-processing must agree, so all of them compute with ``class_logits`` of these settings.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from detrs.config.classification import Classification, Focal, Softmax

__all__ = [
    "Best",
    "ClassLogits",
    "Classification",
    "Focal",
    "FocalLogits",
    "Matched",
    "ProposalLabels",
    "Softmax",
    "SoftmaxLogits",
    "class_logits",
    "focal_loss",
    "prior_bias",
]

Matched = tuple[Int[Tensor, "N"], Int[Tensor, "N"], Int[Tensor, "N"]]
"""(layer, image, query) of each query that is matched with an object."""


ProposalLabels = Literal["objectness", "classes"]
"""Labels of encoder proposals. ``objectness``: class 0 for every object, meaning "any object" (Deformable DETR, A.4).
``classes``: the object's own (Efficient DETR, DINO). Decides how proposals are trained and by which score they are
ranked."""


class Best(NamedTuple):
    """The detections with the highest scores of each image, best first."""

    scores: Float[Tensor, "B N"]
    queries: Int[Tensor, "B N"]
    labels: Int[Tensor, "B N"]


@dataclass(frozen=True)
class FocalLogits:
    """One sigmoid per class, trained with the focal loss (Lin et al. 2017)."""

    settings: Focal

    @property
    def cost_weight(self) -> float:
        """Weight of ``cost`` in the matching."""
        return self.settings.weight if self.settings.cost_weight is None else self.settings.cost_weight

    def num_logits(self, num_classes: int) -> int:
        """Rows of a head for ``num_classes``: one each."""
        return num_classes

    def initialize(self, head: nn.Linear) -> None:
        """Start every class at a probability of 0.01, so that the many negatives do not dominate the loss (4.1)."""
        nn.init.constant_(head.bias, prior_bias(0.01))

    def cost(self, logits: Float[Tensor, "Y Q K"], labels: Int[Tensor, "N"]) -> Float[Tensor, "Y Q N"]:
        """Matching cost of every pair of query and object: the focal loss as a positive minus that as a negative."""
        picked = logits[..., labels].float().sigmoid()  # (Y, Q, N)
        alpha, gamma = self.settings.alpha, self.settings.gamma
        positive = alpha * (1 - picked) ** gamma * -(picked + 1e-8).log()
        negative = (1 - alpha) * picked**gamma * -(1 - picked + 1e-8).log()
        return positive - negative

    def loss(self, logits: Float[Tensor, "Y B Q K"], matched: Matched, labels: Int[Tensor, "N"]) -> Float[Tensor, "Y"]:
        """Sum over each layer; the ``matched`` queries are positives of ``labels``, all others negatives."""
        alpha, gamma = self.settings.alpha, self.settings.gamma
        negatives = focal_loss(logits, 1 - alpha, gamma).sum((1, 2, 3))
        picked = logits[(*matched, labels)]  # the logits of positives, which are few
        difference = focal_loss(-picked, alpha, gamma) - focal_loss(picked, 1 - alpha, gamma)
        return negatives.index_add(0, matched[0], difference)

    def normalizer(self, num_objects: int, num_queries: int) -> float:
        """Divisor of the sum: the number of objects, at least 1."""
        return float(max(num_objects, 1))

    def probabilities(self, logits: Float[Tensor, "*some K"]) -> Float[Tensor, "*some K"]:
        """The score of each class."""
        return logits.float().sigmoid()

    def best(self, logits: Float[Tensor, "B Q K"], count: int) -> Best:
        """The ``count`` best pairs of query and class; one query can appear with several classes."""
        scores = self.probabilities(logits).flatten(1)  # (B, Q*K)
        values, indices = scores.topk(min(count, scores.shape[1]), dim=1)
        return Best(values, indices // logits.shape[2], indices % logits.shape[2])


@dataclass(frozen=True)
class SoftmaxLogits:
    """One distribution over the classes and, last, "no object", trained with cross entropy (DETR, 3.1)."""

    settings: Softmax

    @property
    def cost_weight(self) -> float:
        """Weight of ``cost`` in the matching."""
        return self.settings.weight

    def num_logits(self, num_classes: int) -> int:
        """Rows of a head for ``num_classes``: one each, then "no object"."""
        return num_classes + 1

    def initialize(self, head: nn.Linear) -> None:
        """Keep the initialization of linear layers: a distribution needs no prior."""

    def cost(self, logits: Float[Tensor, "Y Q K"], labels: Int[Tensor, "N"]) -> Float[Tensor, "Y Q N"]:
        """Matching cost of every pair of query and object: minus the probability of the object's class (Eq. 1)."""
        return -logits.float().softmax(-1)[..., labels]

    def loss(self, logits: Float[Tensor, "Y B Q K"], matched: Matched, labels: Int[Tensor, "N"]) -> Float[Tensor, "Y"]:
        """Weighted cross entropy, summed over each layer; the class of unmatched queries is "no object" (Eq. 2)."""
        target = torch.full(
            logits.shape[:-1], logits.shape[-1] - 1, dtype=torch.long, device=logits.device
        )  # (Y, B, Q)
        target[matched] = labels
        weight = torch.full_like(logits[..., 0], self.settings.no_object_weight)
        weight[matched] = 1.0
        cross_entropy = -F.log_softmax(logits, dim=-1).gather(-1, target[..., None])[..., 0]
        return (weight * cross_entropy).sum((1, 2))

    def normalizer(self, num_objects: int, num_queries: int) -> float:
        """Divisor of the sum: the sum of the weights of all queries, one of which is matched with each object.

        No image may have more objects than queries; training rejects those.
        """
        return num_objects + self.settings.no_object_weight * (num_queries - num_objects)

    def probabilities(self, logits: Float[Tensor, "*some _"]) -> Float[Tensor, "*some K"]:
        """The score of each class, without "no object"."""
        return logits.float().softmax(-1)[..., :-1]

    def best(self, logits: Float[Tensor, "B Q K"], count: int) -> Best:
        """The ``count`` best queries, each with its best class other than "no object" (even if that is more likely)."""
        scores, labels = self.probabilities(logits).max(-1)  # (B, Q)
        values, queries = scores.topk(min(count, scores.shape[1]), dim=1)
        return Best(values, queries, labels.gather(1, queries))


ClassLogits = FocalLogits | SoftmaxLogits


def class_logits(settings: Classification) -> ClassLogits:
    """What the class logits of a detector with these settings mean."""
    return FocalLogits(settings) if isinstance(settings, Focal) else SoftmaxLogits(settings)


def focal_loss(logits: Float[Tensor, "*some"], weight: float, gamma: float) -> Float[Tensor, "*some"]:
    """Sigmoid focal loss of each logit as a negative (Lin et al. 2017, Eq. 5); of ``-logits``, that as positives."""
    return weight * F.softplus(logits) * logits.sigmoid() ** gamma


def prior_bias(probability: float = 0.01) -> float:
    """The bias whose sigmoid is ``probability``: -4.595 for 0.01 (Focal Loss, 4.1)."""
    return -math.log((1 - probability) / probability)
