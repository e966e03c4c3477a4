"""Multi-scale deformable attention in plain PyTorch: the definition, the oracle of the tests, and what is exported."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Deformable DETR (arXiv 2010.04159), Eq. 3 without its projections.

    ``out[n, q, m] = sum over l, p of weights[n, q, m, l, p] * bilinear(value of level l, locations[n, q, m, l, p])``

    Args:
        value: (B, S, M, D), the tokens of all levels.
        shapes: (height, width) of each level.
        locations: (B, Q, M, L, P, 2) as (x, y); 0 and 1 are the outer edges of a level's first and last pixel. There is
            nothing beyond the edges but zeros, and a location that is NaN lies outside.
        weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M*D)
    """
    batch, _, heads, channels = value.shape
    queries, num_levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    # Two widths beyond the level nothing changes any more; grid_sample answers NaN to what is not finite.
    grids = 2 * locations.nan_to_num(nan=-2.0).clamp(-2.0, 3.0) - 1
    weights = weights.permute(0, 2, 1, 3, 4).reshape(batch * heads, 1, queries, num_levels * points)
    sampled = []
    for level, tokens in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        image = tokens.permute(0, 2, 3, 1).reshape(batch * heads, channels, *shapes[level])  # (B*M, D, h, w)
        grid = grids[:, :, :, level].transpose(1, 2).reshape(batch * heads, queries, points, 2)
        sampled.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    out = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # (B*M, D, Q)
    return out.reshape(batch, heads * channels, queries).transpose(1, 2)
