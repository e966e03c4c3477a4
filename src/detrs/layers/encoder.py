"""The encoder: a stack of self-attention and feed-forward layers over the tokens."""

from collections.abc import Iterable

from torch import nn

from detrs.layers.feedforward import AddNorm, FeedForward
from detrs.structures import Pyramid


class EncoderLayer(nn.Module):
    """``x <- LN(x + Attention(x)); x <- LN(x + FFN(x))`` with any ``attention``: ``Pyramid`` to tokens."""

    def __init__(self, attention: nn.Module, feedforward: FeedForward, dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = AddNorm(dim, dropout)
        self.feedforward = feedforward
        self.feedforward_norm = AddNorm(dim, dropout)

    def forward(self, memory: Pyramid) -> Pyramid:
        tokens = self.attention_norm(memory.tokens, self.attention(memory))
        return memory.with_tokens(self.feedforward_norm(tokens, self.feedforward(tokens)))


class Encoder(nn.Module):
    """A stack of encoder layers; without layers, the identity."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, pyramid: Pyramid) -> Pyramid:
        for layer in self.layers:
            pyramid = layer(pyramid)
        return pyramid
