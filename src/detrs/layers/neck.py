"""The neck: feature maps of any widths become one pyramid of tokens of one width."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.layers.position import SinePosition
from detrs.structures import Pyramid, Shapes


class ChannelMapper(nn.Module):
    """A 1x1 convolution and GroupNorm per backbone level; further levels by strided 3x3 convolutions (A.1).

    The first further level reads the backbone's last map, not its projection.
    """

    def __init__(self, in_channels: tuple[int, ...], dim: int, num_levels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(projection(channels, dim, kernel=1) for channels in in_channels)
        further = [in_channels[-1], *[dim] * num_levels][: num_levels - len(in_channels)]
        self.downsamples = nn.ModuleList(projection(channels, dim, kernel=3) for channels in further)

    def forward(self, features: list[Float[Tensor, "B _ _ _"]]) -> list[Float[Tensor, "B C _ _"]]:
        maps = [project(feature) for project, feature in zip(self.projections, features, strict=True)]
        coarsest = features[-1]
        for downsample in self.downsamples:
            coarsest = downsample(coarsest)
            maps.append(coarsest)
        return maps


def projection(in_channels: int, dim: int, kernel: int) -> nn.Sequential:
    """Convolution (stride 2 when 3x3) and GroupNorm with 32 groups."""
    convolution = nn.Conv2d(in_channels, dim, kernel, stride=kernel // 2 + 1, padding=kernel // 2)
    nn.init.xavier_uniform_(convolution.weight)
    nn.init.zeros_(convolution.get_parameter("bias"))
    return nn.Sequential(convolution, nn.GroupNorm(32, dim))


class PyramidNeck(nn.Module):
    """Maps to one width, embeds positions and levels, and lays all levels out as one sequence."""

    def __init__(self, mapper: nn.Module, position: SinePosition, dim: int, num_levels: int) -> None:
        super().__init__()
        self.mapper = mapper
        self.position = position
        self.level_embedding = nn.Parameter(torch.randn(num_levels, dim))

    def forward(self, features: list[Float[Tensor, "B _ _ _"]], padding: Bool[Tensor, "B H W"]) -> Pyramid:
        maps = self.mapper(features)
        paddings = [padding_at(padding, level.shape[-2:]) for level in maps]
        positions = [
            self.position(mask).to(embedding.dtype) + embedding
            for mask, embedding in zip(paddings, self.level_embedding, strict=True)
        ]
        shapes: Shapes = tuple((level.shape[-2], level.shape[-1]) for level in maps)
        valid = torch.stack([valid_size(mask) for mask in paddings], dim=1)  # (B, L, 2)
        return Pyramid(
            tokens=torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1),
            position=torch.cat([position.flatten(1, 2) for position in positions], dim=1),
            reference=centers(shapes, valid),
            padding=torch.cat([mask.flatten(1) for mask in paddings], dim=1),
            shapes=shapes,
            valid_ratio=valid / valid.new_tensor([(w, h) for h, w in shapes]),
        )


def padding_at(padding: Bool[Tensor, "B H W"], size: tuple[int, int]) -> Bool[Tensor, "B h w"]:
    """The padding mask at a level's size: nearest neighbour of the full-resolution mask."""
    return F.interpolate(padding[None].float(), size=size, mode="nearest")[0].bool()


def valid_size(padding: Bool[Tensor, "B h w"]) -> Float[Tensor, "B 2"]:
    """How many columns and rows of a level are image, (x, y); padding is right and bottom only."""
    return torch.stack([(~padding[:, 0, :]).float().sum(1), (~padding[:, :, 0]).float().sum(1)], dim=-1)


def centers(shapes: Shapes, valid: Float[Tensor, "B L 2"]) -> Float[Tensor, "B S 2"]:
    """(x, y) of every token's centre, in [0, 1] of the un-padded image.

    Divided by the count of valid cells itself, not by their share of the map: the last bit decides which proposals lie
    inside the image (0.5 / 50 is 0.01), and padding must not.
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
