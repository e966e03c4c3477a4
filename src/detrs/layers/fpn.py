"""Necks that exchange information between levels: FPN (Lin et al. 2017) and BiFPN (EfficientDet, Tan et al. 2020).

All return maps, like ``ChannelMapper``, and take its place in a ``PyramidNeck``. Maps are resized to the size of their
neighbor, so images need no padding to a multiple of the largest stride.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.layers.neck import (
    Application,
    downsamples,
    further_levels,
    normalized_projection,
    valid_cells,
    valid_inputs,
    whole_map,
)

Smoothing = Callable[[int], nn.Module]
"""Embedding dimension to the 3x3 convolution of an output of FPN: ``smoothing`` or ``normalized_smoothing``."""


def convolution(in_channels: int, dim: int, kernel: int) -> nn.Conv2d:
    """A convolution of stride 1 with the initialization of FPN: Kaiming-uniform for a linear layer, zero bias."""
    layer = nn.Conv2d(in_channels, dim, kernel, padding=kernel // 2)
    nn.init.kaiming_uniform_(layer.weight, a=1)
    nn.init.zeros_(layer.get_parameter("bias"))
    return layer


def smoothing(dim: int) -> nn.Conv2d:
    """A 3x3 convolution, as in the authors' code."""
    return convolution(dim, dim, 3)


def normalized_smoothing(dim: int) -> nn.Sequential:
    """The same followed by GroupNorm with 32 groups, as after the projections of Deformable DETR."""
    return nn.Sequential(smoothing(dim), nn.GroupNorm(32, dim))


def upsampled(x: Float[Tensor, "B C _ _"], like: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """Nearest neighbor, to the size of another map; a factor of 2 if sides are multiples of the stride."""
    return F.interpolate(x, size=like.shape[-2:], mode="nearest")


def top_down(laterals: nn.ModuleList, features: list[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B C _ _"]]:
    """The projected maps, each with the sum of the coarser ones; fine to coarse."""
    maps: list[Tensor] = [lateral(feature) for lateral, feature in zip(laterals, features, strict=True)]
    for level in range(len(maps) - 1, 0, -1):
        maps[level - 1] = maps[level - 1] + upsampled(maps[level], maps[level - 1])
    return maps


class FPN(nn.Module):
    """Feature pyramid network: 1x1 laterals, sums from coarse to fine, a 3x3 convolution per level.

    Levels beyond those of the backbone come from strided projections of its last map, as in ``ChannelMapper``.

    Args:
        in_channels: of each map of the backbone.
        dim: embedding dimension of all levels.
        num_levels: of the pyramid.
        smooth: ``smoothing`` or ``normalized_smoothing``.
        apply: ``whole_map``; to exclude padding, ``valid_inputs`` with ``smoothing`` (and no further levels) or
            ``valid_cells`` with ``normalized_smoothing``.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        dim: int,
        num_levels: int,
        smooth: Smoothing,
        apply: Application = whole_map,
    ) -> None:
        super().__init__()
        self.apply_projection = apply
        self.laterals = nn.ModuleList(convolution(channels, dim, 1) for channels in in_channels)
        self.outputs = nn.ModuleList(smooth(dim) for _ in in_channels)
        self.downsamples = downsamples(in_channels, dim, num_levels, normalized_projection)

    def forward(
        self, features: list[Float[Tensor, "B _ _ _"]], padding: Bool[Tensor, "B H W"]
    ) -> list[Float[Tensor, "B C _ _"]]:
        merged = top_down(self.laterals, features)
        maps = [self.apply_projection(output, x, padding) for output, x in zip(self.outputs, merged, strict=True)]
        return maps + further_levels(self.downsamples, features[-1], padding, self.apply_projection)


class FeaturePyramid(nn.Module):
    """FPN with the extra levels of Faster R-CNN, independent of padding.

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
        maps = []
        for x, output, stride in zip(top_down(self.lateral, features), self.output, self.strides, strict=False):
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


class Fusion(nn.Module):
    """A node of BiFPN: weighted mean of its inputs, swish, depthwise-separable 3x3 convolution, GroupNorm.

    Fast normalized fusion (EfficientDet, 3.3): weights are positive and divided by their sum.
    """

    def __init__(self, num_inputs: int, dim: int, apply: Application) -> None:
        super().__init__()
        self.apply_projection = apply
        self.fusion_weights = nn.Parameter(torch.ones(num_inputs))
        depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.projection = nn.Sequential(nn.Sequential(depthwise, nn.Conv2d(dim, dim, 1)), nn.GroupNorm(32, dim))

    def forward(
        self, inputs: list[Float[Tensor, "B C h w"]], padding: Bool[Tensor, "B H W"]
    ) -> Float[Tensor, "B C h w"]:
        weights = self.fusion_weights.relu()
        weights = weights / (weights.sum() + 1e-4)
        fused = sum(weight * x for weight, x in zip(weights, inputs, strict=True))
        return self.apply_projection(self.projection, F.silu(fused), padding)


POOLING: dict[Application, Application] = {whole_map: whole_map, valid_cells: valid_inputs}
"""How maps are downsampled, for each way to apply the projections."""


class BiFPNLayer(nn.Module):
    """Nodes from coarse to fine, then from fine to coarse with the input of each level as a shortcut.

    Args:
        num_levels: of the pyramid.
        dim: embedding dimension, a multiple of 32.
        apply: ``whole_map`` or, to exclude padding, ``valid_cells``.
    """

    def __init__(self, num_levels: int, dim: int, apply: Application = whole_map) -> None:
        super().__init__()
        self.apply_pooling = POOLING[apply]
        # zeros around the map, not -inf as MaxPool2d would pad: as EfficientDet, and as blanked padding
        self.downsample = nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(3, stride=2))
        self.top_down = nn.ModuleList(Fusion(2, dim, apply) for _ in range(num_levels - 1))
        self.bottom_up = nn.ModuleList(Fusion(3, dim, apply) for _ in range(num_levels - 2))
        self.coarsest = Fusion(2, dim, apply)

    def forward(
        self, maps: list[Float[Tensor, "B C _ _"]], padding: Bool[Tensor, "B H W"]
    ) -> list[Float[Tensor, "B C _ _"]]:
        descended = [maps[-1]]  # coarse to fine
        for node, level in zip(self.top_down, maps[-2::-1], strict=True):
            descended.append(node([level, upsampled(descended[-1], level)], padding))
        ascended = descended[-1:]  # fine to coarse
        for node, level, inner in zip(self.bottom_up, maps[1:-1], descended[-2:0:-1], strict=True):
            ascended.append(node([level, inner, self.downsampled(ascended[-1], padding)], padding))
        return [*ascended, self.coarsest([maps[-1], self.downsampled(ascended[-1], padding)], padding)]

    def downsampled(self, x: Float[Tensor, "B C _ _"], padding: Bool[Tensor, "B H W"]) -> Float[Tensor, "B C _ _"]:
        """Half the size, rounded up, as strided convolutions do."""
        return self.apply_pooling(self.downsample, x, padding)


class BiFPN(nn.Module):
    """Bidirectional feature pyramid network: BiFPN layers after the projections of a ``ChannelMapper``.

    Args:
        mapper: maps of the backbone to one map of width ``dim`` per level, at least two.
        layers: BiFPN layers.
    """

    def __init__(self, mapper: nn.Module, layers: Iterable[BiFPNLayer]) -> None:
        super().__init__()
        self.mapper = mapper
        self.layers = nn.ModuleList(layers)

    def forward(
        self, features: list[Float[Tensor, "B _ _ _"]], padding: Bool[Tensor, "B H W"]
    ) -> list[Float[Tensor, "B C _ _"]]:
        maps = self.mapper(features, padding)
        for layer in self.layers:
            maps = layer(maps, padding)
        return maps
