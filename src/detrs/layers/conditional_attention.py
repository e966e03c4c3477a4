"""Attention by content and by position with separate projections (Conditional DETR, 3.3; DAB-DETR)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrs.layers.attention import join_heads, not_padding, split_heads
from detrs.layers.feedforward import AddNorm
from detrs.layers.initialization import XAVIER, xavier_linear
from detrs.layers.position import sine_features
from detrs.ops.dropout import attention
from detrs.structures import Pyramid, Queries


def point_features(point: Float[Tensor, "B Q 2"], dim: int) -> Float[Tensor, "B Q C"]:
    """p_s: sine features of a point (x, y) in [0, 1], those of y first, as in the tokens' positions."""
    return sine_features(point.flip(-1) * 2 * math.pi, dim // 2).flatten(2)


class ConditionalLayer(nn.Module):
    """A decoder layer whose spatial queries are predicted from its input (3.3).

    Args:
        transform: lambda_q, a function of the queries' contents; the same module in all layers but the first.
        cross_attention: ``FirstCrossAttention`` or ``ConditionalCrossAttention``.
    """

    def __init__(
        self,
        transform: nn.Module,
        self_attention: nn.Module,
        cross_attention: nn.Module,
        feedforward: nn.Module,
        dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.self_attention = self_attention
        self.self_attention_norm = AddNorm(dim, dropout)
        self.cross_attention = cross_attention
        self.cross_attention_norm = AddNorm(dim, dropout)
        self.feedforward = feedforward
        self.feedforward_norm = AddNorm(dim, dropout)

    def forward(self, queries: Queries, memory: Pyramid) -> Queries:
        spatial = self.spatial_query(queries)
        queries = queries.with_content(self.self_attention_norm(queries.content, self.self_attention(queries)))
        attended = self.cross_attention(queries, spatial, memory)
        queries = queries.with_content(self.cross_attention_norm(queries.content, attended))
        return queries.with_content(self.feedforward_norm(queries.content, self.feedforward(queries.content)))

    def spatial_query(self, queries: Queries) -> Float[Tensor, "B Q C"]:
        """p_q = T p_s (3.3)."""
        points = point_features(queries.reference[..., :2], queries.content.shape[2]).to(queries.content.dtype)
        return self.transform(queries.content) * points


class NoTransform(nn.Module):
    """lambda_q of the first layer, whose contents are zero: 1."""

    def forward(self, content: Float[Tensor, "B Q C"]) -> Float[Tensor, "B Q C"]:
        return torch.ones_like(content)


class ConditionalSelfAttention(nn.Module):
    """Self-attention in which contents and positions have separate projections, which are added."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_content_proj, self.query_position_proj = xavier_linear(dim, dim), xavier_linear(dim, dim)
        self.key_content_proj, self.key_position_proj = xavier_linear(dim, dim), xavier_linear(dim, dim)
        self.value_proj = xavier_linear(dim, dim)
        self.output_proj = XAVIER.output(dim, dim)

    def forward(self, queries: Queries) -> Float[Tensor, "B Q C"]:
        query = self.query_content_proj(queries.content) + self.query_position_proj(queries.position)
        key = self.key_content_proj(queries.content) + self.key_position_proj(queries.position)
        q, k, v = (split_heads(x, self.num_heads) for x in (query, key, self.value_proj(queries.content)))
        attended = attention(q, k, v, queries.attention_mask, self.dropout if self.training else 0.0)
        return self.output_proj(join_heads(attended))


class ConditionalCrossAttention(nn.Module):
    """Cross-attention by content and position: c_q . c_k + p_q . p_k, concatenated within each head (3.3)."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_content_proj, self.query_spatial_proj = xavier_linear(dim, dim), xavier_linear(dim, dim)
        self.key_content_proj, self.key_position_proj = xavier_linear(dim, dim), xavier_linear(dim, dim)
        self.value_proj = xavier_linear(dim, dim)
        self.output_proj = XAVIER.output(dim, dim)

    def forward(self, queries: Queries, spatial: Float[Tensor, "B Q C"], memory: Pyramid) -> Float[Tensor, "B Q C"]:
        return self.attend(*self.queries_and_keys(queries, spatial, memory), memory)

    def queries_and_keys(
        self, queries: Queries, spatial: Float[Tensor, "B Q C"], memory: Pyramid
    ) -> tuple[Float[Tensor, "B M Q _"], Float[Tensor, "B M S _"]]:
        """Projected queries and keys of each head: contents, then positions (2D channels)."""
        query = self.query_content_proj(queries.content), self.query_spatial_proj(spatial)
        key = self.key_content_proj(memory.tokens), self.key_position_proj(memory.position)
        return self.concatenated(*query), self.concatenated(*key)

    def concatenated(
        self, content: Float[Tensor, "B T C"], position: Float[Tensor, "B T C"]
    ) -> Float[Tensor, "B M T _"]:
        """Content and position of queries or keys, concatenated within each head."""
        return torch.cat([split_heads(content, self.num_heads), split_heads(position, self.num_heads)], dim=-1)

    def attend(self, q: Float[Tensor, "B M Q _"], k: Float[Tensor, "B M S _"], memory: Pyramid) -> Tensor:
        """Attention output (B, Q, C), given projected queries and keys."""
        v = split_heads(self.value_proj(memory.tokens), self.num_heads)
        attended = attention(q, k, v, not_padding(memory), self.dropout if self.training else 0.0)
        return self.output_proj(join_heads(attended))


class FirstCrossAttention(nn.Module):
    """``ConditionalCrossAttention`` whose contents include the positions, for the first layer (contents are zero)."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.conditional = ConditionalCrossAttention(dim, num_heads, dropout)
        self.query_position_proj = xavier_linear(dim, dim)

    def forward(self, queries: Queries, spatial: Float[Tensor, "B Q C"], memory: Pyramid) -> Float[Tensor, "B Q C"]:
        return self.conditional.attend(*self.queries_and_keys(queries, spatial, memory), memory)

    def queries_and_keys(
        self, queries: Queries, spatial: Float[Tensor, "B Q C"], memory: Pyramid
    ) -> tuple[Float[Tensor, "B M Q _"], Float[Tensor, "B M S _"]]:
        """As in ``ConditionalCrossAttention``."""
        inner = self.conditional
        content = inner.query_content_proj(queries.content) + self.query_position_proj(queries.position)
        position = inner.key_position_proj(memory.position)
        key = inner.key_content_proj(memory.tokens) + position, position
        query = content, inner.query_spatial_proj(spatial)
        return inner.concatenated(*query), inner.concatenated(*key)
