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

from detrs.ops.ms_deform_attn import reference
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


def _setup_context_of_backward(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
    grad_out, value, ctx.sizes, ctx.points, *tensors, ctx.needs = inputs
    ctx.save_for_backward(grad_out, value, *tensors)


def _second_backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Second derivatives: those of the reference, in plain PyTorch, which can be differentiated further."""
    grad_out, value, locations, weights, reference_points, padding = ctx.saved_tensors
    differentiable = [tensor for tensor in (value, locations, weights, reference_points) if tensor is not None]
    wanted = [index for index in range(len(differentiable)) if ctx.needs[index]]

    def gradients(grad_out: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        def output(*some: Tensor) -> Tensor:
            every: list[Any] = [*tensors, *([None] * (4 - len(tensors)))]
            for index, tensor in zip(wanted, some, strict=True):
                every[index] = tensor
            value, *others = every
            inputs = _inputs(value, ctx.sizes, ctx.points, *others, padding)
            return reference.compute(inputs, reference.by_gather).to(value.dtype)

        pull_back: Any = torch.func.vjp(output, *(tensors[index] for index in wanted))[1]
        found: tuple[Tensor, ...] = pull_back(grad_out)
        return found

    pull_back: Any = torch.func.vjp(gradients, grad_out, *differentiable)[1]
    given = [cotangents[index] for index in wanted]
    filled = [
        torch.zeros_like(differentiable[index]) if cotangent is None else cotangent
        for index, cotangent in zip(wanted, given, strict=True)
    ]
    of_grad_out, *of_tensors = pull_back(tuple(filled))
    of_tensors += [None] * (4 - len(of_tensors))
    return of_grad_out, of_tensors[0], None, None, *of_tensors[1:], None, None


ms_deform_attn_backward.register_autograd(_second_backward, setup_context=_setup_context_of_backward)


def _merged(size: int, tensor: Any, dim: int | None) -> Any:
    """A tensor (or another argument) with the mapped axis merged into the batch."""
    if not isinstance(tensor, Tensor):
        return tensor
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.flatten(0, 1)


@ms_deform_attn.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
    """Merges the mapped axis with the batch."""
    size = info.batch_size
    out = ms_deform_attn(*(_merged(size, tensor, dim) for tensor, dim in zip(inputs, in_dims, strict=True)))
    return out.unflatten(0, (size, -1)), 0


@ms_deform_attn_backward.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Merges the mapped axis with the batch."""
    size = info.batch_size
    grads = ms_deform_attn_backward(*(_merged(size, tensor, dim) for tensor, dim in zip(inputs, in_dims, strict=True)))
    # A gradient that is not needed has no elements and no batch.
    of_each = tuple(g.unflatten(0, (size, -1)) if g.ndim > 1 else g.expand(size, 0) for g in grads)
    return of_each, (0, 0, 0, 0)


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
