"""The set criterion: match predictions with objects, then score classes and boxes (DETR, Eq. 2).

Every decoder layer is supervised, and so are the encoder's proposals, with all labels replaced by class 0, "any
object" (Deformable DETR, A.4; the maintained library forgets it).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detrs.classification import Kind, classification_of
from detrs.criterion.losses import box_losses
from detrs.criterion.matching import Costs, Matches, match, pairwise_cost
from detrs.structures import Prediction, Predictions, Target

PAPERS_CLASS_WEIGHT: dict[Kind, float] = {"focal": 2.0, "softmax": 1.0}


@dataclass(frozen=True, kw_only=True)
class CriterionConfig:
    """Weights of the terms, in the matching and in the loss (Deformable DETR, A.4)."""

    class_weight: float = 0.0
    """Weight of the classification term; 0: that of the papers, 2 for focal classification and 1 for softmax."""
    box_weight: float = 5.0
    """Weight of the L1 distance of normalised boxes."""
    giou_weight: float = 2.0
    """Weight of 1 - GIoU."""
    focal_alpha: float = 0.25
    """Share of the positive class in the focal loss (focal classification only)."""
    focal_gamma: float = 2.0
    """Focusing exponent of the focal loss (focal classification only)."""
    no_object_weight: float = 0.1
    """Weight of queries without object in the cross entropy (softmax classification only; DETR, 3.1)."""
    auxiliary: bool = True
    """Supervise every decoder layer, not the last alone."""


class Losses(NamedTuple):
    """What to minimise, and what it is made of."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    """Unweighted and detached: ``class``, ``box``, ``giou`` of the last layer; ``class_0`` ... of the layers before;
    ``class_proposals`` ... of the encoder."""


class Totals(NamedTuple):
    """What the whole effective batch holds, over all micro-batches and all processes.

    Losses are sums divided by functions of these, so they do not depend on how the batch is divided.
    """

    images: int
    objects: int
    processes: int = 1
    """Processes whose gradients are averaged: the sums of each are divided by their share of the whole."""

    @classmethod
    def of(cls, targets: tuple[Target, ...]) -> "Totals":
        """Those of a batch that is not divided."""
        return cls(len(targets), sum(len(target.labels) for target in targets))


class SetCriterion:
    """Losses of a batch. Knows no process group: what the sums are divided by comes from outside.

    Args:
        config: weights.
        kind: the model's classification, ``focal`` or ``softmax``.
    """

    def __init__(self, config: CriterionConfig, kind: Kind) -> None:
        self.config = config
        self.classification = classification_of(
            kind, alpha=config.focal_alpha, gamma=config.focal_gamma, no_object_weight=config.no_object_weight
        )
        self.class_weight = config.class_weight or PAPERS_CLASS_WEIGHT[kind]
        self.costs = Costs(self.classification, self.class_weight, config.box_weight, config.giou_weight)

    def __call__(self, predictions: Predictions, targets: tuple[Target, ...], totals: Totals) -> Losses:
        """Match and score.

        Args:
            predictions: of a batch of B images.
            targets: B of them; images without objects are negatives.
            totals: of the whole batch that these images are a part of; ``Totals.of(targets)`` if they are all of it.

        Returns:
            The weighted total and its unweighted terms.

        Raises:
            ValueError: ``totals`` are below what ``targets`` alone hold.
        """
        own = Totals.of(targets)
        if totals.images < own.images or totals.objects < own.objects or totals.processes < 1:
            raise ValueError(f"{totals} cannot be of a batch of which one part holds {own}.")
        labels, boxes = padded(targets)
        layers = predictions.layers if self.config.auxiliary else predictions.layers[-1:]
        groups = [(stack(layers), labels, [*(f"_{i}" for i in range(len(layers) - 1)), ""])]
        if predictions.proposals is not None:
            groups.append((stack((predictions.proposals,)), torch.zeros_like(labels), ["_proposals"]))
        counts = [len(target.labels) for target in targets]
        matches = match(
            [
                [
                    pairwise_cost(group.logits[:, i], group.boxes[:, i], wanted[i, :n], boxes[i, :n], self.costs)
                    for i, n in enumerate(counts)
                ]
                for group, wanted, _ in groups
            ]
        )
        total, terms = boxes.new_zeros(()), {}
        for (group, wanted, suffixes), pairs in zip(groups, matches, strict=True):
            scores = self.score(group, wanted, boxes, pairs, totals)  # (3, layers)
            weights = scores.new_tensor([self.class_weight, self.config.box_weight, self.config.giou_weight])
            total = total + (weights @ scores).sum()
            for name, row in zip(("class", "box", "giou"), scores.detach(), strict=True):
                terms.update({f"{name}{suffix}": value for suffix, value in zip(suffixes, row, strict=True)})
        return Losses(total, terms)

    def score(
        self,
        group: Prediction,
        labels: Int[Tensor, "B N"],
        boxes: Float[Tensor, "B N 4"],
        pairs: Matches,
        totals: Totals,
    ) -> Float[Tensor, "3 Y"]:
        """Class, L1 and GIoU term of each layer."""
        chosen = (pairs.layer, pairs.image, pairs.query)
        classes = self.classification.loss(group.logits, chosen, labels[pairs.image, pairs.target])
        distance, overlap = box_losses(group.boxes[chosen], boxes[pairs.image, pairs.target])
        per_layer = classes.new_zeros(2, len(classes)).index_add(1, pairs.layer, torch.stack([distance, overlap]))
        queries = totals.images * group.logits.shape[2]
        normalizer = self.classification.normalizer(totals.objects, queries) / totals.processes
        num_boxes = max(totals.objects, 1) / totals.processes
        return torch.cat([classes[None] / normalizer, per_layer / num_boxes])


def stack(layers: tuple[Prediction, ...]) -> Prediction:
    """Layers of predictions as one, along a new first axis, in float32."""
    return Prediction(
        torch.stack([layer.logits for layer in layers]).float(), torch.stack([layer.boxes for layer in layers]).float()
    )


def padded(targets: tuple[Target, ...]) -> tuple[Int[Tensor, "B N"], Float[Tensor, "B N 4"]]:
    """Labels and boxes of a batch, padded with class 0 and a small box to the largest number of objects."""
    size = max(len(target.labels) for target in targets)
    device = targets[0].boxes.device
    labels = torch.zeros(len(targets), size, dtype=torch.long, device=device)
    boxes = torch.full((len(targets), size, 4), 0.5, device=device)
    for i, target in enumerate(targets):
        labels[i, : len(target.labels)] = target.labels
        boxes[i, : len(target.boxes)] = target.boxes
    return labels, boxes
