"""Linear layers as the official transformers initialise them, and one that autocast leaves alone."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ExactLinear(nn.Linear):
    """A linear layer that computes in the type of its weights under autocast too.

    For what becomes a coordinate or a score: bfloat16 knows 256 numbers between 0.5 and 1, five pixels of an image of
    1333 apart from each other.
    """

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        with full_precision(x.device.type):
            return super().forward(x.to(self.weight.dtype))


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """No autocast within; nothing at all where there is none, so that exported programs hold no trace of it."""
    available = torch.amp.is_autocast_available(device_type)
    if available and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def xavier_linear(inputs: int, outputs: int, *, gain: float = 1.0, zero_bias: bool = False) -> nn.Linear:
    """A linear layer with Xavier-uniform weight; the bias keeps PyTorch's default unless ``zero_bias``."""
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight, gain=gain)
    if zero_bias:
        nn.init.zeros_(linear.bias)
    return linear


def prior_bias(probability: float = 0.01) -> float:
    """The bias whose sigmoid is ``probability``: -4.595 for 0.01 (Focal Loss, 4.1)."""
    return -math.log((1 - probability) / probability)
