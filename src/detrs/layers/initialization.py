"""Linear layers as the official transformers initialise them."""

import math

from torch import nn


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
