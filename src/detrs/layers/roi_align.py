"""RoIAlign on a feature pyramid: a fixed grid of features for every box (Mask R-CNN; FPN, Eq. 1)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from detrs.layers.neck import level_sizes
from detrs.structures import Pyramid

Extents = Callable[[Pyramid], Tensor]
"""Columns and rows of each level (B, L, 2) that are sampled: ``whole_levels`` or ``valid_levels``."""


def whole_levels(memory: Pyramid) -> Float[Tensor, "B L 2"]:
    """All cells, padding included, as in the authors' code."""
    return level_sizes(memory.shapes, memory.valid_ratio).expand_as(memory.valid_ratio)


def valid_levels(memory: Pyramid) -> Float[Tensor, "B L 2"]:
    """The cells that are not padding: boxes are pooled as from the un-padded image."""
    return (level_sizes(memory.shapes, memory.valid_ratio) * memory.valid_ratio).round()


class RoIAlign(nn.Module):
    """Aligned RoIAlign of boxes, each from the level that fits its size.

    Equal to ``torchvision.ops.roi_align(aligned=True)`` per level, but without a loop over the levels, whose numbers of
    boxes would be synchronized with the host and unknown to the exporter: the samples of all boxes and levels are one
    weighted sum of tokens. Boxes receive no gradient.

    Args:
        strides: of the levels, fine to coarse; the first is a power of two.
        extents: ``whole_levels`` or ``valid_levels``.
        size: cells along each side of the pooled grid.
        samples: sampling points along each side of a cell.
        canonical_size: square root of the area of the boxes that are pooled from stride 16, in pixels.
    """

    def __init__(
        self,
        strides: tuple[int, ...],
        extents: Extents,
        size: int = 7,
        samples: int = 2,
        canonical_size: float = 224.0,
    ) -> None:
        super().__init__()
        self.strides = strides
        self.extents = extents
        self.size = size
        self.samples = samples
        self.canonical_size = canonical_size
        self.finest = int(math.log2(strides[0]))

    def forward(self, boxes: Float[Tensor, "B Q 4"], memory: Pyramid) -> Float[Tensor, "B Q _ C"]:
        """Features of each cell of the grid, row by row.

        Args:
            boxes: cxcywh in [0, 1] of the un-padded image.
            memory: feature maps.
        """
        image = memory.image_sizes.flip(1)[:, None].to(boxes.dtype)  # (B, 1, 2), width and height
        center, size = (part * image for part in boxes.detach().split(2, dim=-1))  # pixels
        level = self.level(size)
        stride = boxes.new_tensor(self.strides)[level][..., None]  # (B, Q, 1)
        extent = self.extents(memory).to(boxes.dtype).gather(1, level[..., None].expand(-1, -1, 2))  # (B, Q, 2)
        cells, weights = self.samples_along_axes((center - size / 2) / stride - 0.5, size / stride, extent)
        index = (
            flat_index(cells, level, memory).flatten(4).flatten(0, 3)
        )  # (B * Q * size * size, 4 * samples * samples)
        weight = (weights[:, :, 1, :, None, :, None] * weights[:, :, 0, None, :, None, :]).flatten(4).flatten(0, 3)
        tokens = memory.tokens.flatten(0, 1).to(weight.dtype)
        pooled = F.embedding_bag(index, tokens, per_sample_weights=weight, mode="sum")
        return pooled.view(*boxes.shape[:2], self.size**2, -1)

    def level(self, size: Float[Tensor, "B Q 2"]) -> Int[Tensor, "B Q"]:
        """Index of the level of a box: finer by one for every halving of its size (FPN, Eq. 1)."""
        area = size.prod(-1).clamp(min=0)
        level = torch.floor(4 + torch.log2(area.sqrt() / self.canonical_size + 1e-8)) - self.finest
        return level.nan_to_num(0.0).clamp(0, len(self.strides) - 1).long()

    def samples_along_axes(
        self, start: Float[Tensor, "B Q 2"], size: Float[Tensor, "B Q 2"], extent: Float[Tensor, "B Q 2"]
    ) -> tuple[Int[Tensor, "B Q 2 _ _"], Float[Tensor, "B Q 2 _ _"]]:
        """Two cells and their weights for each sample along x and y, by linear interpolation.

        Samples more than one cell outside are zero; others are moved to the nearest cell center.

        Returns:
            Cells and weights, (B, Q, 2, size, 2 * samples): along x, then along y.
        """
        count = self.size * self.samples
        fraction = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
        at, last = start[..., None] + size[..., None] * fraction, extent[..., None] - 1  # (B, Q, 2, count)
        inside = (at >= -1) & (at <= last + 1)
        at = torch.where(inside, at, 0.0).clamp(min=0).minimum(last)  # also where coordinates are not finite
        low = at.floor()
        cells = torch.stack([low, (low + 1).minimum(last)], dim=-1)
        weights = torch.stack([low + 1 - at, at - low], dim=-1) * inside[..., None] / self.samples
        return tuple(x.flatten(3).unflatten(3, (self.size, -1)) for x in (cells.long(), weights))


def flat_index(
    cells: Int[Tensor, "B Q 2 P N"], level: Int[Tensor, "B Q"], memory: Pyramid
) -> Int[Tensor, "B Q P P N N"]:
    """Index of each pair of row and column in the tokens of all images."""
    starts, width, start = [], [], 0
    for height, columns in memory.shapes:
        starts.append(level.new_full((), start))
        width.append(level.new_full((), columns))
        start = start + height * columns
    images = torch.arange(level.shape[0], device=level.device)[:, None] * memory.tokens.shape[1]
    first = images + torch.stack(starts)[level]
    row = cells[:, :, 1] * torch.stack(width)[level][..., None, None]
    return first[..., None, None, None, None] + row[:, :, :, None, :, None] + cells[:, :, 0, None, :, None, :]
