"""The objective of set detectors with options of training that do not change the detector (``CriterionConfig``)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from detrs.classification import ProposalLabels
from detrs.config.criterion import CriterionConfig, NoDenoising, OneToMany
from detrs.criterion.denoising import Answers, Denoiser, Uniform
from detrs.criterion.further_queries import Groups, parts, with_groups
from detrs.criterion.objective import Objective, SetObjective
from detrs.precision import full_precision
from detrs.structures import Batch, Losses, Prediction, Predictions, Pyramid, Queries, Totals

MakeQueries = Callable[[int], nn.Module]
"""A number to a module with as many learned queries."""


def set_objective(
    detector: Any,
    config: CriterionConfig,
    proposals: ProposalLabels = "objectness",
    learned: MakeQueries | None = None,
) -> Objective:
    """The objective of a set detector, with the options of ``config``.

    Args:
        detector: a ``Detector``.
        config: weights of the criterion, and options.
        proposals: labels of the encoder's proposals, where there are any.
        learned: makes further queries for ``config.assignment``; ``None``: ``detector.queries`` has an argument
            ``further``, a number of them.
    """
    once = config.look_forward == "once"
    if once and isinstance(config.denoising, NoDenoising) and not isinstance(config.assignment, OneToMany):
        return SetObjective(detector, config, proposals)
    return TrainingObjective(detector, config, proposals, learned)


class TrainingObjective(SetObjective):
    """A detector, the set criterion, and further queries, none of which the detector itself contains.

    The queries of the decoder are, in this order: slots (denoising), those of the detector, further ones (one-to-many).
    Those of the detector attend to each other only. Arguments are those of ``set_objective``.
    """

    def __init__(
        self, detector: Any, config: CriterionConfig, proposals: ProposalLabels, learned: MakeQueries | None
    ) -> None:
        super().__init__(detector, config, proposals)
        self.look_forward = config.look_forward
        self.parts = nn.Module()
        self.uniform: Uniform = torch.rand
        self.denoiser = self.groups = None
        if not isinstance(config.denoising, NoDenoising):
            num_classes, queries = detector.decoder.heads[0].classes.out_features, detector.queries
            self.denoiser = Denoiser(
                config.denoising, num_classes, queries.label_channels, queries.of_boxes, not queries.has_unknown
            )
            self.parts.labels = self.denoiser.labels
        if isinstance(config.assignment, OneToMany):
            self.groups = Groups(config.assignment)
            if learned is not None:
                self.parts.queries = learned(self.groups.number)
        self.is_learned = learned is not None

    @property
    def training_parts(self) -> nn.Module:
        return self.parts

    def forward(self, batch: Batch, totals: Totals) -> Losses:
        detector: Any = self.detector
        memory = detector.encoder(detector.neck(detector.backbone(batch.images), batch.padding))
        queries, further, proposals = self.queries(memory)
        own, answers = queries.content.shape[1], None
        if self.denoiser is not None:
            queries, answers = self.denoiser(batch.targets, queries, self.uniform)
        slots = 0 if answers is None else answers.slots
        if self.groups is not None and further is not None:
            queries = with_groups(queries, further, self.groups.config.groups)
        layers = detector.decoder(queries, memory, self.look_forward)[0]
        with full_precision(batch.images.device.type):
            return self.losses(layers, proposals, (slots, own), answers, batch, totals)

    def queries(self, memory: Pyramid) -> tuple[Queries, Queries | None, Prediction | None]:
        """The detector's queries, further ones, and the proposals."""
        detector: Any = self.detector
        if self.groups is None or self.is_learned:
            queries, proposals = detector.queries(memory)
            further = None if self.groups is None else self.parts.queries(memory)[0]  # type: ignore[operator]
            return queries, further, proposals
        every, proposals = detector.queries(memory, further=self.groups.number)
        own = min(detector.queries.count(), every.content.shape[1])
        return every.part(slice(own)), every.part(slice(own, None)), proposals

    def losses(
        self,
        layers: tuple[Prediction, ...],
        proposals: Prediction | None,
        counts: tuple[int, int],
        answers: Answers | None,
        batch: Batch,
        totals: Totals,
    ) -> Losses:
        """The losses of all queries; ``counts`` are the numbers of slots and of the detector's queries."""
        first, last = counts[0], sum(counts)
        found = self.criterion(Predictions(parts(layers, slice(first, last)), proposals), batch.targets, totals)
        total, terms = found.total, dict(found.terms)
        if answers is not None:
            denoised = self.criterion.denoised(parts(layers, slice(first)), batch.targets, answers, totals)
            total, terms = total + denoised.total, terms | denoised.terms
        if self.groups is not None:
            many = self.groups.losses(self.criterion, parts(layers, slice(last, None)), batch.targets, totals)
            total, terms = total + many.total, terms | many.terms
        # all parameters have a gradient in every process, also if a batch has no objects
        return Losses(total + sum(0 * each.sum() for each in self.parts.parameters()), terms)
