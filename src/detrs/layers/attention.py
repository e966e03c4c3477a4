"""Global multi-head attention: everything looks at everything."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.layers.initialization import Initialization
from detrs.structures import Pyramid, Queries


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with dropout on the probabilities (Attention Is All You Need, 3.2)."""

    def __init__(self, dim: int, num_heads: int, dropout: float, initialization: Initialization) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_proj = initialization.attention(dim, dim)
        self.key_proj = initialization.attention(dim, dim)
        self.value_proj = initialization.attention(dim, dim)
        self.output_proj = initialization.output(dim, dim)

    def forward(
        self,
        query: Float[Tensor, "B Q C"],
        key: Float[Tensor, "B T C"],
        value: Float[Tensor, "B T C"],
        visible: Bool[Tensor, "B 1 1 T"] | None = None,
    ) -> Float[Tensor, "B Q C"]:
        """Attend; ``visible`` is False for keys that nobody may look at (see ``not_padding``)."""
        q, k, v = (
            split_heads(projected, self.num_heads)
            for projected in (self.query_proj(query), self.key_proj(key), self.value_proj(value))
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)
        return self.output_proj(join_heads(attended))


def split_heads(x: Float[Tensor, "B T C"], num_heads: int) -> Float[Tensor, "B M T D"]:
    """Each head's share of the channels, heads before tokens."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Float[Tensor, "B M T D"]) -> Float[Tensor, "B T C"]:
    """The inverse of ``split_heads``."""
    return x.transpose(1, 2).flatten(2)


def not_padding(memory: Pyramid) -> Bool[Tensor, "B 1 1 S"]:
    """Which tokens may be looked at, the same for every head and query."""
    return ~memory.padding[:, None, None]


class SelfAttention(nn.Module):
    """Queries look at each other; positions steer where, contents are what is seen."""

    def __init__(self, dim: int, num_heads: int, dropout: float, initialization: Initialization) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout, initialization)

    def forward(self, queries: Queries) -> Float[Tensor, "B Q C"]:
        placed = queries.content + queries.position
        return self.attention(placed, placed, queries.content)


class GlobalSelfAttention(nn.Module):
    """Tokens look at all tokens that are image; what encoder layers of DETR do."""

    def __init__(self, dim: int, num_heads: int, dropout: float, initialization: Initialization) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout, initialization)

    def forward(self, memory: Pyramid) -> Float[Tensor, "B S C"]:
        placed = memory.tokens + memory.position
        return self.attention(placed, placed, memory.tokens, not_padding(memory))


class GlobalLook(nn.Module):
    """Queries look at all tokens that are image; what decoder layers of DETR do."""

    def __init__(self, dim: int, num_heads: int, dropout: float, initialization: Initialization) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout, initialization)

    def forward(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q C"]:
        query, key = queries.content + queries.position, memory.tokens + memory.position
        return self.attention(query, key, memory.tokens, not_padding(memory))
