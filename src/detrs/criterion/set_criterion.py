"""The set criterion: match predictions with objects, then score classes and boxes (DETR, Eq. 2).

Every decoder layer is supervised, and so are the encoder's proposals, with all labels replaced by class 0, "any
object" (Deformable DETR, A.4; the maintained library forgets it).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detrs.criterion.losses import box_losses, focal_loss
from detrs.criterion.matching import Costs, Matches, match, pairwise_cost
from detrs.structures import Prediction, Predictions, Target


@dataclass(frozen=True, kw_only=True)
class CriterionConfig:
    """Weights of the terms, in the matching and in the loss (Deformable DETR, A.4)."""

    class_weight: float = 2.0
    """Weight of the focal classification term."""
    box_weight: float = 5.0
    """Weight of the L1 distance of normalised boxes."""
    giou_weight: float = 2.0
    """Weight of 1 - GIoU."""
    focal_alpha: float = 0.25
    """Share of the positive class in the focal loss."""
    focal_gamma: float = 2.0
    """Focusing exponent of the focal loss."""
    auxiliary: bool = True
    """Supervise every decoder layer, not the last alone."""


class Losses(NamedTuple):
    """What to minimise, and what it is made of."""

    total: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    """Unweighted and detached: ``class``, ``box``, ``giou`` of the last layer; ``class_0`` ... of the layers before;
    ``class_proposals`` ... of the encoder."""


class SetCriterion:
    """Losses of a batch. Knows no process group: the number of objects comes from outside."""

    def __init__(self, config: CriterionConfig) -> None:
        self.config = config
        c = config
        self.costs = Costs(c.class_weight, c.box_weight, c.giou_weight, c.focal_alpha, c.focal_gamma)

    def __call__(self, predictions: Predictions, targets: tuple[Target, ...], num_boxes: float) -> Losses:
        """Match and score.

        Args:
            predictions: of a batch of B images.
            targets: B of them; images without objects are negatives.
            num_boxes: number of objects by which all sums are divided: that of the whole effective batch over all
                processes (1 if there is none), divided by the number of processes.

        Returns:
            The weighted total and its unweighted terms.

        Raises:
            ValueError: ``num_boxes`` is not above 0.
        """
        if not num_boxes > 0:
            raise ValueError(f"num_boxes is {num_boxes}, but must be above 0: give 1 where no image has an object.")
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
            scores = self.score(group, wanted, boxes, pairs, num_boxes)  # (3, layers)
            weights = scores.new_tensor([self.config.class_weight, self.config.box_weight, self.config.giou_weight])
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
        num_boxes: float,
    ) -> Float[Tensor, "3 Y"]:
        """Class, L1 and GIoU term of each layer."""
        chosen = (pairs.layer, pairs.image, pairs.query)
        onehot = torch.zeros_like(group.logits)
        onehot[(*chosen, labels[pairs.image, pairs.target])] = 1.0
        classes = focal_loss(group.logits, onehot, self.config.focal_alpha, self.config.focal_gamma)
        distance, overlap = box_losses(group.boxes[chosen], boxes[pairs.image, pairs.target])
        per_layer = classes.new_zeros(2, len(classes)).index_add(1, pairs.layer, torch.stack([distance, overlap]))
        return torch.cat([classes[None], per_layer]) / num_boxes


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
