"""Dropout together with what surrounds it in a transformer: activation, residual and normalization, attention.

On the CPU, these are kernels that keep no mask for the backward pass; see ``reference.py`` for the elements that are
dropped. What is dropped becomes 0, also NaN and infinity, which PyTorch's operators multiply by 0. Elsewhere, they are
PyTorch's operators, and so they are in compiled and exported programs, which fuse them themselves. Random numbers are
those of PyTorch's default generator everywhere.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from detrs.ops import backend
from detrs.ops.dropout import dropout_attention
from detrs.precision import full_precision


def relu_dropout(x: Float[Tensor, "*rows C"], rate: float) -> Float[Tensor, "*rows C"]:
    """``dropout(relu(x))``; ``x`` is overwritten.

    Args:
        x: the output of a linear layer.
        rate: probability of an element to be dropped, in [0, 1); 0: none is.
    """
    if rate == 0 or not _has_kernels(x):
        return F.dropout(F.relu(x, inplace=True), rate)
    result: Tensor = _ReLUDropout.apply(x.contiguous(), rate, _seed())
    return result


def add_norm(
    x: Float[Tensor, "*#rows #C"], update: Float[Tensor, "*#rows #C"], norm: nn.LayerNorm, rate: float
) -> Float[Tensor, "*rows C"]:
    """``norm(x + dropout(update))``.

    Args:
        x: the residual.
        update: what is added to it; both are broadcast.
        norm: kernels compute those over the last axis that have weight and bias.
        rate: probability of an element of ``update`` to be dropped, in [0, 1); 0: none is.
    """
    if rate == 0:  # without random numbers, PyTorch's two operators are as fast
        return norm(x + update)
    x, update = torch.broadcast_tensors(x, update)
    if norm.normalized_shape != tuple(x.shape[-1:]) or not _has_kernels(x, update, norm.weight, norm.bias):
        return norm(x + F.dropout(update, rate))
    dtype = torch.promote_types(x.dtype, update.dtype)
    inputs = x.to(dtype).contiguous(), update.to(dtype).contiguous(), norm.weight, norm.bias
    result: Tensor = _AddNorm.apply(*inputs, norm.eps, rate, _seed())
    return result


def attention(
    query: Float[Tensor, "B M Q D"],
    key: Float[Tensor, "B M T D"],
    value: Float[Tensor, "B M T V"],
    mask: Bool[Tensor, "*broadcast T"] | None,
    rate: float,
) -> Float[Tensor, "B M Q V"]:
    """``dropout(softmax(query . key / sqrt(D))) . value``: scaled dot-product attention.

    Args:
        query: of each head.
        key: T per head.
        value: one per key.
        mask: True where a query attends to a key, broadcast to (B, M, Q, T); ``None``: everywhere.
        rate: probability of a weight to be dropped, in [0, 1); 0: none is.
    """
    if rate == 0 or not _has_kernels(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
    result: Tensor = _Attention.apply(query, key, value, mask, rate, _seed())
    return result


def _has_kernels(*inputs: Tensor | None) -> bool:
    """Whether kernels compute with ``inputs``: there are some for the CPU only."""
    return backend.are_plain(*inputs) and all(
        backend.is_chosen("numba", x.device.type, x.dtype) for x in inputs if x is not None
    )


def _seed() -> int:
    """One number of PyTorch's default generator."""
    return int(torch.randint(2**63 - 1, (), device="cpu"))


def _kernels() -> Any:
    from detrs.ops.dropout import numba_cpu  # importing numba takes a second

    return numba_cpu


class _ReLUDropout(torch.autograd.Function):
    """In place; keeps its result, which the next layer keeps anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, seed: int) -> Tensor:
        _kernels().relu_dropout_(x, rate, seed)
        ctx.rate = rate
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        return _kernels().relu_dropout_gradient(grad_out, result, ctx.rate), None, None


class _Attention(torch.autograd.Function):
    """Keeps its inputs only: weights are computed again."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rate: float, seed: int
    ) -> Tensor:
        ctx.rate, ctx.seed = rate, seed
        ctx.save_for_backward(query, key, value, mask)
        with full_precision("cpu"):
            return dropout_attention.forward(query, key, value, mask, rate, seed, _kernels())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        rest = ctx.rate, ctx.seed, _kernels()
        with full_precision("cpu"):
            grads = dropout_attention.backward(grad_out, query, key, value, mask, *rest)
        return *grads, None, None, None


class _AddNorm(torch.autograd.Function):
    """Keeps the sum that is normalized, and a number."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, eps: float, rate: float, seed: int
    ) -> Tensor:
        out: Tensor
        out, statistics = _kernels().normalized_sum(x, update, weight, bias, eps, rate, seed)
        ctx.rate, ctx.seed = rate, seed
        ctx.save_for_backward(*statistics, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        *statistics, weight = ctx.saved_tensors
        kernels = _kernels()
        rest = kernels.Statistics(*statistics), weight, ctx.rate, ctx.seed
        grad_x, grad_update, grad_affine = kernels.normalized_sum_gradients(grad_out, *rest)
        grad_weight, grad_bias = grad_affine.to(weight.dtype)
        return grad_x, grad_update, grad_weight, grad_bias, None, None, None
