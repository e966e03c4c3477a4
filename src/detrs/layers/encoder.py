"""The encoder: a stack of self-attention and feed-forward layers over the tokens."""

from collections.abc import Iterable

from jaxtyping import Float
from torch import Tensor, nn

from detrs.layers.chunks import by_chunks
from detrs.layers.feedforward import AddNorm
from detrs.structures import Pyramid


class EncoderLayer(nn.Module):
    """``x <- LN(x + Attention(x)); x <- LN(x + FFN(x))`` with any ``attention``: ``Pyramid`` to tokens."""

    def __init__(self, attention: nn.Module, feedforward: nn.Module, dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = AddNorm(dim, dropout)
        self.feedforward = feedforward
        self.feedforward_norm = AddNorm(dim, dropout)

    def forward(self, memory: Pyramid) -> Pyramid:
        return memory.with_tokens(by_chunks(self.after_attention, memory.tokens, self.attention(memory)))

    def after_attention(self, tokens: Float[Tensor, "B S C"], attended: Float[Tensor, "B S C"]) -> Tensor:
        """The new tokens, each from itself and its attention output."""
        tokens = self.attention_norm(tokens, attended)
        return self.feedforward_norm(tokens, self.feedforward(tokens))


class Encoder(nn.Module):
    """A stack of encoder layers; without layers, the identity."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, pyramid: Pyramid) -> Pyramid:
        for layer in self.layers:
            pyramid = layer(pyramid)
        return pyramid
