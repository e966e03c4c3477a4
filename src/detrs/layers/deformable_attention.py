"""Multi-scale deformable attention as a layer (Deformable DETR, 4.1)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detrs.layers.autocast import for_linear_layers
from detrs.layers.chunks import by_chunks
from detrs.layers.initialization import xavier_linear
from detrs.ops import ms_deform_attn_fused
from detrs.structures import Pyramid, Queries


class Samples(NamedTuple):
    """Arguments of ``ms_deform_attn_fused``: where each query samples, and with which weights."""

    offsets: Float[Tensor, "B Q M L P 2"]
    logits: Float[Tensor, "B Q M L P"]
    reference_points: Float[Tensor, "B Q L R"]
    """Points or boxes, relative to each padded level."""


class DeformableAttention(nn.Module):
    """Each query samples ``num_points`` points per head and level around its reference.

    There is no product of queries and keys: sampling offsets and attention weights are linear in the query. Around a
    reference point, offsets are in pixels of the sampled level (4.1); around a reference box, they are scaled by
    box size / (2P) (A.2).

    Args:
        dim: embedding dimension of queries and tokens; ``dim / num_heads`` channels per head.
        num_heads: M; the initial offsets of each have a direction of their own.
        num_levels: L.
        num_points: P, per head and level.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.heads_levels_points = (num_heads, num_levels, num_points)
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
        value = self.value_proj(memory.tokens).unflatten(2, (self.heads_levels_points[0], -1))  # (B, S, M, D)

        def attended(query: Tensor, reference: Tensor) -> Tensor:
            samples = self.samples(query, reference, memory)
            return self.output_proj(ms_deform_attn_fused(value, memory.shapes, *samples, memory.padding))

        return by_chunks(attended, query, reference)

    def samples(self, query: Float[Tensor, "B Q C"], reference: Float[Tensor, "B Q R"], memory: Pyramid) -> Samples:
        """What determines sampling locations and attention weights: ``memory`` contributes its valid ratios only."""
        query = for_linear_layers(query)
        return Samples(
            self.sampling_offsets(query).unflatten(2, (*self.heads_levels_points, 2)),
            self.attention_weights(query).unflatten(2, self.heads_levels_points),
            on_padded_maps(reference, memory.valid_ratio),
        )


class DeformableInputs(NamedTuple):
    """The arguments of ``DeformableAttention``."""

    query: Float[Tensor, "B Q C"]
    reference: Float[Tensor, "B Q R"]
    memory: Pyramid


def on_padded_maps(reference: Float[Tensor, "B Q R"], valid_ratio: Float[Tensor, "B L 2"]) -> Float[Tensor, "B Q L R"]:
    """Points or boxes in [0, 1] of the un-padded image as [0, 1] of each padded level."""
    ratio = torch.cat([valid_ratio] * (reference.shape[2] // 2), dim=-1)  # (B, L, R)
    return reference[:, :, None] * ratio[:, None]


def star(num_heads: int, num_levels: int, num_points: int) -> Float[Tensor, "M L P 2"]:
    """Initial offsets: head m in the direction 2 pi m / M, its k-th point k steps away, the same on every level."""
    angle = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)  # (M, 2)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, num_points + 1, dtype=torch.float32)
    return (direction[:, None, None] * steps[:, None]).expand(-1, num_levels, -1, -1)


class DeformableSelfAttention(nn.Module):
    """Self-attention of tokens around their own position on all levels, as in the encoder of Deformable DETR."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim, num_heads, num_levels, num_points)

    def forward(self, memory: Pyramid) -> Float[Tensor, "B S C"]:
        return self.attention(*self.inputs(memory))

    def inputs(self, memory: Pyramid) -> DeformableInputs:
        return DeformableInputs(memory.tokens + memory.position, memory.reference_points, memory)


class OwnLevelSelfAttention(nn.Module):
    """The same on the token's own level only; levels share weights and exchange no information (5.3)."""

    def __init__(self, dim: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim, num_heads, 1, num_points)

    def forward(self, memory: Pyramid) -> Float[Tensor, "B S C"]:
        return torch.cat([self.attention(*level) for level in self.inputs(memory)], dim=1)

    def inputs(self, memory: Pyramid) -> list[DeformableInputs]:
        """Those of each level."""
        return [DeformableInputs(x.tokens + x.position, x.reference_points, x) for x in single_levels(memory)]


def single_levels(memory: Pyramid) -> list[Pyramid]:
    """Each level as a pyramid of its own."""
    cells = [h * w for h, w in memory.shapes]
    parts = zip(
        memory.tokens.split(cells, dim=1),
        memory.position.split(cells, dim=1),
        memory.reference_points.split(cells, dim=1),
        memory.padding.split(cells, dim=1),
        [(shape,) for shape in memory.shapes],
        memory.valid_ratio.split(1, dim=1),
        [memory.image_sizes] * len(cells),
        strict=True,
    )
    return [Pyramid(*part) for part in parts]


class DeformableCrossAttention(nn.Module):
    """Cross-attention around the reference of each query, as in the decoder of Deformable DETR."""

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(dim, num_heads, num_levels, num_points)

    def forward(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q C"]:
        return self.attention(*self.inputs(queries, memory))

    def inputs(self, queries: Queries, memory: Pyramid) -> DeformableInputs:
        return DeformableInputs(queries.content + queries.position, queries.reference, memory)
