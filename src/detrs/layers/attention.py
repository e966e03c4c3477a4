"""Global multi-head attention."""

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
        mask: Bool[Tensor, "*broadcast T"] | None = None,
    ) -> Float[Tensor, "B Q C"]:
        """Attention output; ``mask`` is True where a query attends to a key, broadcast to (B, M, Q, T)."""
        q, k, v = (
            split_heads(projected, self.num_heads)
            for projected in (self.query_proj(query), self.key_proj(key), self.value_proj(value))
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.output_proj(join_heads(attended))


def split_heads(x: Float[Tensor, "B T C"], num_heads: int) -> Float[Tensor, "B M T D"]:
    """Channels split into heads."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Float[Tensor, "B M T D"]) -> Float[Tensor, "B T C"]:
    """The inverse of ``split_heads``."""
    return x.transpose(1, 2).flatten(2)


def not_padding(memory: Pyramid) -> Bool[Tensor, "B 1 1 S"]:
    """Attention mask that excludes padding, the same for every head and query."""
    return ~memory.padding[:, None, None]


class SelfAttention(nn.Module):
    """Self-attention of queries: position embeddings are added to queries and keys, not to values."""

    def __init__(self, dim: int, num_heads: int, dropout: float, initialization: Initialization) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout, initialization)

    def forward(self, queries: Queries) -> Float[Tensor, "B Q C"]:
        embedded = queries.content + queries.position
        return self.attention(embedded, embedded, queries.content, queries.attention_mask)


class GlobalSelfAttention(nn.Module):
    """Self-attention of all tokens that are not padding, as in the encoder of DETR."""

    def __init__(self, dim: int, num_heads: int, dropout: float, initialization: Initialization) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout, initialization)

    def forward(self, memory: Pyramid) -> Float[Tensor, "B S C"]:
        embedded = memory.tokens + memory.position
        return self.attention(embedded, embedded, memory.tokens, not_padding(memory))


class GlobalCrossAttention(nn.Module):
    """Cross-attention to all tokens that are not padding, as in the decoder of DETR."""

    def __init__(self, dim: int, num_heads: int, dropout: float, initialization: Initialization) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout, initialization)

    def forward(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q C"]:
        query, key = queries.content + queries.position, memory.tokens + memory.position
        return self.attention(query, key, memory.tokens, not_padding(memory))
