"""Classification: what the numbers of a class head mean, from the rows of its matrix to the scores of detections.

A detector of the family is either *focal* (one sigmoid per class, Deformable DETR and all after it) or *softmax* (one
distribution over all classes and "no object", DETR). Head, matching, loss and post-processing must agree on which, so
each of the two is one part that all of them use; a model's configuration names it.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

Kind = Literal["focal", "softmax"]
Chosen = tuple[Int[Tensor, "N"], Int[Tensor, "N"], Int[Tensor, "N"]]
"""(layer, image, query) of each query that answers for an object."""


class Best(NamedTuple):
    """The most certain answers of each image, best first."""

    scores: Float[Tensor, "B N"]
    queries: Int[Tensor, "B N"]
    labels: Int[Tensor, "B N"]


@dataclass(frozen=True)
class Focal:
    """One sigmoid per class, learned with the focal loss; all classes off means "no object" (Lin et al. 2017)."""

    alpha: float = 0.25
    """Share of the positive class in the loss."""
    gamma: float = 2.0
    """Focusing exponent."""

    def num_logits(self, num_classes: int) -> int:
        """Rows of a head for ``num_classes``: one each."""
        return num_classes

    def initialize(self, head: nn.Linear) -> None:
        """Start with every class at a probability of 0.01, so that the many negatives do not drown the rest (4.1)."""
        nn.init.constant_(head.bias, prior_bias(0.01))

    def cost(self, logits: Float[Tensor, "Y Q K"], labels: Int[Tensor, "N"]) -> Float[Tensor, "Y Q N"]:
        """Matching cost of every query answering for each object: focal loss as a positive minus that as a negative."""
        picked = logits[..., labels].float().sigmoid()  # (Y, Q, N)
        positive = self.alpha * (1 - picked) ** self.gamma * -(picked + 1e-8).log()
        negative = (1 - self.alpha) * picked**self.gamma * -(1 - picked + 1e-8).log()
        return positive - negative

    def loss(self, logits: Float[Tensor, "Y B Q K"], chosen: Chosen, labels: Int[Tensor, "N"]) -> Float[Tensor, "Y"]:
        """Sum over each layer, where the queries ``chosen`` answer for objects of ``labels`` and the rest for none."""
        onehot = torch.zeros_like(logits)
        onehot[(*chosen, labels)] = 1.0
        return focal_loss(logits, onehot, self.alpha, self.gamma)

    def normalizer(self, num_objects: int, num_queries: int) -> float:
        """What the sum is divided by: the number of objects, at least 1."""
        return float(max(num_objects, 1))

    def best(self, logits: Float[Tensor, "B Q K"], count: int) -> Best:
        """The ``count`` best pairs of query and class; one query can answer with several classes."""
        scores = logits.float().sigmoid().flatten(1)  # (B, Q*K)
        values, indices = scores.topk(min(count, scores.shape[1]), dim=1)
        return Best(values, indices // logits.shape[2], indices % logits.shape[2])


@dataclass(frozen=True)
class Softmax:
    """One distribution over the classes and, last, "no object" (DETR, 3.1)."""

    no_object_weight: float = 0.1
    """Weight of a query without object in the loss; there are many of them."""

    def num_logits(self, num_classes: int) -> int:
        """Rows of a head for ``num_classes``: one each, and "no object" behind them."""
        return num_classes + 1

    def initialize(self, head: nn.Linear) -> None:
        """Start as linear layers do: a distribution needs no prior."""

    def cost(self, logits: Float[Tensor, "Y Q K"], labels: Int[Tensor, "N"]) -> Float[Tensor, "Y Q N"]:
        """Matching cost of every query answering for each object: minus the probability of its class (Eq. 1)."""
        return -logits.float().softmax(-1)[..., labels]

    def loss(self, logits: Float[Tensor, "Y B Q K"], chosen: Chosen, labels: Int[Tensor, "N"]) -> Float[Tensor, "Y"]:
        """Weighted cross entropy, summed over each layer; who was not ``chosen`` should say "no object" (Eq. 2)."""
        wanted = torch.full(logits.shape[:-1], logits.shape[-1] - 1, device=logits.device)  # (Y, B, Q)
        wanted[chosen] = labels
        weight = torch.full_like(logits[..., 0], self.no_object_weight)
        weight[chosen] = 1.0
        surprise = -F.log_softmax(logits, dim=-1).gather(-1, wanted[..., None])[..., 0]
        return (weight * surprise).sum((1, 2))

    def normalizer(self, num_objects: int, num_queries: int) -> float:
        """What the sum is divided by: the sum of the weights of all queries, of which objects take one each.

        So no image may have more objects than queries; training refuses those.
        """
        return num_objects + self.no_object_weight * (num_queries - num_objects)

    def best(self, logits: Float[Tensor, "B Q K"], count: int) -> Best:
        """The ``count`` best queries, each with its best class that is not "no object" (even if that is likelier)."""
        scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)  # (B, Q)
        values, queries = scores.topk(min(count, scores.shape[1]), dim=1)
        return Best(values, queries, labels.gather(1, queries))


Classification = Focal | Softmax


def classification_of(
    kind: Kind, *, alpha: float = 0.25, gamma: float = 2.0, no_object_weight: float = 0.1
) -> Classification:
    """The part that ``kind`` names; what it learns with matters to the criterion alone."""
    return Focal(alpha, gamma) if kind == "focal" else Softmax(no_object_weight)


def focal_loss(
    logits: Float[Tensor, "Y B Q K"], onehot: Float[Tensor, "Y B Q K"], alpha: float, gamma: float
) -> Float[Tensor, "Y"]:
    """Sigmoid focal loss (Lin et al. 2017, Eq. 5), summed over everything but the layers."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, onehot, reduction="none")
    probability = logits.sigmoid()
    missed = probability + onehot - 2 * probability * onehot  # 1 - p_t
    weight = (1 - alpha) + (2 * alpha - 1) * onehot  # alpha_t
    return (weight * missed**gamma * cross_entropy).sum((1, 2, 3))


def prior_bias(probability: float = 0.01) -> float:
    """The bias whose sigmoid is ``probability``: -4.595 for 0.01 (Focal Loss, 4.1)."""
    return -math.log((1 - probability) / probability)
