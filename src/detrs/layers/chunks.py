"""Tokens in chunks: what a layer computes for a token alone needs no intermediate result of all tokens."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 2048
"""Tokens at a time: 4 MiB of the hidden layer of a feed-forward network with 1,024 channels in bfloat16, 8 MiB in
float32, which the caches hold. Smaller chunks are slowed down by the number of calls, larger ones by memory."""


def by_chunks(
    function: Callable[..., Tensor], *inputs: Float[Tensor, "B S _"], chunk: int = CHUNK
) -> Float[Tensor, "B S C"]:
    """``function(*inputs)`` of a function that computes each token from the same token of its inputs.

    For inference on a CPU, ``chunk`` tokens at a time; their intermediate results are then read from the caches, and
    memory is allocated for one chunk only. All at once on a GPU, where gradients are computed, since each chunk would
    add to the gradient of every weight, and in compiled and exported programs, which contain no loop.
    """
    tokens = inputs[0]
    batch, count = tokens.shape[:2]
    whole = torch.is_grad_enabled() or tokens.device.type != "cpu" or torch.compiler.is_compiling()
    if whole or batch * count <= chunk:
        return function(*inputs)
    size = max(chunk // batch, 1)
    parts = (function(*each) for each in zip(*(x.split(size, dim=1) for x in inputs), strict=True))
    first = next(parts)
    result = first.new_empty(batch, count, first.shape[2])
    result[:, :size] = first
    for index, part in enumerate(parts, start=1):
        result[:, index * size : (index + 1) * size] = part
    return result
