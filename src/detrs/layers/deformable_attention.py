"""Multi-scale deformable attention as a layer (Deformable DETR, 4.1)."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrs.layers.initialization import xavier_linear
from detrs.ops import ms_deform_attn
from detrs.structures import Pyramid, Queries

Locate = Callable[[Tensor, Tensor, Pyramid], Tensor]
"""Sampling offsets (B, Q, M, L, P, 2) and references (B, Q, 2 or 4) to locations in [0, 1] of the padded maps."""


def around_point(
    offsets: Float[Tensor, "B Q M L P 2"], point: Float[Tensor, "B Q 2"], memory: Pyramid
) -> Float[Tensor, "B Q M L P 2"]:
    """Offsets are measured in pixels of the level they sample: ``p + offset / (W_l, H_l)``."""
    sizes = offsets.new_tensor([(w, h) for h, w in memory.shapes])  # (L, 2)
    point = point[:, :, None] * memory.valid_ratio[:, None]  # (B, Q, L, 2)
    return point[:, :, None, :, None] + offsets / sizes[:, None]


def around_box(
    offsets: Float[Tensor, "B Q M L P 2"], box: Float[Tensor, "B Q 4"], memory: Pyramid
) -> Float[Tensor, "B Q M L P 2"]:
    """Offsets are measured in half boxes: the P-th point of the initial star lies on the box's edge (A.2)."""
    ratio = memory.valid_ratio[:, None]  # (B, 1, L, 2)
    center, size = box[:, :, None, :2] * ratio, box[:, :, None, 2:] * ratio  # (B, Q, L, 2)
    return center[:, :, None, :, None] + offsets * (size[:, :, None, :, None] * (0.5 / offsets.shape[4]))


class DeformableAttention(nn.Module):
    """Each query reads ``num_points`` points per head and level around its reference, weighted by itself.

    There is no product of queries and keys: where to look and how much to take are linear in the query.

    Args:
        dim: width of queries and tokens; ``dim / num_heads`` channels per head.
        num_heads: M; each starts out looking in its own direction.
        num_levels: L.
        num_points: P, per head and level.
        locate: what an offset is measured in, ``around_point`` or ``around_box``.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int, locate: Locate) -> None:
        super().__init__()
        self.heads_levels_points = (num_heads, num_levels, num_points)
        self.locate = locate
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = xavier_linear(dim, dim, zero_bias=True)
        self.output_proj = xavier_linear(dim, dim, zero_bias=True)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(star(num_heads, num_levels, num_points).flatten())

    def forward(
        self, query: Float[Tensor, "B Q C"], reference: Float[Tensor, "B Q R"], memory: Pyramid
    ) -> Float[Tensor, "B Q C"]:
        heads, levels, points = self.heads_levels_points
        value = self.value_proj(memory.tokens).masked_fill(memory.padding[..., None], 0.0).unflatten(2, (heads, -1))
        offsets = self.sampling_offsets(query).unflatten(2, (heads, levels, points, 2))
        weights = self.attention_weights(query).unflatten(2, (heads, levels * points)).softmax(-1)  # (B, Q, M, L*P)
        locations = self.locate(offsets, reference, memory)  # (B, Q, M, L, P, 2)
        sampled = ms_deform_attn(value, memory.shapes, locations, weights.unflatten(3, (levels, points)))  # Eq. 3
        return self.output_proj(sampled)


def star(num_heads: int, num_levels: int, num_points: int) -> Float[Tensor, "M L P 2"]:
    """Initial offsets: head m looks in direction 2 pi m / M, its k-th point k steps away, on every level alike."""
    angle = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)  # (M, 2)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, num_points + 1, dtype=torch.float32)
    return (direction[:, None, None] * steps[:, None]).expand(-1, num_levels, -1, -1)


class DeformableSelfAttention(nn.Module):
    """Tokens look around themselves on all levels; what encoder layers of Deformable DETR do."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim, num_heads, num_levels, num_points, around_point)

    def forward(self, memory: Pyramid) -> Float[Tensor, "B S C"]:
        return self.attention(memory.tokens + memory.position, memory.reference, memory)


class DeformableLook(nn.Module):
    """Queries look at the image around their reference; what decoder layers of Deformable DETR do."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int, locate: Locate) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim, num_heads, num_levels, num_points, locate)

    def forward(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q C"]:
        return self.attention(queries.content + queries.position, queries.reference, memory)
