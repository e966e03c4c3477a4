"""The operator of PyTorch and its derivative."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from detrs.ops.convolution import onednn
from detrs.ops.convolution.reference import CLAMPS

aten = torch.ops.aten
GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "none": lambda grad, y: grad,
    "relu": lambda grad, y: aten.threshold_backward(grad, y, 0),
    "relu6": lambda grad, y: aten.hardtanh_backward(grad, y, 0.0, 6.0),
}
"""Gradient of the result and the result to the gradient before the activation."""


@torch.library.custom_op("detrs::convolution", mutates_args=())
def convolution(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
) -> Tensor:
    """The fields of ``Inputs``."""
    scaled, shift = (weight * scale[:, None, None, None]).to(x.dtype), shift.to(x.dtype)
    if onednn.supports(x):
        return onednn.convolution(x, scaled, shift, residual, stride, padding, dilation, groups, activation)
    y = F.conv2d(x, scaled, shift, stride, padding, dilation, groups)
    return CLAMPS[activation](y if residual is None else y.add_(residual))


@convolution.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
) -> Tensor:
    return F.conv2d(x, weight.to(x.dtype), None, stride, padding, dilation, groups)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, scale, shift, _, *ctx.geometry, ctx.activation = inputs
    ctx.shift_dtype = shift.dtype
    ctx.save_for_backward(x, weight, scale, None if ctx.activation == "none" else output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The scaled weight is computed again, not kept."""
    x, weight, scale, output = ctx.saved_tensors
    x_needed, weight_needed, scale_needed, shift_needed, residual_needed, *_ = ctx.needs_input_grad
    stride, padding, dilation, groups = ctx.geometry
    grad = GRADIENTS[ctx.activation](grad, output)
    factor = scale[:, None, None, None]
    is_product, scaled_needed = is_matrix_product(x, weight, padding, groups), weight_needed or scale_needed
    in_float32 = x_needed and is_slow_in_half(x, stride, groups)
    scaled, rest = weight * factor, ([weight.shape[0]], stride, padding, dilation, False, [0, 0], groups)
    of_x, of_scaled, of_shift = aten.convolution_backward(
        *(grad, x, scaled.to(x.dtype)),
        *rest,
        [x_needed and not in_float32, scaled_needed and not is_product, shift_needed],
    )
    if in_float32:
        inputs = grad.float(), torch.empty_like(x, dtype=torch.float32), scaled.float()
        of_x = aten.convolution_backward(*inputs, *rest, [True, False, False])[0].to(x.dtype)
    if scaled_needed and is_product:
        cells = x[:, :, :: stride[0], :: stride[1]]
        of_scaled = (rows_of(grad).mT @ rows_of(cells))[:, :, None, None]
    of_scaled = of_scaled.to(weight.dtype) if scaled_needed else None
    return (
        of_x if x_needed else None,
        of_scaled * factor if weight_needed else None,
        (of_scaled * weight).sum((1, 2, 3)).to(scale.dtype) if scale_needed else None,
        of_shift.to(ctx.shift_dtype) if shift_needed else None,
        grad if residual_needed else None,
        *[None] * 5,
    )


def is_matrix_product(x: Tensor, weight: Tensor, padding: Sequence[int], groups: int) -> bool:
    """Whether to compute the gradient of the weight as a product of two matrices.

    In half precision, this is faster on CPUs than oneDNN's gradient of a convolution, whose threads wait for each other
    in a loop: that takes very long if another process uses their cores. In float32, neither is faster.
    """
    return is_half(x) and weight.shape[2:] == (1, 1) and not any(padding) and groups == 1


def is_half(x: Tensor) -> bool:
    """Whether ``x`` is in half precision on a CPU."""
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)


def is_slow_in_half(x: Tensor, stride: Sequence[int], groups: int) -> bool:
    """Whether to compute the gradient of the input in float32 although ``x`` is in half precision.

    oneDNN's gradient of a depthwise convolution with a stride takes 17 times as long in bfloat16 as in float32.
    """
    return is_half(x) and groups > 1 and max(stride) > 1


def rows_of(x: Tensor) -> Tensor:
    """(B, C, H, W) as a matrix (B*H*W, C); a view if ``x`` is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


convolution.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.detrs.convolution)
def _(x: Any, weight: Any, scale: Any, shift: Any, residual: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Of the convolution."""
    return conv_flop_count(x, weight, out_shape)
