"""The neck: feature maps of any widths become one pyramid of tokens of one width."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.config.neck import NeckNorm
from detrs.errors import UserError
from detrs.layers.autocast import for_linear_layers
from detrs.ops import backend
from detrs.structures import Pyramid, Shapes

Projection = Callable[[int, int, int], nn.Module]
"""(in_channels, dim, kernel) to a projection; of stride 2 if the kernel is 3."""
Application = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Projection, its input (B, C, H, W) and the images' padding to its output: ``whole_map`` or ``valid_cells``."""


def whole_map(
    projection: nn.Module, x: Float[Tensor, "B _ _ _"], padding: Bool[Tensor, "B H W"]
) -> Float[Tensor, "B C _ _"]:
    """The projection of the whole map, padding included, as in the authors' code."""
    return projection(x)


def valid_inputs(
    projection: nn.Module, x: Float[Tensor, "B _ _ _"], padding: Bool[Tensor, "B H W"]
) -> Float[Tensor, "B C _ _"]:
    """The projection of the map with zeros where padded: convolutions without normalization that exclude padding."""
    return projection(x.masked_fill(padding_at(padding, (x.shape[-2], x.shape[-1]))[:, None], 0.0))


def valid_cells(
    projection: nn.Module, x: Float[Tensor, "B _ _ _"], padding: Bool[Tensor, "B H W"]
) -> Float[Tensor, "B C _ _"]:
    """The same of the cells that are not padding, which is zero for the convolution and not part of the statistics.

    Args:
        projection: a convolution, then GroupNorm, for example of ``normalized_projection``.
        x: feature map.
        padding: of the images.
    """
    convolution, norm = projection.children()
    y = valid_inputs(convolution, x, padding)
    return valid_group_norm(norm, y, padding_at(padding, (y.shape[-2], y.shape[-1])))


def valid_group_norm(
    norm: nn.Module, x: Float[Tensor, "B C h w"], padding: Bool[Tensor, "B h w"]
) -> Float[Tensor, "B C h w"]:
    """``norm``, a ``GroupNorm``, with statistics of the cells that are not padding; in float32 or higher precision."""
    assert isinstance(norm, nn.GroupNorm)
    groups = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (norm.num_groups, -1))  # (B, G, C/G, h, w)
    mask = padding[:, None, None]
    count = (~mask).sum((3, 4), keepdim=True) * groups.shape[2]  # (B, 1, 1, 1, 1)
    centered = groups - groups.masked_fill(mask, 0.0).sum((2, 3, 4), keepdim=True) / count
    variance = centered.masked_fill(mask, 0.0).square().sum((2, 3, 4), keepdim=True) / count
    normalized = (centered * (variance + norm.eps).rsqrt()).flatten(1, 2)
    return torch.addcmul(norm.bias[:, None, None], normalized, norm.weight[:, None, None]).to(norm.weight.dtype)


class ChannelMapper(nn.Module):
    """A 1x1 projection per backbone level; extra levels by strided 3x3 ones (Deformable DETR, A.1).

    The input of the first extra level is the backbone's last map, not its projection.

    Args:
        in_channels: of each map of the backbone.
        dim: embedding dimension of all levels.
        num_levels: of the pyramid.
        projection: ``plain_projection`` or ``normalized_projection``.
        apply: ``whole_map`` or, with ``normalized_projection``, ``valid_cells``.
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        dim: int,
        num_levels: int,
        projection: Projection,
        apply: Application = whole_map,
    ) -> None:
        super().__init__()
        self.apply_projection = apply
        self.projections = nn.ModuleList(projection(channels, dim, 1) for channels in in_channels)
        self.downsamples = downsamples(in_channels, dim, num_levels, projection)

    def forward(
        self, features: list[Float[Tensor, "B _ _ _"]], padding: Bool[Tensor, "B H W"]
    ) -> list[Float[Tensor, "B C _ _"]]:
        maps = [
            self.apply_projection(projection, feature, padding)
            for projection, feature in zip(self.projections, features, strict=True)
        ]
        return maps + further_levels(self.downsamples, features[-1], padding, self.apply_projection)


def downsamples(in_channels: tuple[int, ...], dim: int, num_levels: int, projection: Projection) -> nn.ModuleList:
    """Strided projections for the levels beyond those of the backbone, the first of the backbone's last map."""
    inputs = [in_channels[-1], *[dim] * num_levels][: num_levels - len(in_channels)]
    return nn.ModuleList(projection(channels, dim, 3) for channels in inputs)


def further_levels(
    projections: nn.ModuleList, last: Float[Tensor, "B _ _ _"], padding: Bool[Tensor, "B H W"], apply: Application
) -> list[Float[Tensor, "B C _ _"]]:
    """The levels beyond those of the backbone, each from the one before.

    Args:
        projections: of ``downsamples``.
        last: the backbone's last map.
        padding: of the images.
        apply: as in ``ChannelMapper``.
    """
    maps = []
    for projection in projections:
        last = apply(projection, last, padding)
        maps.append(last)
    return maps


def plain_projection(in_channels: int, dim: int, kernel: int) -> nn.Conv2d:
    """Convolution (stride 2 when 3x3), initialized as PyTorch does (DETR)."""
    return nn.Conv2d(in_channels, dim, kernel, stride=kernel // 2 + 1, padding=kernel // 2)


def normalized_projection(in_channels: int, dim: int, kernel: int) -> nn.Sequential:
    """The same with Xavier-uniform weight, followed by GroupNorm with 32 groups (Deformable DETR)."""
    convolution = plain_projection(in_channels, dim, kernel)
    nn.init.xavier_uniform_(convolution.weight)
    nn.init.zeros_(convolution.get_parameter("bias"))
    return nn.Sequential(convolution, nn.GroupNorm(32, dim))


APPLICATIONS: dict[NeckNorm, Application] = {"group": whole_map, "group-masked": valid_cells}


class LevelEmbedding(nn.Module):
    """Adds a learned vector per level to the position embeddings (Deformable DETR, 4.1)."""

    def __init__(self, num_levels: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_levels, dim))

    def forward(self, positions: list[Float[Tensor, "B _ _ C"]]) -> list[Float[Tensor, "B _ _ C"]]:
        return [position + level for position, level in zip(positions, self.weight, strict=True)]


class PyramidNeck(nn.Module):
    """Projects maps to one width, embeds positions and flattens all levels into one sequence.

    Args:
        mapper: maps of the backbone to one map of the same width per level.
        position: a level's padding (B, H, W) to the position embedding of each cell, for example ``SinePosition``.
        level_embedding: position embeddings of all levels to those with a level embedding; by default the identity.
    """

    def __init__(self, mapper: nn.Module, position: nn.Module, level_embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.mapper = mapper
        self.position = position
        self.level_embedding = level_embedding or nn.Identity()

    def forward(self, features: list[Float[Tensor, "B _ _ _"]], padding: Bool[Tensor, "B H W"]) -> Pyramid:
        check_padding(padding)
        maps = self.mapper(features, padding)
        paddings = [padding_at(padding, level.shape[-2:]) for level in maps]
        dtype = next(self.mapper.parameters()).dtype  # of the weights: float32 within autocast, too
        positions = self.level_embedding([self.position(mask).to(dtype) for mask in paddings])
        shapes: Shapes = tuple((level.shape[-2], level.shape[-1]) for level in maps)
        valid = torch.stack([valid_size(mask) for mask in paddings], dim=1)  # (B, L, 2)
        return Pyramid(
            tokens=torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1),
            position=for_linear_layers(torch.cat([position.flatten(1, 2) for position in positions], dim=1)),
            reference_points=centers(shapes, valid),
            padding=torch.cat([mask.flatten(1) for mask in paddings], dim=1),
            shapes=shapes,
            valid_ratio=valid / level_sizes(shapes, valid),
            image_sizes=valid_size(padding).flip(1).long(),
        )


def check_padding(padding: Bool[Tensor, "B H W"]) -> None:
    """Raise ``UserError`` if padding is not right and bottom only, since all but the first row and column is ignored.

    On the CPU in eager mode: elsewhere, the answer would stop the program until the device has computed it, or is not
    part of the program.
    """
    if padding.device.type != "cpu" or not backend.are_plain(padding):
        return
    rows, columns = padding[:, :, 0], padding[:, 0]  # (B, H), (B, W)
    increases = (rows[:, :-1] <= rows[:, 1:]).all(1) & (columns[:, :-1] <= columns[:, 1:]).all(1)
    fits = increases & ((rows[:, :, None] | columns[:, None]) == padding).flatten(1).all(1)
    if not fits.all():
        raise UserError(
            f"padding: expected True on the right and at the bottom of each image only, got other padding of image "
            f"{fits.tolist().index(False)} of the batch. Move its pixels to the upper left corner."
        )


def padding_at(padding: Bool[Tensor, "B H W"], size: tuple[int, int]) -> Bool[Tensor, "B h w"]:
    """The padding mask at a level's size: nearest neighbor of the full-resolution mask, which is right and bottom only.

    Of its first column and of its first row, because all others follow from them.
    """
    rows = F.interpolate(padding[:, None, :, 0].float(), size=size[0], mode="nearest")  # (B, 1, h)
    columns = F.interpolate(padding[:, None, 0].float(), size=size[1], mode="nearest")  # (B, 1, w)
    return rows.bool().mT | columns.bool()


def valid_size(padding: Bool[Tensor, "B h w"]) -> Float[Tensor, "B 2"]:
    """Number of columns and rows that are not padding, (x, y); padding is right and bottom only."""
    return torch.stack([(~padding[:, 0, :]).float().sum(1), (~padding[:, :, 0]).float().sum(1)], dim=-1)


def level_sizes(shapes: Shapes, like: Tensor) -> Float[Tensor, "L 2"]:
    """(width, height) of each level as a tensor; exported programs keep sizes that are symbols."""
    sides = [like.new_full((), side) for h, w in shapes for side in (w, h)]
    return torch.stack(sides).view(-1, 2)


def centers(shapes: Shapes, valid: Float[Tensor, "B L 2"]) -> Float[Tensor, "B S 2"]:
    """(x, y) of every token's center, in [0, 1] of the un-padded image.

    Divided by the count of valid cells, not by their fraction of the map: the last bit decides which proposals lie
    inside the image (0.5 / 50 is 0.01), and must not depend on padding.
    """
    levels = []
    for level, (h, w) in enumerate(shapes):
        y, x = torch.meshgrid(
            torch.arange(h, device=valid.device, dtype=valid.dtype) + 0.5,
            torch.arange(w, device=valid.device, dtype=valid.dtype) + 0.5,
            indexing="ij",
        )
        cells = torch.stack([x.flatten(), y.flatten()], dim=-1)  # (h*w, 2)
        levels.append(cells[None] / valid[:, None, level])
    return torch.cat(levels, dim=1)
