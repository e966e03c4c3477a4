"""Conversions that autocast would repeat in each linear layer with the same input."""

import torch
from jaxtyping import Float
from torch import Tensor

from detrs.structures import Pyramid


def for_linear_layers(x: Float[Tensor, "*some C"]) -> Float[Tensor, "*some C"]:
    """``x`` in the type in which linear layers compute: that of autocast, within autocast.

    Autocast converts the input in each layer, and each layer keeps its own copy for the backward pass. An input of
    several layers is converted, and kept, once.
    """
    kind = x.device.type
    if x.dtype == torch.float32 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return x.to(torch.get_autocast_dtype(kind))
    return x


def unchanged(memory: Pyramid) -> Pyramid:
    """The memory as it is."""
    return memory


def tokens_for_linear_layers(memory: Pyramid) -> Pyramid:
    """The memory for layers that do no more with its tokens than to project them."""
    return memory.with_tokens(for_linear_layers(memory.tokens))
