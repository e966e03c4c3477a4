"""Multi-scale deformable attention in plain PyTorch: the definition, which tests compare with and exports contain."""

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from detrs.ops.ms_deform_attn.inputs import Inputs

Sample = Callable[[Tensor, Tensor], Tensor]
"""Samples maps (N, D, h, w) at locations (N, Q, P, 2), and returns (N, D, Q, P)."""


def extents(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(width, height) of each level, (L, 2). Sizes that are dynamic in an exported program remain dynamic.

    ``torch.tensor`` and ``new_tensor`` would store the sizes of the sample input in the program.
    """
    return torch.stack([like.new_full((), size) for h, w in shapes for size in (w, h)]).view(-1, 2)


def by_grid_sample(image: Tensor, locations: Tensor) -> Tensor:
    """PyTorch's own bilinear sampling."""
    return F.grid_sample(image, 2 * locations - 1, mode="bilinear", padding_mode="zeros", align_corners=False)


def by_gather(image: Tensor, locations: Tensor) -> Tensor:
    """The same with gathers and products, for runtimes in which GridSample is missing or wrong (TensorRT)."""
    number, channels, height, width = image.shape
    queries, points = locations.shape[1:3]
    pixels = image.flatten(2)  # (N, D, h*w)
    x, y = (locations * extents([(height, width)], locations) - 0.5).unbind(-1)  # (N, Q, P)
    left, top = x.floor(), y.floor()
    out = image.new_zeros(number, channels, queries, points)
    # Distances without abs(), whose derivative is 0 on pixel centers; there, the derivative is that to the right.
    columns, rows = ((left, x - left), (left + 1, left + 1 - x)), ((top, y - top), (top + 1, top + 1 - y))
    for (row, dy), (column, dx) in itertools.product(rows, columns):
        in_bounds = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        weight = (1 - dx) * (1 - dy) * in_bounds
        index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()  # (N, Q, P)
        pixel = pixels.gather(2, index.reshape(number, 1, queries * points).expand(-1, channels, -1))
        out = out + pixel.unflatten(2, (queries, points)) * weight[:, None]
    return out


def ms_deform_attn(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    points: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    sample: Sample = by_grid_sample,
) -> Tensor:
    """Deformable DETR (arXiv 2010.04159), Eq. 3 without its projections.

    ``out[n, q, m] = sum over k of weights[n, q, m, k] * bilinear(value on the level of k, locations[n, q, m, k])``

    Args:
        value: (B, S, M, D), the tokens of all levels.
        shapes: (height, width) of each level.
        points: Number of points on each level; the sum is K. Points are ordered by level.
        locations: (B, Q, M, K, 2) as (x, y); 0 and 1 are the outer edges of a level's first and last pixel. Values are
            zero outside the level, and NaN is outside.
        weights: (B, Q, M, K).
        sample: Samples one level.

    Returns:
        (B, Q, M*D)
    """
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    # Beyond two widths outside the level all samples are equal; grid_sample returns NaN for infinite locations.
    locations = locations.nan_to_num(nan=-2.0).clamp(-2.0, 3.0).transpose(1, 2).flatten(0, 1)  # (B*M, Q, K, 2)
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (B*M, 1, Q, K)
    levels = value.split([h * w for h, w in shapes], dim=1)
    sampled = []
    for tokens, (h, w), on_level in zip(levels, shapes, locations.split(list(points), dim=2), strict=True):
        image = tokens.permute(0, 2, 3, 1).reshape(batch * heads, channels, h, w)
        sampled.append(sample(image, on_level))
    out = (torch.cat(sampled, dim=-1) * weights).sum(-1)  # (B*M, D, Q)
    return out.reshape(batch, heads * channels, queries).transpose(1, 2)


def compute(inputs: Inputs, sample: Sample = by_grid_sample) -> Tensor:
    """Multi-scale deformable attention in its plain or its fused form, in the dtype of the locations."""
    value, shapes, points, locations, weights, reference_points, padding = inputs
    value = value.to(locations.dtype)
    if padding is not None:
        value = value.masked_fill(padding[..., None, None], 0)
    if reference_points is not None:
        locations, weights = samples(locations, weights, reference_points, shapes, points)
    return ms_deform_attn(value, shapes, points, locations, weights, sample)


def samples(
    offsets: Tensor,
    logits: Tensor,
    reference_points: Tensor,
    shapes: Sequence[tuple[int, int]],
    points: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Locations and weights of the plain form from the inputs of the fused form.

    Args:
        offsets: (B, Q, M, K, 2), as in ``locate``.
        logits: (B, Q, M, K).
        reference_points: (B, Q, L, 2 or 4).
        shapes: (height, width) of each level.
        points: Number of points on each level.

    Returns:
        Sampling locations (B, Q, M, K, 2), relative to each level, and attention weights (B, Q, M, K).
    """
    return locate(offsets, reference_points, shapes, points), logits.softmax(-1)


def locate(
    offsets: Tensor, reference_points: Tensor, shapes: Sequence[tuple[int, int]], points: Sequence[int]
) -> Tensor:
    """Sampling locations from sampling offsets (Deformable DETR, Eq. 3 and A.2).

    Args:
        offsets: (B, Q, M, K, 2). Around a point, in pixels of the level; around a box, scaled by box size / (2P), where
            P is the number of points on the level: the outermost of the initial points lie on the edge of the box.
        reference_points: (B, Q, L, 2) points (x, y) or (B, Q, L, 4) boxes (cx, cy, w, h), relative to each level.
        shapes: (height, width) of each level.
        points: Number of points on each level.

    Returns:
        (B, Q, M, K, 2), relative to each level.
    """
    if reference_points.shape[-1] == 2:
        scale = 1 / extents(shapes, reference_points)  # (L, 2)
    else:
        half = reference_points.new_tensor([0.5 / max(count, 1) for count in points])  # a level may have no points
        scale = reference_points[..., 2:] * half[:, None]  # (B, Q, L, 2)
    level = [level for level, count in enumerate(points) for _ in range(count)]  # of each of the K points
    scale = scale.expand(*reference_points.shape[:3], 2)[:, :, None, level]
    return reference_points[:, :, None, level, :2] + offsets * scale
