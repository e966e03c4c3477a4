"""The attentions of DAT and DAT++: local windows, shifted windows, neighborhoods, and deformed points.

Modules map (B, C, H, W) to the same shape, for any height and width. Parameters have the names of the authors' code.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from detrs.backbones.windows import ChannelNorm, attend_in_windows, pad


class WindowAttention(nn.Module):
    """Self-attention in windows that do not overlap, with a learned bias per offset (Swin Transformer).

    Args:
        dim: channels.
        num_heads: divides ``dim``.
        window: side of a window.
        shift: see ``attend_in_windows``.
    """

    index: Int[Tensor, "T T"]

    def __init__(self, dim: int, num_heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.proj_qkv = nn.Linear(dim, 3 * dim)
        self.proj_out = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)
        y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        dy, dx = (axis.flatten()[:, None] - axis.flatten() + window - 1 for axis in (y, x))  # of the query minus key
        self.register_buffer("index", dy * (2 * window - 1) + dx, persistent=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)
        return attend_in_windows(x, self.proj_qkv, self.proj_out, bias, self.window, self.shift)


class NeighborhoodAttention(nn.Module):
    """Each cell attends to the K x K cells around it; at the border, to the nearest K x K cells (NAT, 3.1).

    Maps with a side below K are padded right and bottom with zeros. Keys and values of all neighborhoods are
    materialized: K*K times the memory of the map.

    Args:
        dim: channels.
        num_heads: divides ``dim``.
        kernel: K, odd.
    """

    def __init__(self, dim: int, num_heads: int, kernel: int = 7) -> None:
        super().__init__()
        self.num_heads, self.kernel = num_heads, kernel
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rpb = nn.Parameter(torch.zeros(num_heads, 2 * kernel - 1, 2 * kernel - 1))
        nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        height, width = x.shape[2:]
        x = pad(x, (max(self.kernel, height), max(self.kernel, width)))
        qkv = self.qkv(x.permute(0, 2, 3, 1)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)  # (B, M, H, W, D)
        query = query * query.shape[-1] ** -0.5
        (top, y), (left, x_offset) = (self.starts(side, x.device) for side in x.shape[2:])
        bias = self.rpb[:, y[:, None, :, None], x_offset[None, :, None, :]].flatten(3)  # (M, H, W, K*K)
        logits = torch.einsum("bmhwd,bmhwdk->bmhwk", query, self.neighbors(key, top, left)) + bias
        attended = torch.einsum("bmhwk,bmhwdk->bhwmd", logits.softmax(-1), self.neighbors(value, top, left))
        return self.proj(attended.flatten(3)).permute(0, 3, 1, 2)[:, :, :height, :width]

    def starts(self, size: int, device: torch.device) -> tuple[Int[Tensor, "T"], Int[Tensor, "T K"]]:
        """First neighbor of each cell along one axis, and the index of the bias of each neighbor."""
        cell = torch.arange(size, device=device)
        start = (cell - self.kernel // 2).clamp(0, size - self.kernel)
        return start, (start - cell)[:, None] + torch.arange(self.kernel, device=device) + self.kernel - 1

    def neighbors(
        self, x: Float[Tensor, "B M H W D"], top: Int[Tensor, "H"], left: Int[Tensor, "W"]
    ) -> Float[Tensor, "B M H W D KK"]:
        """The K x K cells of each neighborhood."""
        windows = x.unfold(2, self.kernel, 1).unfold(3, self.kernel, 1)  # views (B, M, H-K+1, W-K+1, D, K, K)
        return windows[:, :, top[:, None], left].flatten(5)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How ``DeformableAttention`` places its keys."""

    plus: bool
    """False: CVPR 2022. True: DAT++, whose references and queries are counted differently."""
    stride: int
    """Cells of the map per key, along each axis."""
    kernel: int
    """Of the depth-wise convolution that predicts offsets."""
    offset_range: float
    """Largest offset, in keys; 0 or less: offsets reach the whole map."""


class DeformableAttention(nn.Module):
    """All cells attend to the same deformed grid of points of their group (DAT, Eq. 4 to 8; DAT++).

    Args:
        dim: channels.
        num_heads: divides ``dim``.
        groups: divides ``num_heads``; the points of each group of heads have offsets of their own.
        sampling: references and offsets.
        table: (height, width) of the map for which the bias has one entry per displacement. Displacements are relative
            to the size of the map, so maps of other sizes read between the entries.
    """

    def __init__(self, dim: int, num_heads: int, groups: int, sampling: Sampling, table: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads, self.groups, self.sampling = num_heads, groups, sampling
        channels, kernel = dim // groups, sampling.kernel
        padding = 0 if sampling.plus and kernel == sampling.stride else kernel // 2
        self.conv_offset = nn.Sequential(
            nn.Conv2d(channels, channels, kernel, sampling.stride, padding, groups=channels),
            ChannelNorm(channels),
            nn.GELU(),
            nn.Conv2d(channels, 2, 1, bias=False),
        )
        self.proj_q, self.proj_k, self.proj_v, self.proj_out = (nn.Conv2d(dim, dim, 1) for _ in range(4))
        self.rpe_table = nn.Parameter(torch.zeros(num_heads, 2 * table[0] - 1, 2 * table[1] - 1))
        nn.init.trunc_normal_(self.rpe_table, std=0.01)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        query = self.proj_q(x)
        points = self.points(query)  # (B, G, h, w, 2)
        sampled = F.grid_sample(
            x.unflatten(1, (self.groups, -1)).flatten(0, 1).to(points.dtype),  # half points are off by parts of a cell
            points.flatten(0, 1).flip(-1),
            align_corners=True,
        ).to(x.dtype)  # (B*G, C/G, h, w)
        sampled = sampled.unflatten(0, (-1, self.groups)).flatten(1, 2)
        queries, keys, values = (
            y.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)
            for y in (query, self.proj_k(sampled), self.proj_v(sampled))
        )  # (B, M, T, D)
        bias = self.bias(points, x.shape[2], x.shape[3]).to(queries.dtype)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return self.proj_out(attended.transpose(2, 3).flatten(1, 2).unflatten(2, tuple(x.shape[2:])))

    def points(self, query: Float[Tensor, "B C H W"]) -> Float[Tensor, "B G h w 2"]:
        """Sampling points (y, x), in [-1, 1] from the first to the last cell, with CVPR's offsets possibly outside."""
        offsets = self.conv_offset(query.unflatten(1, (self.groups, -1)).flatten(0, 1)).float()
        offsets = offsets.permute(0, 2, 3, 1).unflatten(0, (-1, self.groups))  # (B, G, h, w, 2), (y, x)
        height, width = offsets.shape[2:4]
        reference, reach = self.references(height, width, offsets), self.sampling.offset_range
        if reach > 0:
            y, x = (reach / self.divisor(side) for side in (height, width))
            return reference + offsets.tanh() * torch.stack([offsets.new_full((), y), offsets.new_full((), x)])
        return (reference + offsets).clamp(-1, 1) if self.sampling.plus else (reference + offsets).tanh()

    def references(self, height: int, width: int, like: Tensor) -> Float[Tensor, "h w 2"]:
        """(y, x) of the undeformed points."""
        y, x = ((cells(side, like) + 0.5) / self.divisor(side) * 2 - 1 for side in (height, width))
        return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)

    def divisor(self, side: int) -> int:
        """Cells per side of the map of references; one less in DAT++ (not below 1)."""
        return max(side - 1, 1) if self.sampling.plus else side

    def bias(self, points: Float[Tensor, "B G h w 2"], height: int, width: int) -> Float[Tensor, "B M HW T"]:
        """Bilinear values of the table at half the displacement of query and point, so from -1 to 1."""
        if self.sampling.plus:
            y, x = (cells(side, points) / self.divisor(side) * 2 - 1 for side in (height, width))
            query = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
        else:
            query = self.references(height, width, points)
        displacement = 0.5 * (query.flatten(0, 1)[:, None] - points.flatten(2, 3)[:, :, None])  # (B, G, HW, T, 2)
        table = self.rpe_table.float().unflatten(0, (self.groups, -1)).expand(points.shape[0], -1, -1, -1, -1)
        bias = F.grid_sample(table.flatten(0, 1), displacement.flatten(0, 1).flip(-1), align_corners=True)
        return bias.unflatten(0, (-1, self.groups)).flatten(1, 2)


def cells(side: int, like: Tensor) -> Float[Tensor, "T"]:
    """0, 1, ... side - 1."""
    return torch.arange(side, device=like.device, dtype=like.dtype)
