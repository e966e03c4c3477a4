"""The exponential moving average (EMA) of a model's weights, which is evaluated and saved as ``best``."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Average(Generic[M]):
    """A copy of ``model`` whose floating-point weights and buffers are averages.

    ``average <- decay * average + (1 - decay) * weights`` after each step. The decay after ``t`` updates is limited to
    ``(1 + t) / (10 + t)``, so that the random initialization is forgotten quickly.

    Args:
        model: copied now.
        decay: per step, in [0, 1).
    """

    def __init__(self, model: M, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        buffers = dict(model.named_buffers())
        self._sources, self._averaged = self._pairs(trained | buffers, floating=True)
        self._counts, self._copied = self._pairs(buffers, floating=False)

    def _pairs(self, tensors: dict[str, Tensor], *, floating: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors of the model, and those of the same names in the copy."""
        own = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        names = [name for name, tensor in tensors.items() if tensor.is_floating_point() == floating]
        return [tensors[name] for name in names], [own[name] for name in names]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average after a step."""
        self.updates += 1
        decay = min(self.decay, self.updates / (9 + self.updates))
        torch._foreach_lerp_(self._averaged, self._sources, 1 - decay)
        for copied, count in zip(self._copied, self._counts, strict=True):
            copied.copy_(count)
