"""Attention in windows, shifted or not: Swin Transformer (Liu et al. 2021, arXiv 2103.14030), and parts of DAT.

Maps are (B, C, H, W), of any height and width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a map."""

    def __init__(self, dim: int, affine: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=affine)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def parts(size: int, of: int) -> int:
    """Number of parts of ``of`` cells that cover ``size`` cells.

    The exporter simplifies multiples of this number. It does not simplify those of ``size`` plus a remainder.
    """
    return (size + of - 1) // of


def pad(x: Float[Tensor, "B C H W"], size: tuple[int, int]) -> Float[Tensor, "B C _ _"]:
    """``x`` with zeros right and bottom, of (height, width) ``size``."""
    return F.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))


def attend_in_windows(
    x: Float[Tensor, "B C H W"],
    project_in: nn.Linear,
    project_out: nn.Linear,
    bias: Float[Tensor, "M T T"],
    window: int,
    shift: int,
) -> Float[Tensor, "B C H W"]:
    """Self-attention of the cells of each window.

    Maps whose sides are not multiples of the window are padded right and bottom with zeros, which are keys, too, as in
    the authors' detection code.

    Args:
        x: the map.
        project_in: to queries, keys and values, one after the other.
        project_out: from the heads to the result.
        bias: added to the logits of each of M heads, for pairs of the T = window * window cells.
        window: side of a window.
        shift: windows are moved by this many cells right and down; 0: not at all. The map is rolled after it is padded,
            and cells that are not neighbors do not attend to each other.
    """
    height, width = x.shape[2:]
    rows, columns, num_heads = parts(height, window), parts(width, window), bias.shape[0]
    x = pad(x, (rows * window, columns * window)).roll((-shift, -shift), (2, 3))
    windows = x.unflatten(3, (columns, window)).unflatten(2, (rows, window)).permute(0, 2, 4, 3, 5, 1)
    qkv = project_in(windows.flatten(3, 4))  # (B, rows, columns, T, 3C)
    query, key, value = (
        part.unflatten(-1, (num_heads, -1)).transpose(-2, -3).flatten(1, 3) for part in qkv.chunk(3, dim=-1)
    )  # (B, rows*columns*M, T, D): ONNX attends in four dimensions only
    if shift:
        bias = bias + region_mask(rows, columns, window, shift, x)[:, :, None]
    bias = bias.expand(rows, columns, -1, -1, -1).flatten(0, 2)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    attended = attended.unflatten(1, (rows, columns, num_heads)).transpose(-2, -3).flatten(-2)
    windows = project_out(attended).unflatten(3, (window, window))
    x = windows.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    return x.roll((shift, shift), (2, 3))[:, :, :height, :width]


def region_mask(rows: int, columns: int, window: int, shift: int, like: Tensor) -> Float[Tensor, "rows columns T T"]:
    """-100 for pairs of cells of one window that come from different sides of the rolled map, otherwise 0."""
    sides = []
    for count in (rows, columns):
        cell = torch.arange(count * window, device=like.device)
        sides.append((cell >= (count - 1) * window).long() + (cell >= count * window - shift).long())
    y, x = (side.unflatten(0, (-1, window)) for side in sides)  # (rows, w), (columns, w)
    region = (3 * y[:, None, :, None] + x[None, :, None, :]).flatten(2)  # (rows, columns, T)
    return torch.zeros((), dtype=like.dtype, device=like.device).masked_fill(
        region[..., None] != region[..., None, :], -100.0
    )
