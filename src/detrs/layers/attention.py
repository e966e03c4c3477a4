"""Global multi-head attention."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.layers.initialization import Initialization
from detrs.ops.dropout import attention
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
        q, k = self.queries_and_keys(query, key)
        v = split_heads(self.value_proj(value), self.num_heads)
        attended = attention(q, k, v, mask, self.dropout if self.training else 0.0)
        return self.output_proj(join_heads(attended))

    def queries_and_keys(
        self, query: Float[Tensor, "B Q C"], key: Float[Tensor, "B T C"]
    ) -> tuple[Float[Tensor, "B M Q D"], Float[Tensor, "B M T D"]]:
        """Projected queries and keys of each head, from which ``attention_weights`` follow."""
        return split_heads(self.query_proj(query), self.num_heads), split_heads(self.key_proj(key), self.num_heads)


def attention_weights(
    query: Float[Tensor, "B M Q D"], key: Float[Tensor, "B M T D"], mask: Bool[Tensor, "*broadcast T"]
) -> Float[Tensor, "B M Q T"]:
    """softmax(query . key / sqrt(D)) over the keys where ``mask`` is True; 0 elsewhere. At least in float32."""
    logits = query * query.shape[3] ** -0.5 @ key.mT
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.masked_fill(~mask, -torch.inf).softmax(-1, dtype=dtype)


def split_heads(x: Float[Tensor, "B T C"], num_heads: int) -> Float[Tensor, "B M T D"]:
    """Channels split into heads."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Float[Tensor, "B M T D"]) -> Float[Tensor, "B T C"]:
    """The inverse of ``split_heads``."""
    return x.transpose(1, 2).flatten(2)


class AttentionInputs(NamedTuple):
    """The arguments of ``MultiHeadAttention``."""

    query: Float[Tensor, "B Q C"]
    key: Float[Tensor, "B T C"]
    value: Float[Tensor, "B T C"]
    mask: Bool[Tensor, "*broadcast T"]


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
        return self.attention(*self.inputs(memory))

    def inputs(self, memory: Pyramid) -> AttentionInputs:
        embedded = memory.tokens + memory.position
        return AttentionInputs(embedded, embedded, memory.tokens, not_padding(memory))


class GlobalCrossAttention(nn.Module):
    """Cross-attention to all tokens that are not padding, as in the decoder of DETR."""

    def __init__(self, dim: int, num_heads: int, dropout: float, initialization: Initialization) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout, initialization)

    def forward(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q C"]:
        return self.attention(*self.inputs(queries, memory))

    def inputs(self, queries: Queries, memory: Pyramid) -> AttentionInputs:
        query, key = queries.content + queries.position, memory.tokens + memory.position
        return AttentionInputs(query, key, memory.tokens, not_padding(memory))
