"""Multi-scale deformable attention as PyTorch operators, which autograd and the compiler treat as opaque.

One operator and its derivative serve both forms; see ``inputs.py``. The signatures of custom operators must consist of
plain tensors and lists: below them, ``Inputs`` holds the arguments.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from detrs.ops.ms_deform_attn.inputs import Gradients, Inputs

NUM_CORNERS = 4


def _kernels(device_type: str) -> ModuleType:
    """The module with ``forward`` and ``backward`` for a type of device, imported on first use."""
    if device_type == "cpu":
        from detrs.ops.ms_deform_attn import numba_cpu  # importing numba takes a second

        return numba_cpu
    from detrs.ops.ms_deform_attn import triton_gpu

    return triton_gpu


def _inputs(value: Tensor, sizes: Sequence[int], points: Sequence[int], *tensors: Any) -> Inputs:
    return Inputs(value, tuple(zip(sizes[::2], sizes[1::2], strict=True)), tuple(points), *tensors)


@torch.library.custom_op("detrs::ms_deform_attn", mutates_args=(), device_types=("cpu", "cuda"))
def ms_deform_attn(
    value: Tensor,
    sizes: Sequence[int],
    points: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding: Tensor | None,
) -> Tensor:
    """The fields of ``Inputs``, with ``sizes`` instead of shapes.

    Returns:
        (B, Q, M*D) in the dtype of ``value``.
    """
    inputs = _inputs(value, sizes, points, locations, weights, reference_points, padding)
    return _kernels(value.device.type).forward(inputs)


@ms_deform_attn.register_fake
def _(
    value: Tensor,
    sizes: Sequence[int],
    points: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding: Tensor | None,
) -> Tensor:
    return value.new_empty(locations.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("detrs::ms_deform_attn_backward", mutates_args=(), device_types=("cpu", "cuda"))
def ms_deform_attn_backward(
    grad_out: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    points: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, locations, weights and reference points, each with the shape and dtype of its input.

    A gradient that is not in ``needs`` is a tensor without elements. Strides are unspecified.
    """
    inputs = _inputs(value, sizes, points, locations, weights, reference_points, padding)
    return _kernels(value.device.type).backward(grad_out, inputs, tuple(needs))


@ms_deform_attn_backward.register_fake
def _(
    grad_out: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    points: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = [
        tensor.new_empty(tensor.shape) if tensor is not None and needed else value.new_empty(0)
        for tensor, needed in zip((value, locations, weights, reference_points), needs, strict=True)
    ]
    return gradients[0], gradients[1], gradients[2], gradients[3]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.sizes, ctx.points, *tensors = inputs
    ctx.save_for_backward(value, *tensors)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    value, *tensors = ctx.saved_tensors
    value_needed, _, _, *others_needed, _ = needs = ctx.needs_input_grad
    gradients: Gradients = ms_deform_attn_backward(
        grad_out, value, ctx.sizes, ctx.points, *tensors, [value_needed, *others_needed]
    )
    grads = (gradients[0], None, None, *gradients[1:], None)
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


ms_deform_attn.register_autograd(_backward, setup_context=_setup_context)


@ms_deform_attn.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
    """Merges the mapped axis with the batch."""
    size = info.batch_size

    def merged(tensor: Any, dim: int | None) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return tensor.flatten(0, 1)

    out = ms_deform_attn(*map(merged, inputs, in_dims))
    return out.unflatten(0, (size, -1)), 0


@register_flop_formula(torch.ops.detrs.ms_deform_attn)
def _(value: torch.Size, sizes: Sequence[int], points: Sequence[int], locations: torch.Size, *_: Any, **__: Any) -> int:
    """Two for each channel of each of the four pixels around each sample."""
    return 2 * NUM_CORNERS * locations[:4].numel() * value[3]


@register_flop_formula(torch.ops.detrs.ms_deform_attn_backward)
def _(
    grad_out: torch.Size,
    value: torch.Size,
    sizes: Sequence[int],
    points: Sequence[int],
    locations: torch.Size,
    *_: Any,
    **__: Any,
) -> int:
    """An inner product and an addition to the gradient of the value, twice the work of the forward pass."""
    return 2 * 2 * NUM_CORNERS * locations[:4].numel() * value[3]
