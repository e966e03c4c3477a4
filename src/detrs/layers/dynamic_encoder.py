"""The dynamic encoder of Dynamic DETR: deformable convolutions across neighboring levels, weighted and gated."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.config.dynamic_detr import GROUPS, Fusion
from detrs.layers.deformable_convolution import deform_conv2d, sampling_locations
from detrs.layers.fpn import FeaturePyramid, padding_of_cells
from detrs.layers.neck import valid_group_norm
from detrs.precision import full_precision
from detrs.structures import Pyramid

KERNEL = 3


class DeformableConvolution(nn.Module):
    """Modulated deformable 3x3 convolution (DCNv2) with given offsets and modulation, then GroupNorm."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        bound = 1 / math.sqrt(dim * KERNEL**2)
        self.weight = nn.Parameter(torch.empty(dim, dim, KERNEL, KERNEL).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.norm = nn.GroupNorm(GROUPS, dim)

    def forward(
        self,
        x: Float[Tensor, "B C _ _"],
        offsets: Float[Tensor, "B 18 h w"],
        modulation: Float[Tensor, "B 9 h w"],
        padding: Bool[Tensor, "B h w"],
    ) -> Float[Tensor, "B C h w"]:
        """Convolution of ``x`` with the sampling offsets of the output's cells, which have ``padding``."""
        y = deform_conv2d(x, offsets, modulation, self.weight, self.bias, self.stride, KERNEL // 2)
        return valid_group_norm(self.norm, y, padding)

    def locations(self, offsets: Float[Tensor, "B 18 h w"], size: tuple[int, int]) -> Float[Tensor, "B h w 3 3 2"]:
        """Where each cell samples a map of ``size``: (x, y) in [0, 1] of the map."""
        return sampling_locations(offsets, size, (KERNEL, KERNEL), self.stride, KERNEL // 2)


class NormalizedLevels(nn.Module):
    """GroupNorm of each level of a feature pyramid, without padding; all levels share its weights.

    Args:
        pyramid: feature maps and padding to maps, with their ``strides``.
        dim: channels of the maps.
    """

    def __init__(self, pyramid: FeaturePyramid, dim: int) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.norm = nn.GroupNorm(GROUPS, dim)

    def forward(
        self, features: list[Float[Tensor, "B _ _ _"]], padding: Bool[Tensor, "B H W"]
    ) -> list[Float[Tensor, "B C _ _"]]:
        maps, strides = self.pyramid(features, padding), self.pyramid.strides
        return [
            valid_group_norm(self.norm, x, padding_of_cells(padding, (x.shape[-2], x.shape[-1]), stride))
            for x, stride in zip(maps, strides, strict=True)
        ]


class SqueezeExcitation(nn.Module):
    """One weight per channel from the mean of a map (Hu et al. 2018)."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(dim, dim // reduction)
        self.excite = nn.Linear(dim // reduction, dim)

    def forward(self, mean: Float[Tensor, "B C"]) -> Float[Tensor, "B C 1 1"]:
        return self.excite(self.squeeze(mean).relu()).sigmoid()[..., None, None]


class DynamicReLU(nn.Module):
    """``max(a1 x + b1, a2 x + b2)`` with coefficients per channel from the mean of the map (Chen et al. 2020, B)."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(dim, dim // reduction)
        self.coefficients = nn.Linear(dim // reduction, 4 * dim)

    def forward(self, x: Float[Tensor, "B C h w"], mean: Float[Tensor, "B C"]) -> Float[Tensor, "B C h w"]:
        raw = F.hardsigmoid(self.coefficients(self.squeeze(mean).relu()))[..., None, None] - 0.5
        a1, b1, a2, b2 = raw.chunk(4, dim=1)
        return torch.maximum((1 + 2 * a1) * x + b1, 2 * a2 * x + b2)


class Sampling(NamedTuple):
    """The samples of each cell of a level."""

    offsets: Float[Tensor, "B 18 h w"]
    """(y, x) in pixels of the sampled map."""
    modulation: Float[Tensor, "B 9 h w"]
    """Factor of each sample."""


class Source(NamedTuple):
    """A map that a level samples, and the convolution that does it."""

    convolution: DeformableConvolution
    x: Float[Tensor, "B C _ _"]


class DynamicEncoderLayer(nn.Module):
    """New content of each level from itself and its neighbors; all levels share the weights.

    Offsets and modulation are predicted from the level itself and used for its neighbors too. The coarser neighbor is
    upsampled to the level's size first, so that its cells are those that the offsets belong to.

    Args:
        dim: channels; a multiple of 16.
        se_reduction: of ``SqueezeExcitation``.
        relu_reduction: of ``DynamicReLU``.
        fusion: mean or sum of the weighted convolutions of a level and its neighbors.
        residual: add the level to its new content.
    """

    def __init__(
        self,
        dim: int,
        se_reduction: int = 16,
        relu_reduction: int = 4,
        fusion: Fusion = "mean",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.residual = residual
        self.offsets = nn.Conv2d(dim, 3 * KERNEL**2, KERNEL, padding=KERNEL // 2)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.get_parameter("bias"))
        self.finer = DeformableConvolution(dim, stride=2)
        self.same = DeformableConvolution(dim, stride=1)
        self.coarser = DeformableConvolution(dim, stride=1)
        self.scale = SqueezeExcitation(dim, se_reduction)
        self.gate = DynamicReLU(dim, relu_reduction)

    def forward(self, memory: Pyramid) -> Pyramid:
        with full_precision(memory.tokens.device.type):  # sampling positions need it
            maps, paddings = self.valid_maps(memory)
            return memory.with_maps([self.level(maps, paddings, i) for i in range(len(maps))])

    def valid_maps(self, memory: Pyramid) -> tuple[list[Tensor], list[Tensor]]:
        """The maps (B, C, h, w), zero where padded, and their padding (B, h, w)."""
        memory = memory.with_tokens(memory.tokens.to(self.same.weight.dtype))
        masks = memory.padding.split([h * w for h, w in memory.shapes], dim=1)
        paddings = [mask.unflatten(1, shape) for mask, shape in zip(masks, memory.shapes, strict=True)]
        return [x.masked_fill(mask[:, None], 0.0) for x, mask in zip(memory.maps(), paddings, strict=True)], paddings

    def sampling(self, x: Float[Tensor, "B C h w"]) -> Sampling:
        """Where and how much each cell of a level samples the level and its neighbors."""
        raw = self.offsets(x)
        return Sampling(raw[:, : 2 * KERNEL**2], raw[:, 2 * KERNEL**2 :].sigmoid())

    def sources(self, maps: list[Tensor], paddings: list[Tensor], i: int) -> dict[int, Source]:
        """The maps that level ``i`` samples, by their level: its own and its neighbors."""
        x, padding = maps[i], paddings[i]
        sources = {i: Source(self.same, x)}
        if i > 0:
            sources[i - 1] = Source(self.finer, maps[i - 1])
        if i + 1 < len(maps):
            above = doubled(maps[i + 1], paddings[i + 1], (x.shape[2], x.shape[3])).masked_fill(padding[:, None], 0.0)
            sources[i + 1] = Source(self.coarser, above)
        return sources

    def convolved(
        self, source: Source, sampling: Sampling, padding: Bool[Tensor, "B h w"]
    ) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B C 1 1"]]:
        """The convolution of a source, and its scale: the weight of each channel."""
        y = source.convolution(source.x, *sampling, padding)
        return y, self.scale(valid_mean(y, padding))

    def level(self, maps: list[Tensor], paddings: list[Tensor], i: int) -> Float[Tensor, "B C h w"]:
        """The new map of level ``i``."""
        x, padding = maps[i], paddings[i]
        sampling, sources = self.sampling(x), self.sources(maps, paddings, i).values()
        weighted = [scale * y for y, scale in (self.convolved(source, sampling, padding) for source in sources)]
        mixed = torch.stack(weighted).mean(0) if self.fusion == "mean" else torch.stack(weighted).sum(0)
        gated = self.gate(mixed, valid_mean(mixed, padding))
        return x + gated if self.residual else gated


def doubled(
    x: Float[Tensor, "B C _ _"], padding: Bool[Tensor, "B _ _"], size: tuple[int, int]
) -> Float[Tensor, "B C _ _"]:
    """Bilinear interpolation by a factor of 2, cut or extended by its border to ``size``.

    Cells in the padding have the values of the image's border, so that the result does not depend on padding.
    """
    rows, columns = (~padding[:, :, 0]).sum(1)[:, None] - 1, (~padding[:, 0]).sum(1)[:, None] - 1
    y = torch.arange(x.shape[2], device=x.device).minimum(rows)  # (B, h)
    x = x.gather(2, y[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
    column = torch.arange(x.shape[3], device=x.device).minimum(columns)
    x = x.gather(3, column[:, None, None, :].expand(-1, x.shape[1], x.shape[2], -1))
    x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    for axis, side in zip((2, 3), size, strict=True):  # a slice would tie exported programs to even sizes
        cells = torch.arange(side, device=x.device)
        x = x.index_select(axis, cells.clamp(max=x.shape[axis] - 1))  # backbones that round sides down: one is missing
    return x


def valid_mean(x: Float[Tensor, "B C h w"], padding: Bool[Tensor, "B h w"]) -> Float[Tensor, "B C"]:
    """Mean over the cells that are not padding."""
    return x.masked_fill(padding[:, None], 0.0).sum((2, 3)) / (~padding).sum((1, 2))[:, None]
