"""Sine embeddings of positions (Attention Is All You Need, 3.5; DETR, A.4)."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

TEMPERATURE = 10000.0


def sine_features(
    coordinates: Float[Tensor, "..."], dim: int, temperature: float = TEMPERATURE
) -> Float[Tensor, "... dim"]:
    """Sine and cosine features of angles, interleaved (sin, cos, sin, cos, ...), in float32.

    Args:
        coordinates: angles in radians; a position in [0, 1] is multiplied by 2 pi first.
        dim: number of features per coordinate, even.
        temperature: ratio of the longest wavelength, which is not reached, to the shortest.
    """
    index = torch.arange(dim, device=coordinates.device, dtype=torch.float32)
    wavelength = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / dim)
    angles = coordinates.float()[..., None] / wavelength
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


class SinePosition(nn.Module):
    """Position embedding of a feature map: the row's features, then the column's.

    Rows and columns are counted over valid cells only and normalized to (0, 2 pi]; padding is right and bottom only, so
    a row has the same features in all columns, and sines are computed once per row and once per column. Values in fully
    padded rows and columns are meaningless and masked. Computed in float32, also under autocast.

    Args:
        dim: number of channels, divisible by 4.
        shift: added to the one-based count; -0.5 puts positions at cell centers (Deformable DETR), 0 is DETR.
        temperature: of ``sine_features``; 20 in DAB-DETR and DINO.
    """

    def __init__(self, dim: int, shift: float, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        self.features = dim // 2
        self.shift = shift
        self.temperature = temperature

    def forward(self, padding: Bool[Tensor, "B H W"]) -> Float[Tensor, "B H W C"]:
        height, width = padding.shape[1:]
        rows = self.line(~padding[:, :, 0])[:, :, None].expand(-1, -1, width, -1)
        columns = self.line(~padding[:, 0, :])[:, None].expand(-1, height, -1, -1)
        return torch.cat([rows, columns], dim=-1)

    def line(self, valid: Bool[Tensor, "B N"]) -> Float[Tensor, "B N F"]:
        """Features of the rows or of the columns of a map."""
        count = valid.float().cumsum(1)  # the first valid row is 1
        angles = (count + self.shift) / (count[:, -1:] + 1e-6) * 2 * math.pi
        return sine_features(angles, self.features, self.temperature)
