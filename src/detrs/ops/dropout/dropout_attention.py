"""Scaled dot-product attention with dropout on the CPU, a few heads at a time.

The weights of these heads stay in the caches, and none are kept for the backward pass, which computes them again.
PyTorch's operator keeps them three times: before dropout, after it, and its mask.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from detrs.ops.dropout.reference import seed_of_row

WEIGHTS = 2**19
"""Number of attention weights at a time: 2 MiB."""


class Heads(NamedTuple):
    """Inputs with one axis for images and heads, in the type to compute in."""

    query: Tensor
    """(B*M, Q, D), divided by sqrt(D)."""
    key: Tensor
    value: Tensor
    blocked: Tensor | None
    """(B, M, Q, T), True where a query does not attend to a key; ``None``: nowhere."""
    isolated: Tensor | None
    """(B, M, Q, 1), True for queries without keys, whose result is 0; ``None``: there are none."""


class Part(NamedTuple):
    """Some heads."""

    heads: slice
    weights: Tensor
    """Without dropout, in memory that the next part overwrites."""
    dropped: Tensor
    """With dropout, likewise."""
    seed: int


def merged(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Heads:
    """The inputs of ``attention`` for products of matrices."""
    real = torch.promote_types(query.dtype, torch.float32)
    query, key, value = (tensor.to(real) for tensor in (query, key, value))
    flat = (query * query.shape[3] ** -0.5).flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    if mask is None:
        return Heads(*flat, None, None)
    isolated = ~mask.any(-1, keepdim=True)
    return Heads(
        *flat,
        blocked=(~mask).expand(*query.shape[:3], key.shape[2]),
        isolated=isolated.expand(*query.shape[:3], 1) if isolated.any() else None,
    )


def parts(inputs: Heads, rate: float, seed: int, kernels: ModuleType) -> Iterator[Part]:
    """The weights of all heads, part by part."""
    query, key, _, blocked, isolated = inputs
    heads, queries, keys = len(query), query.shape[1], key.shape[1]
    size = max(min(WEIGHTS // max(queries * keys, 1), heads), 1)
    memory, spare = query.new_empty(2, size, queries, keys)
    for first in range(0, heads, size):
        some = slice(first, min(first + size, heads))
        weights = torch.bmm(query[some], key[some].mT, out=memory[: some.stop - first])
        if blocked is not None:
            for head, logits in enumerate(weights, start=first):
                logits.masked_fill_(blocked[divmod(head, blocked.shape[1])], -torch.inf)
        torch.softmax(weights, -1, out=weights)
        if isolated is not None:
            for head, row in enumerate(weights, start=first):
                row.masked_fill_(isolated[divmod(head, isolated.shape[1])], 0.0)
        dropped, own_seed = spare[: len(weights)], seed_of_row(seed, first * queries)
        kernels.dropout(weights, dropped, rate, own_seed)
        yield Part(some, weights, dropped, own_seed)


def forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rate: float, seed: int, kernels: ModuleType
) -> Tensor:
    """See ``attention``."""
    inputs = merged(query, key, value, mask)
    out = inputs.query.new_empty(*inputs.query.shape[:2], value.shape[3])
    for some, _, dropped, _ in parts(inputs, rate, seed, kernels):
        torch.bmm(dropped, inputs.value[some], out=out[some])
    return out.view(*query.shape[:3], value.shape[3]).to(query.dtype)


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rate: float,
    seed: int,
    kernels: ModuleType,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    inputs = merged(query, key, value, mask)
    upstream = grad_out.to(inputs.query.dtype).flatten(0, 1)
    grads = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs[:3]]
    grad_query, grad_key, grad_value = grads
    for some, weights, dropped, own_seed in parts(inputs, rate, seed, kernels):
        torch.bmm(dropped.mT, upstream[some], out=grad_value[some])
        torch.bmm(upstream[some], inputs.value[some].mT, out=dropped)  # the gradient of what was dropped
        grad_logits = kernels.softmax_dropout_gradient_(dropped, weights, rate, own_seed)
        torch.bmm(grad_logits, inputs.key[some], out=grad_query[some])
        torch.bmm(grad_logits.mT, inputs.query[some], out=grad_key[some])
    grad_query.mul_(query.shape[3] ** -0.5)
    of_query, of_key, of_value = (
        grad.view(tensor.shape).to(tensor.dtype) for grad, tensor in zip(grads, (query, key, value), strict=True)
    )
    return of_query, of_key, of_value
