"""Dropout is applied in training only, everywhere the papers apply it."""

import pytest
import torch
from torch import nn

from detrs.layers.attention import MultiHeadAttention
from detrs.layers.feedforward import AddNorm, FeedForward
from detrs.layers.initialization import XAVIER

PLACES = {
    "probabilities of attention": (MultiHeadAttention, (32, 4), (XAVIER,), 3),
    "hidden layer of the feed-forward network": (FeedForward, (32, 48), (XAVIER,), 1),
    "update before it is added": (AddNorm, (32,), (), 2),
}


@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_dropout(place: str) -> None:
    kind, sizes, others, arguments = PLACES[place]
    torch.manual_seed(0)
    inputs = [torch.randn(2, 7, 32) for _ in range(arguments)]
    layer: nn.Module = kind(*sizes, 0.9, *others)
    without: nn.Module = kind(*sizes, 0.0, *others)
    without.load_state_dict(layer.state_dict())
    expected = without.train()(*inputs)
    assert torch.equal(layer.eval()(*inputs), expected)
    draws = [layer.train()(*inputs) for _ in range(2)]
    assert (draws[0] - expected).abs().max() > 1e-3 and (draws[0] - draws[1]).abs().max() > 1e-3
