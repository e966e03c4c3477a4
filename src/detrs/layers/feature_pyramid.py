"""Feature pyramid network (Lin et al. 2017, arXiv 1612.03144)."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.layers.fpn import convolution, smoothing, upsampled


class FeaturePyramid(nn.Module):
    """FPN: a 1x1 convolution per map, a top-down path of sums, and a 3x3 convolution per level.

    The coarsest extra levels are every second cell of the level before, as P6 of Faster R-CNN. Cells that are padding
    are zero for the 3x3 convolutions and in the output, as is everything outside the image, so levels do not depend on
    padding.

    Args:
        in_channels: of each map of the backbone, fine to coarse.
        strides: of the same maps, in pixels.
        dim: channels of all levels.
        num_levels: of the pyramid.
    """

    def __init__(self, in_channels: tuple[int, ...], strides: tuple[int, ...], dim: int, num_levels: int) -> None:
        super().__init__()
        self.strides = (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(num_levels - len(strides))))
        """Of all levels, in pixels."""
        self.lateral = nn.ModuleList(convolution(channels, dim, 1) for channels in in_channels)
        self.output = nn.ModuleList(smoothing(dim) for _ in in_channels)

    def forward(
        self, features: list[Float[Tensor, "B _ _ _"]], padding: Bool[Tensor, "B H W"]
    ) -> list[Float[Tensor, "B C _ _"]]:
        laterals = [lateral(feature) for lateral, feature in zip(self.lateral, features, strict=True)]
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + upsampled(laterals[i + 1], laterals[i])
        maps = []
        for x, output, stride in zip(laterals, self.output, self.strides, strict=False):
            outside = padding_of_cells(padding, (x.shape[-2], x.shape[-1]), stride)[:, None]
            maps.append(output(x.masked_fill(outside, 0.0)).masked_fill(outside, 0.0))
        for _ in self.strides[len(maps) :]:
            maps.append(maps[-1][..., ::2, ::2])
        return maps


def padding_of_cells(padding: Bool[Tensor, "B H W"], shape: tuple[int, int], stride: int) -> Bool[Tensor, "B h w"]:
    """True for cells whose first pixel is padding.

    Unlike nearest neighbors at a rounded scale, the number of cells of an image does not depend on its padding.
    """
    return padding[:, ::stride, ::stride][:, : shape[0], : shape[1]]


def extended(x: Float[Tensor, "B C h w"], padding: Bool[Tensor, "B H W"], stride: int) -> Float[Tensor, "B C _ _"]:
    """``x`` with the last row and column of each image repeated in the padding, and once more behind it.

    Interpolation at the border of an image then has the same result for any padding.
    """
    inside = ~padding_of_cells(padding, (x.shape[-2], x.shape[-1]), stride)
    rows, columns = (inside[:, :, 0].sum(1) - 1)[:, None], (inside[:, 0].sum(1) - 1)[:, None]
    y = torch.arange(x.shape[2] + 1, device=x.device).minimum(rows)  # (B, h + 1)
    x = x.gather(2, y[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
    column = torch.arange(x.shape[3] + 1, device=x.device).minimum(columns)
    return x.gather(3, column[:, None, None, :].expand(-1, x.shape[1], x.shape[2], -1))
