"""Everything a run needs to continue after a step, as tensors and plain data."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from detrs.checkpoints.format import Checkpoint
from detrs.engine.average import Average
from detrs.engine.optimizer import load_optimizer_tensors, optimizer_tensors
from detrs.models.detector import Model

COUNTS = ("step", "evaluated_step", "best_step", "best_scores", "evaluations_without_gain", "failures")
"""The fields that are plain data."""
TRAINING_PARTS = "objective"
"""Prefix of the names of ``TrainingState.training_parts``."""


def named_parameters(detector: nn.Module, training_parts: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of both by name."""
    own = {f"{TRAINING_PARTS}.{name}": parameter for name, parameter in training_parts.named_parameters()}
    return {**dict(detector.named_parameters()), **own}


@dataclass
class TrainingState:
    """The state of a run.

    Random generators are not part of it: data, augmentation and dropout of a step are functions of the seed and the
    step.
    """

    detector: Model
    average: Average[Model] | None
    """``None``: no EMA; the weights themselves are evaluated."""
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimizer steps done, including skipped ones."""
    evaluated_step: int = 0
    """Step after which the last evaluation was finished."""
    best_step: int = 0
    best_scores: dict[str, Any] | None = None
    """Scores of ``best``; ``None`` before the first evaluation."""
    evaluations_without_gain: int = 0
    failures: int = 0
    """Consecutive steps with a loss or gradient that was not finite."""
    is_consistent: bool = True
    """False during an optimizer step, which changes one part after the other."""
    training_parts: nn.Module = field(default_factory=nn.Module)
    """What is trained but not part of the detector: ``Objective.training_parts``."""

    @property
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What the optimizer changes, by name."""
        return named_parameters(self.detector, self.training_parts)

    @property
    def evaluated(self) -> Model:
        """The model that is evaluated and saved as ``best``."""
        return self.detector if self.average is None else self.average.module

    def tensors(self) -> dict[str, Tensor]:
        """Weights, their average, and the optimizer's moments."""
        average = {} if self.average is None else self.average.module.state_dict()
        return {
            **{f"model/{name}": tensor for name, tensor in self.detector.state_dict().items()},
            **{f"average/{name}": tensor for name, tensor in average.items()},
            **{f"optimizer/{name}": t for name, t in optimizer_tensors(self.optimizer, self.named_parameters).items()},
            **{f"{TRAINING_PARTS}/{name}": tensor for name, tensor in self.training_parts.state_dict().items()},
        }

    def planned_bytes(self) -> int:
        """Size of the checkpoints of a run: two training states and ``best``, and one more while it is written."""
        weights = sum(tensor.nbytes for tensor in self.detector.state_dict().values())
        parts = sum(tensor.nbytes for tensor in self.training_parts.state_dict().values())
        moments = sum(2 * each.nbytes for each in self.named_parameters.values() if each.requires_grad)
        return 3 * ((1 if self.average is None else 2) * weights + parts + moments) + weights

    def meta(self) -> dict[str, Any]:
        """The rest, as plain data."""
        updates = 0 if self.average is None else self.average.updates
        return {"average_updates": updates, **{name: getattr(self, name) for name in COUNTS}}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load what ``tensors`` and ``meta`` returned."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}, TRAINING_PARTS: {}}
        for key, tensor in checkpoint.tensors.items():
            part, name = key.split("/", 1)
            parts[part][name] = tensor
        self.detector.load_state_dict(parts["model"])
        self.training_parts.load_state_dict(parts[TRAINING_PARTS])
        if self.average is not None:
            self.average.module.load_state_dict(parts["average"])
            self.average.updates = checkpoint.meta["average_updates"]
        load_optimizer_tensors(self.optimizer, self.named_parameters, parts["optimizer"])
        for name in COUNTS:
            setattr(self, name, checkpoint.meta[name])
