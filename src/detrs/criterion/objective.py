"""The default training objective: forward pass, then set criterion."""

from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.classification import Classification, ProposalLabels
from detrs.config.criterion import CriterionConfig
from detrs.criterion.set_criterion import SetCriterion
from detrs.precision import full_precision
from detrs.structures import Batch, Losses, Predictions, Totals


@runtime_checkable
class SetPredictor(Protocol):
    """What ``SetObjective`` needs of a detector, an ``nn.Module``."""

    classification: Classification

    def __call__(self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"]) -> Predictions: ...


class Objective(nn.Module, ABC):
    """What is trained: a model and its losses as one module, which training wraps, for example in DDP.

    Parameters belong to the model, or to ``training_parts``. ``forward`` runs under autocast.
    """

    has_unused_parameters = False
    """Whether some trainable parameters do not contribute to the loss (DDP must search for them)."""

    @property
    def training_parts(self) -> nn.Module:
        """What is trained but not part of the model: saved with the state of training, not with the detector."""
        return nn.Module()

    @abstractmethod
    def forward(self, batch: Batch, totals: Totals) -> Losses:
        """Losses of a batch of normalized images.

        Each loss is a sum over the images divided by functions of ``totals``, the counts of the whole effective batch.
        The terms have the same names in the same order in every step and process; "total" and "grad_norm" are reserved.
        """


class SetObjective(Objective):
    """A detector and the set criterion.

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
        self.has_unused_parameters = not config.auxiliary
        self.criterion = SetCriterion(config, detector.classification, proposals)

    def forward(self, batch: Batch, totals: Totals) -> Losses:
        predictions = self.detector(batch.images, batch.padding)
        with full_precision(batch.images.device.type):  # autocast is for the detector alone
            return self.criterion(predictions, batch.targets, totals)
