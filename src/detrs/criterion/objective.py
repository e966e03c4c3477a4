"""The default training objective: forward pass, then set criterion."""

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.classification import Classification
from detrs.criterion.set_criterion import CriterionConfig, ProposalLabels, SetCriterion
from detrs.precision import full_precision
from detrs.structures import Batch, Losses, Predictions, Totals


@runtime_checkable
class SetPredictor(Protocol):
    """What ``SetObjective`` needs of a detector, an ``nn.Module``."""

    classification: Classification

    def __call__(self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"]) -> Predictions: ...


class SetObjective(nn.Module):
    """A detector and the set criterion as one module, which training wraps, for example in DDP.

    Args:
        detector: images and padding to ``Predictions``.
        config: weights of the criterion.
        proposals: labels of the encoder's proposals, where there are any.
    """

    def __init__(
        self, detector: SetPredictor, config: CriterionConfig, proposals: ProposalLabels = "objectness"
    ) -> None:
        super().__init__()
        self.detector = detector
        self.criterion = SetCriterion(config, detector.classification, proposals)

    def forward(self, batch: Batch, totals: Totals) -> Losses:
        """Losses of a batch of normalized images; ``totals`` are the counts of the whole effective batch."""
        predictions = self.detector(batch.images, batch.padding)
        with full_precision(batch.images.device.type):  # autocast is for the detector alone
            return self.criterion(predictions, batch.targets, totals)
