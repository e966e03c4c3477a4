"""Convolution, scale and shift of each channel, residual addition and activation as one operator.

This is a layer of a network with frozen BatchNorm. oneDNN computes it in one pass over its output on CPUs; separate
operators of PyTorch need four.
"""

import torch
from torch import Tensor

from detrs.ops import backend
from detrs.ops.convolution import operator, reference
from detrs.ops.convolution.inputs import Geometry, Inputs

ACTIVATIONS = tuple(reference.ACTIVATIONS)

__all__ = ["ACTIVATIONS", "Geometry", "Inputs", "convolution"]


def convolution(inputs: Inputs) -> Tensor:
    """``activation(scale * convolution(x) + shift + residual)``: (B, C', H', W').

    Autocast applies as to ``torch.nn.functional.conv2d``. Nothing but ``x``, the weight, the scale and the result
    is kept for gradients.
    """
    x, residual, device_type = inputs.x, inputs.residual, inputs.x.device.type
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(device_type):
        dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype
        inputs = inputs._replace(x=x.to(dtype), residual=None if residual is None else residual.to(dtype))
    if torch.compiler.is_compiling() or backend.is_transformed() or backend.is_reference_forced():
        return reference.compute(inputs)
    geometry = inputs.geometry
    return operator.convolution(
        *inputs[:5], geometry.stride, geometry.padding, geometry.dilation, geometry.groups, inputs.activation
    )
