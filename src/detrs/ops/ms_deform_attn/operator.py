"""Multi-scale deformable attention as PyTorch operators: what autograd and the compiler see of the kernels.

Another device registers its kernels on the same two operators (``ms_deform_attn.register_kernel("cuda")``).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("detrs::ms_deform_attn", mutates_args=(), device_types="cpu")
def ms_deform_attn(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """(B, S, M, D), (h, w, h, w, ...), (B, Q, M, L, P, 2), (B, Q, M, L, P) -> (B, Q, M*D) in the type of ``value``."""
    from detrs.ops.ms_deform_attn import numba_cpu  # not before it is needed: importing numba takes a second

    return numba_cpu.forward(value, tuple(shapes), locations, weights)


@ms_deform_attn.register_fake
def _(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(locations.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("detrs::ms_deform_attn_backward", mutates_args=(), device_types="cpu")
def ms_deform_attn_backward(
    grad_out: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    needs_value: bool,
    needs_locations: bool,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; a tensor without elements stands for one that is not needed."""
    from detrs.ops.ms_deform_attn import numba_cpu

    needs = (needs_value, needs_locations, needs_weights)
    return numba_cpu.backward(grad_out, value, tuple(shapes), locations, weights, needs)


@ms_deform_attn_backward.register_fake
def _(
    grad_out: Tensor,
    value: Tensor,
    shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    needs_value: bool,
    needs_locations: bool,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape if needs_value else (0,) * 4),
        locations.new_empty(locations.shape if needs_locations else (0,) * 6),
        weights.new_empty(weights.shape if needs_weights else (0,) * 5),
    )


def _setup_context(ctx: Any, inputs: tuple[Tensor, Sequence[int], Tensor, Tensor], output: Tensor) -> None:
    value, ctx.shapes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None]:
    value, locations, weights = ctx.saved_tensors
    needs_value, _, needs_locations, needs_weights = ctx.needs_input_grad
    grad_value, grad_locations, grad_weights = ms_deform_attn_backward(
        grad_out, value, ctx.shapes, locations, weights, needs_value, needs_locations, needs_weights
    )
    return (
        grad_value if needs_value else None,
        None,
        grad_locations if needs_locations else None,
        grad_weights if needs_weights else None,
    )


ms_deform_attn.register_autograd(_backward, setup_context=_setup_context)
