"""Buffers that training changes, such as running statistics of BatchNorm: restored when a step is skipped."""

import torch
from torch import Tensor, nn

from detrs.backbones.frozen_norm import FrozenBatchNorm


class Buffers:
    """The buffers of ``module`` that a forward pass in training mode may change, and a copy of them.

    Args:
        module: on its final device; its buffers are later changed in place only.
    """

    def __init__(self, module: nn.Module) -> None:
        norms = [norm for norm in module.modules() if isinstance(norm, FrozenBatchNorm)]
        constants = {id(buffer) for norm in norms for buffer in norm.buffers()}
        self._buffers = [buffer for buffer in module.buffers() if id(buffer) not in constants]
        self._copies = [buffer.clone() for buffer in self._buffers]
        saved = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
        self._floats = [buffer for buffer in self._buffers if buffer.is_floating_point() and id(buffer) in saved]

    def remember(self) -> None:
        """Copy the buffers."""
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Undo all changes since ``remember``."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)

    def zero_or_nan(self) -> Tensor | float:
        """0 if the buffers that are saved are finite, and NaN otherwise; without synchronization with the device."""
        norms = torch._foreach_norm(self._floats, float("inf")) if self._floats else []
        return (torch.stack(list(norms)) * 0).sum() if norms else 0.0
