"""Linear layers as the official transformers initialise them, and one that autocast leaves alone."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

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


class Initialization(NamedTuple):
    """How the linear layers of a transformer start, (inputs, outputs) -> layer; the builder of a model chooses."""

    attention: Callable[[int, int], nn.Linear]
    """Projections of queries, keys and values."""
    output: Callable[[int, int], nn.Linear]
    """Projection of what attention has read."""
    feedforward: Callable[[int, int], nn.Linear]


XAVIER = Initialization(
    # The official repositories initialise the stacked (3C, C) projection of nn.MultiheadAttention as one matrix.
    attention=partial(xavier_linear, gain=1 / math.sqrt(2), zero_bias=True),
    output=partial(xavier_linear, zero_bias=True),
    feedforward=xavier_linear,
)
"""DETR and its children that kept its code: every matrix of the transformer Xavier-uniform."""
