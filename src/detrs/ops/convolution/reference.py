"""The definition of the operator, in plain PyTorch: used in exported and compiled programs."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from detrs.ops.convolution.inputs import Inputs


def identity(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"none": identity, "relu": F.relu, "relu6": F.relu6}
"""Functions that can be pickled, since modules contain them."""
CLAMPS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": identity,
    "relu": lambda x: x.relu_(),
    "relu6": lambda x: F.hardtanh_(x, 0.0, 6.0),
}
"""The same in place."""


def compute(inputs: Inputs) -> Tensor:
    """``activation(scale * convolution(x) + shift + residual)``; the scale is a factor of the weight."""
    x, weight, scale, shift, residual, geometry, activation = inputs
    scaled = (weight * scale[:, None, None, None]).to(x.dtype)
    y = F.conv2d(x, scaled, shift.to(x.dtype), *geometry)
    return ACTIVATIONS[activation](y if residual is None else y + residual)
