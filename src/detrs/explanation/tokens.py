"""Which tokens of the encoder a view contains: a regular grid of each level."""

import torch
from torch import Tensor

from detrs.structures import Shapes


def grid_tokens(shapes: Shapes, limit: int) -> tuple[Tensor, Shapes]:
    """Indices (Q,) of tokens, in the order of ``Pyramid``, and (height, width) of the grid that those of a level form.

    Args:
        shapes: (height, width) of each level in cells.
        limit: largest number of tokens of a level.
    """
    indices, grids, start = [], [], 0
    for height, width in shapes:
        rows, columns = grid = fitting_grid((height, width), limit)
        indices.append(start + (spread(height, rows)[:, None] * width + spread(width, columns)).flatten())
        grids.append(grid)
        start += height * width
    return torch.cat(indices), tuple(grids)


def fitting_grid(shape: tuple[int, int], limit: int) -> tuple[int, int]:
    """(height, width) of the finest grid with at most ``limit`` cells and about the proportions of ``shape``."""
    height, width = shape
    if height * width <= limit:
        return shape
    columns = min(max(round(width * (limit / (height * width)) ** 0.5), 1), limit, width)
    return min(limit // columns, height), columns


def spread(cells: int, count: int) -> Tensor:
    """``count`` of ``cells`` indices at equal distances: the middle one of each of ``count`` equal parts."""
    return ((torch.arange(count) + 0.5) * (cells / count)).floor().long()
