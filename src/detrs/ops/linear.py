"""A linear layer and the ReLU after it as one operator, for inference in half precision on CPUs.

oneDNN adds the bias and applies the ReLU while the product is in registers. PyTorch's linear layer copies the bias into
the result first, adds the product, and then needs another pass: with 256 inputs and 1,024 outputs, twice the time. In
float32, the product takes so long that there is hardly a difference.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from detrs.ops import backend
from detrs.ops.convolution import onednn

HALF = (torch.bfloat16, torch.float16)


def linear_relu(x: Float[Tensor, "*rows C"], linear: nn.Linear) -> Float[Tensor, "*rows C'"]:
    """``relu(linear(x))``. Autocast applies as to ``torch.nn.functional.linear``."""
    if not torch.is_grad_enabled() and x.device.type == "cpu" and _is_ordinary(linear) and _may_be_fused(x, linear):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        inputs = x.to(dtype)
        if dtype in HALF and onednn.supports(inputs):
            result: Tensor = _linear_relu(inputs, linear.weight.to(dtype), linear.bias.to(dtype))
            return result
    return F.relu(linear(x), inplace=True)


def _is_ordinary(linear: nn.Module) -> bool:
    """Whether ``linear`` computes no more than ``torch.nn.functional.linear`` with a bias."""
    return (
        type(linear) is nn.Linear
        and linear.bias is not None
        and not linear._forward_hooks
        and not linear._forward_pre_hooks
    )


def _may_be_fused(x: Tensor, linear: nn.Linear) -> bool:
    return not backend.is_reference_forced() and backend.are_plain(x, linear.weight, linear.bias)


@torch.library.custom_op("detrs::linear_relu", mutates_args=())
def _linear_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    operator: Any = torch.ops.mkldnn._linear_pointwise
    result: Tensor = operator(x, weight, bias, "relu", [], "")
    return result


@_linear_relu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@register_flop_formula(torch.ops.detrs.linear_relu)
def _(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Of the matrix product."""
    rows = 1
    for size in x[:-1]:
        rows *= size
    return 2 * rows * weight[0] * weight[1]
