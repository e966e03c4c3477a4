"""Global multi-head attention."""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from detrs.layers.initialization import xavier_linear
from detrs.structures import Queries

# The official repositories initialise the stacked (3C, C) projection of nn.MultiheadAttention as one matrix.
PACKED_GAIN = 1 / math.sqrt(2)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with dropout on the probabilities (Attention Is All You Need, 3.2)."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query_proj = xavier_linear(dim, dim, gain=PACKED_GAIN, zero_bias=True)
        self.key_proj = xavier_linear(dim, dim, gain=PACKED_GAIN, zero_bias=True)
        self.value_proj = xavier_linear(dim, dim, gain=PACKED_GAIN, zero_bias=True)
        self.output_proj = xavier_linear(dim, dim, zero_bias=True)

    def forward(
        self, query: Float[Tensor, "B Q C"], key: Float[Tensor, "B T C"], value: Float[Tensor, "B T C"]
    ) -> Float[Tensor, "B Q C"]:
        q, k, v = (
            projected.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, M, Q or T, D)
            for projected in (self.query_proj(query), self.key_proj(key), self.value_proj(value))
        )
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.output_proj(attended.transpose(1, 2).flatten(2))


class SelfAttention(nn.Module):
    """Queries look at each other; positions steer where, contents are what is seen."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout)

    def forward(self, queries: Queries) -> Float[Tensor, "B Q C"]:
        placed = queries.content + queries.position
        return self.attention(placed, placed, queries.content)
