"""The exponential moving average of a detector's weights: what is evaluated and saved as ``best``."""

import copy

import torch
from torch import Tensor, nn


class Average:
    """A copy of ``detector`` whose floating-point weights and buffers follow it slowly.

    ``average <- decay * average + (1 - decay) * weights`` after each step. The decay starts low, ``(1 + t) / (10 + t)``
    after ``t`` updates, so that the random start is forgotten soon. With a decay of 0 the copy equals the detector.

    Args:
        detector: what to follow; copied now.
        decay: per step, in [0, 1).
    """

    def __init__(self, detector: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(detector).eval().requires_grad_(False)
        trained = {name: parameter for name, parameter in detector.named_parameters() if parameter.requires_grad}
        buffers = dict(detector.named_buffers())
        self._followed, self._averaged = self._pairs(trained | buffers, floating=True)
        self._counted, self._counts = self._pairs(buffers, floating=False)

    def _pairs(self, tensors: dict[str, Tensor], *, floating: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Tensors of the detector, and those of the same names here."""
        own = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        names = [name for name, tensor in tensors.items() if tensor.is_floating_point() == floating]
        return [tensors[name] for name in names], [own[name] for name in names]

    @torch.no_grad()
    def update(self) -> None:
        """Follow the detector by one step."""
        self.updates += 1
        decay = min(self.decay, self.updates / (9 + self.updates))
        torch._foreach_lerp_(self._averaged, self._followed, 1 - decay)
        for count, counted in zip(self._counts, self._counted, strict=True):
            count.copy_(counted)
