"""The set criterion: bipartite matching, then classification and box losses (DETR, Eq. 2).

Every decoder layer is supervised, and so are the encoder's proposals.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from detrs.boxes import cxcywh_to_xyxy, iou
from detrs.classification import Classification, ProposalLabels, class_logits
from detrs.config.criterion import CriterionConfig
from detrs.criterion.denoising import Answers
from detrs.criterion.losses import box_losses
from detrs.criterion.matching import Costs, Matches, match, pairwise_cost
from detrs.criterion.quality import QUALITY
from detrs.structures import Losses, Prediction, Predictions, Target, Totals


class SetCriterion:
    """Losses of a batch. Independent of process groups: the divisors of the sums are arguments.

    Args:
        config: weights of the box terms.
        classification: the model's classification, with the weight of its term.
        proposals: labels of the encoder's proposals, where there are any.
    """

    def __init__(
        self, config: CriterionConfig, classification: Classification, proposals: ProposalLabels = "objectness"
    ) -> None:
        self.config = config
        self.classes = class_logits(classification)
        self.class_weight = classification.weight
        self.proposals = proposals
        self.quality = QUALITY[config.quality]
        self.costs = Costs(self.classes, config.box_weight, config.giou_weight, config.box_coordinates)

    def __call__(self, predictions: Predictions, targets: tuple[Target, ...], totals: Totals) -> Losses:
        """Match and score.

        Args:
            predictions: of a batch of B images.
            targets: one per image; images without objects are negatives.
            totals: counts over the global batch; ``Totals.of(targets)`` if the batch is not split.

        Returns:
            The weighted total and its unweighted terms: ``class``, ``box``, ``giou`` of the last layer; ``class_0``,
            ... of the layers before; ``class_proposals``, ... of the encoder.

        Raises:
            ValueError: ``totals`` are smaller than the counts of ``targets``.
        """
        own = Totals.of(targets)
        if totals.images < own.images or totals.objects < own.objects or totals.processes < 1:
            raise ValueError(f"Expected totals of at least {own}, the counts of this part of the batch, got {totals}.")
        labels, boxes = padded(targets)
        layers = predictions.layers if self.config.auxiliary else predictions.layers[-1:]
        groups = [(stack(layers), labels, [*(f"_{i}" for i in range(len(layers) - 1)), ""])]
        if predictions.proposals is not None:
            proposed = torch.zeros_like(labels) if self.proposals == "objectness" else labels
            groups.append((stack((predictions.proposals,)), proposed, ["_proposals"]))
        counts = [len(target.labels) for target in targets]
        matches = match(  # iterators: one matrix of all tokens and objects at a time
            (
                pairwise_cost(group.logits[:, i], group.boxes[:, i], of_group[i, :n], boxes[i, :n], self.costs)
                for i, n in enumerate(counts)
            )
            for group, of_group, _ in groups
        )
        total, terms = boxes.new_zeros(()), {}
        for (group, of_group, suffixes), pairs in zip(groups, matches, strict=True):
            losses = self.weighted(self.score(group, of_group, boxes, pairs, totals), suffixes)
            total = total + losses.total
            terms.update(losses.terms)
        return Losses(total, terms)

    def denoised(
        self, layers: tuple[Prediction, ...], targets: tuple[Target, ...], answers: Answers, totals: Totals
    ) -> Losses:
        """The losses of slots, whose objects are known (DN-DETR, 4.2; DINO, 3.2).

        Args:
            layers: predictions of the slots, of each decoder layer.
            targets: as in ``__call__``.
            answers: which slots are in the loss, and their objects.
            totals: as in ``__call__``.

        Returns:
            The weighted total and the terms ``class_denoising``, ...; ``class_denoising_0``, ... before the last layer.
        """
        layers = layers if self.config.auxiliary else layers[-1:]
        suffixes = [*(f"_denoising_{i}" for i in range(len(layers) - 1)), "_denoising"]
        group, (labels, boxes) = stack(layers), padded(targets)
        rows = Prediction(*(each[:, answers.image, answers.slot][:, None] for each in group))
        objects = answers.image[answers.row], answers.target
        count = len(answers.row)
        index = torch.arange(count, device=boxes.device).repeat(len(layers))
        pairs = Matches(
            layer=torch.arange(len(layers), device=boxes.device).repeat_interleave(count),
            image=torch.zeros_like(index),
            query=answers.row.repeat(len(layers)),
            target=index,
        )
        scores = self.score(rows, labels[objects][None], boxes[objects][None], pairs, totals) / answers.groups
        return self.weighted(scores, suffixes)

    def weighted(self, scores: Float[Tensor, "3 Y"], suffixes: list[str]) -> Losses:
        """The weighted sum of terms, and each of them with its name."""
        weights = scores.new_tensor([self.class_weight, self.config.box_weight, self.config.giou_weight])
        terms = {
            f"{name}{suffix}": value
            for name, row in zip(("class", "box", "giou"), scores.detach(), strict=True)
            for suffix, value in zip(suffixes, row, strict=True)
        }
        return Losses((weights @ scores).sum(), terms)

    def score(
        self,
        group: Prediction,
        labels: Int[Tensor, "B N"],
        boxes: Float[Tensor, "B N 4"],
        pairs: Matches,
        totals: Totals,
    ) -> Float[Tensor, "3 Y"]:
        """Class, L1 and GIoU term of each layer."""
        matched = (pairs.layer, pairs.image, pairs.query)
        objects = (pairs.image, pairs.target)
        found, wanted, classes = group.boxes[matched], boxes[objects], labels[objects]
        if self.quality is None:
            class_loss = self.classes.loss(group.logits, matched, classes)
        else:
            quality = iou(cxcywh_to_xyxy(found.detach()), cxcywh_to_xyxy(wanted))
            class_loss = self.quality(group.logits, matched, classes, quality)
        distance, overlap = box_losses(found, wanted, self.config.box_coordinates)
        per_layer = class_loss.new_zeros(2, len(class_loss)).index_add(1, pairs.layer, torch.stack([distance, overlap]))
        queries = totals.images * group.logits.shape[2]
        normalizer = self.classes.normalizer(totals.objects, queries) / totals.processes
        num_boxes = max(totals.objects, 1) / totals.processes
        return torch.cat([class_loss[None] / normalizer, per_layer / num_boxes])


def stack(layers: tuple[Prediction, ...]) -> Prediction:
    """Predictions of several layers along a new first axis, in float32."""
    return Prediction(
        torch.stack([layer.logits for layer in layers]).float(), torch.stack([layer.boxes for layer in layers]).float()
    )


def padded(targets: tuple[Target, ...]) -> tuple[Int[Tensor, "B N"], Float[Tensor, "B N 4"]]:
    """Labels and boxes of a batch, padded with class 0 and a small box to the largest number of objects."""
    size = max(len(target.labels) for target in targets)
    device = targets[0].boxes.device
    labels = torch.zeros(len(targets), size, dtype=torch.long, device=device)
    boxes = torch.full((len(targets), size, 4), 0.5, dtype=torch.float32, device=device)
    for i, target in enumerate(targets):
        labels[i, : len(target.labels)] = target.labels
        boxes[i, : len(target.boxes)] = target.boxes
    return labels, boxes
