"""The training objective with denoising: objects with noise as further queries (DN-DETR, DINO)."""

from typing import Any

import torch
from torch import nn

from detrs.classification import ProposalLabels
from detrs.config.criterion import CriterionConfig, NoDenoising
from detrs.criterion.denoising import Denoiser, Uniform
from detrs.criterion.objective import Objective, SetObjective
from detrs.precision import full_precision
from detrs.structures import Batch, Losses, Prediction, Predictions, Totals


def with_denoising(detector: Any, config: CriterionConfig, proposals: ProposalLabels = "objectness") -> Objective:
    """The objective of a detector whose queries are boxes: with denoising if ``config`` has some."""
    kind = SetObjective if isinstance(config.denoising, NoDenoising) else DenoisingObjective
    return kind(detector, config, proposals)


class DenoisingObjective(SetObjective):
    """A detector, the set criterion, and the denoising of objects, none of which the detector itself contains.

    Args:
        detector: whose queries are boxes from the start, with positions that its layers compute.
        config: weights of the criterion, and ``denoising``.
        proposals: labels of the encoder's proposals, where there are any.
    """

    def __init__(self, detector: Any, config: CriterionConfig, proposals: ProposalLabels = "objectness") -> None:
        super().__init__(detector, config, proposals)
        assert not isinstance(config.denoising, NoDenoising)
        num_classes = detector.decoder.heads[0].classes.out_features
        queries = detector.queries
        self.denoiser = Denoiser(config.denoising, num_classes, queries.label_channels, not queries.has_unknown)
        self.uniform: Uniform = torch.rand

    @property
    def training_parts(self) -> nn.Module:
        return self.denoiser

    def forward(self, batch: Batch, totals: Totals) -> Losses:
        detector: Any = self.detector
        memory = detector.encoder(detector.neck(detector.backbone(batch.images), batch.padding))
        queries, proposals = detector.queries(memory)
        noised, answers = self.denoiser(batch.targets, queries, self.uniform)
        layers = detector.decoder(noised, memory)[0]
        slots, matched = zip(*(divided(layer, answers.slots) for layer in layers), strict=True)
        with full_precision(batch.images.device.type):
            own = self.criterion(Predictions(matched, proposals), batch.targets, totals)
            denoised = self.criterion.denoised(slots, batch.targets, answers, totals)
        # all parameters have a gradient in every process, also if a batch has no objects
        total = own.total + denoised.total + 0 * self.denoiser.labels.weight.sum()
        return Losses(total, {**own.terms, **denoised.terms})


def divided(prediction: Prediction, slots: int) -> tuple[Prediction, Prediction]:
    """The predictions of slots and of the other queries."""
    first = Prediction(*(each[:, :slots] for each in prediction))
    return first, Prediction(*(each[:, slots:] for each in prediction))
