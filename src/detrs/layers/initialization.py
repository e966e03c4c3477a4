"""Linear layers with the initialization of the official transformers, and one that ignores autocast."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from detrs.precision import full_precision


class ExactLinear(nn.Linear):
    """A linear layer that computes in the type of its weights, also under autocast.

    For coordinates and scores: bfloat16 has 128 numbers in [0.5, 1), five pixels apart in an image of 1333 pixels.
    """

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        with full_precision(x.device.type):
            return super().forward(x.to(self.weight.dtype))


def xavier_linear(inputs: int, outputs: int, *, gain: float = 1.0, zero_bias: bool = False) -> nn.Linear:
    """A linear layer with Xavier-uniform weight; the bias keeps PyTorch's default unless ``zero_bias``."""
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight, gain=gain)
    if zero_bias:
        nn.init.zeros_(linear.bias)
    return linear


class Initialization(NamedTuple):
    """Initialization of the linear layers of a transformer: functions from (inputs, outputs) to a layer."""

    attention: Callable[[int, int], nn.Linear]
    """Projections of queries, keys and values."""
    output: Callable[[int, int], nn.Linear]
    """Projection of the attended values."""
    feedforward: Callable[[int, int], nn.Linear]


XAVIER = Initialization(
    # The official repositories initialize the stacked (3C, C) projection of nn.MultiheadAttention as one matrix.
    attention=partial(xavier_linear, gain=1 / math.sqrt(2), zero_bias=True),
    output=partial(xavier_linear, zero_bias=True),
    feedforward=xavier_linear,
)
"""DETR and the detectors built on its code: every matrix of the transformer is Xavier-uniform."""
