"""Everything a run has to remember from one step to the next, as tensors and plain data."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detrs.checkpoints.format import Checkpoint
from detrs.engine.average import Average
from detrs.engine.optimizer import load_optimizer_tensors, optimizer_tensors


@dataclass
class TrainingState:
    """The state of a run.

    Random streams are not part of it: data, augmentation and dropout of a step are functions of the seed and of the
    step's number, so that nothing has to be remembered to continue them.
    """

    detector: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    step: int = 0
    """Optimizer steps done, skipped ones included."""
    evaluated_step: int = 0
    """Step after which the last evaluation was finished."""
    best_step: int = 0
    best_scores: dict[str, Any] | None = None
    """Scores of ``best``; ``None`` before the first evaluation."""
    evaluations_without_gain: int = 0
    failures: int = 0
    """Steps in a row whose loss or gradient was not finite."""
    is_whole: bool = True
    """False while an optimizer step changes one part after the other."""

    def tensors(self) -> dict[str, Tensor]:
        """Weights, their average, and the optimizer's moments."""
        return {
            **{f"model/{name}": tensor for name, tensor in self.detector.state_dict().items()},
            **{f"average/{name}": tensor for name, tensor in self.average.module.state_dict().items()},
            **{f"optimizer/{name}": t for name, t in optimizer_tensors(self.optimizer, self.detector).items()},
        }

    def meta(self) -> dict[str, Any]:
        """The rest."""
        return {
            "step": self.step,
            "average_updates": self.average.updates,
            "evaluated_step": self.evaluated_step,
            "best_step": self.best_step,
            "best_scores": self.best_scores,
            "evaluations_without_gain": self.evaluations_without_gain,
            "failures": self.failures,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become the state that was saved as ``tensors`` and ``meta``."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
        for key, tensor in checkpoint.tensors.items():
            part, name = key.split("/", 1)
            parts[part][name] = tensor
        self.detector.load_state_dict(parts["model"])
        self.average.module.load_state_dict(parts["average"])
        load_optimizer_tensors(self.optimizer, self.detector, parts["optimizer"])
        self.average.updates = checkpoint.meta["average_updates"]
        for name in ("step", "evaluated_step", "best_step", "best_scores", "evaluations_without_gain", "failures"):
            setattr(self, name, checkpoint.meta[name])
