"""Multi-scale deformable attention as PyTorch operators: what autograd and the compiler see of the kernels.

There is one operator and its derivative, for both forms. Without ``reference``, ``locations`` and ``weights`` are used
as they are; with it they are offsets and logits, and the kernel does the softmax and finds the locations.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

CORNERS = 4


def _kernels(device_type: str) -> ModuleType:
    """The module with ``forward`` and ``backward`` for this kind of device, imported when first needed."""
    if device_type == "cpu":
        from detrs.ops.ms_deform_attn import numba_cpu  # importing numba takes a second

        return numba_cpu
    from detrs.ops.ms_deform_attn import triton_gpu

    return triton_gpu


@torch.library.custom_op("detrs::ms_deform_attn", mutates_args=(), device_types=("cpu", "cuda"))
def ms_deform_attn(
    value: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    padding: Tensor | None,
) -> Tensor:
    """The sum of samples, (B, Q, M*D) in the type of ``value``.

    Args:
        value: (B, S, M, D) in half, single or double precision.
        shapes: (h, w, h, w, ...).
        points: P of each of the L levels; they add up to K.
        locations: (B, Q, M, K, 2), float64 if ``value`` is and float32 otherwise, like all that follow.
        weights: (B, Q, M, K).
        reference: (B, Q, L, 2 or 4) or ``None``.
        padding: (B, S) bool, True for tokens that count as zero, or ``None``.
    """
    kernels = _kernels(value.device.type)
    return kernels.forward(value, tuple(shapes), tuple(points), locations, weights, reference, padding)


@ms_deform_attn.register_fake
def _(
    value: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    padding: Tensor | None,
) -> Tensor:
    return value.new_empty(locations.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("detrs::ms_deform_attn_backward", mutates_args=(), device_types=("cpu", "cuda"))
def ms_deform_attn_backward(
    grad_out: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    padding: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, locations, weights and reference; a tensor without elements stands for one not in ``needs``.

    All have the shape and type of what they are gradients of, and no strides of interest.
    """
    value_needed, locations_needed, weights_needed, reference_needed = needs
    return _kernels(value.device.type).backward(
        grad_out,
        value,
        tuple(shapes),
        tuple(points),
        locations,
        weights,
        reference,
        padding,
        (value_needed, locations_needed, weights_needed, reference_needed),
    )


@ms_deform_attn_backward.register_fake
def _(
    grad_out: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    points: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    padding: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = (value, locations, weights, reference)
    gradients = [
        tensor.new_empty(tensor.shape) if tensor is not None and needed else value.new_empty(0)
        for tensor, needed in zip(inputs, needs, strict=True)
    ]
    return gradients[0], gradients[1], gradients[2], gradients[3]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.shapes, ctx.points, locations, weights, reference, padding = inputs
    ctx.save_for_backward(value, locations, weights, reference, padding)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights, reference, padding = ctx.saved_tensors
    of_value, _, _, of_locations, of_weights, of_reference, _ = needs = ctx.needs_input_grad
    gradients = ms_deform_attn_backward(
        grad_out,
        value,
        ctx.shapes,
        ctx.points,
        locations,
        weights,
        reference,
        padding,
        [of_value, of_locations, of_weights, of_reference],
    )
    value_grad, locations_grad, weights_grad, reference_grad = gradients
    grads = (value_grad, None, None, locations_grad, weights_grad, reference_grad, None)
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


ms_deform_attn.register_autograd(_backward, setup_context=_setup_context)


@ms_deform_attn.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
    """The mapped axis becomes part of the batch."""
    size = info.batch_size

    def merged(tensor: Any, dim: int | None) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return tensor.flatten(0, 1)

    out = ms_deform_attn(*map(merged, inputs, in_dims))
    return out.unflatten(0, (size, -1)), 0


@register_flop_formula(torch.ops.detrs.ms_deform_attn)
def _(
    value: torch.Size, shapes: Sequence[int], points: Sequence[int], locations: torch.Size, *_: Any, **__: Any
) -> int:
    """Two for each channel of each of the four pixels of each sample."""
    return 2 * CORNERS * locations[:4].numel() * value[3]


@register_flop_formula(torch.ops.detrs.ms_deform_attn_backward)
def _(
    grad_out: torch.Size,
    value: torch.Size,
    shapes: Sequence[int],
    points: Sequence[int],
    locations: torch.Size,
    *_: Any,
    **__: Any,
) -> int:
    """An inner product and an addition to the gradient, where the forward pass has one addition."""
    return 4 * CORNERS * locations[:4].numel() * value[3]
