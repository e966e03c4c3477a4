"""Boxes: conversions, overlap, and box coders, which turn the raw output of a head into boxes."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_SIDE = 1e-3
"""Smallest coordinate of a reference box in DAB-DETR and DINO: a pixel in an image of 1000."""


def cxcywh_to_xyxy(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """(cx, cy, w, h) to (x1, y1, x2, y2), same unit."""
    center, size = boxes.split(2, dim=-1)
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """(x1, y1, x2, y2) to (cx, cy, w, h), same unit."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def intersection_and_union(
    a_xyxy: Float[Tensor, "... 4"], b_xyxy: Float[Tensor, "... 4"]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Areas of boxes that broadcast against each other."""
    area_a = (a_xyxy[..., 2:] - a_xyxy[..., :2]).prod(-1)
    area_b = (b_xyxy[..., 2:] - b_xyxy[..., :2]).prod(-1)
    low, high = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2]), torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    return overlap, area_a + area_b - overlap


def iou(a_xyxy: Float[Tensor, "... 4"], b_xyxy: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """IoU of boxes that broadcast against each other, in [0, 1]; 0 where both have no area."""
    overlap, union = intersection_and_union(a_xyxy, b_xyxy)
    return torch.where(union > 0, overlap / union, 0.0)


def generalized_iou(a_xyxy: Float[Tensor, "... 4"], b_xyxy: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """Generalized IoU (Rezatofighi et al. 2019) of boxes that broadcast against each other, in [-1, 1].

    ``generalized_iou(a[:, None], b[None])`` is the matrix of all pairs. No epsilon: two boxes without area give NaN,
    as in the official repositories.
    """
    overlap, union = intersection_and_union(a_xyxy, b_xyxy)
    hull_low, hull_high = (
        torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2]),
        torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:]),
    )
    hull = (hull_high - hull_low).prod(-1)
    return overlap / union - (hull - union) / hull


def inverse_sigmoid(x: Float[Tensor, "..."], eps: float = 1e-5) -> Float[Tensor, "..."]:
    """log(x / (1 - x)) with both clamped to at least ``eps``: finite on all of [0, 1]."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def absolute(raw: Float[Tensor, "... 4"], reference: Float[Tensor, "... 0"]) -> Float[Tensor, "... 4"]:
    """The box itself, without a reference (DETR)."""
    return raw.sigmoid()


def offset_from_point(raw: Float[Tensor, "... 4"], point: Float[Tensor, "... 2"]) -> Float[Tensor, "... 4"]:
    """A box relative to a reference point: ``raw`` is the offset of the center, and the size, in logit space."""
    center, size = raw.split(2, dim=-1)
    return torch.cat([center + inverse_sigmoid(point), size], dim=-1).sigmoid()


def offset_from_box(
    raw: Float[Tensor, "... 4"], box: Float[Tensor, "... 4"], eps: float = 1e-5
) -> Float[Tensor, "... 4"]:
    """A box relative to a reference box: ``raw`` is the difference in logit space (Deformable DETR, A.2).

    A smaller coordinate of the reference than ``eps`` counts as ``eps``.
    """
    return (raw + inverse_sigmoid(box, eps)).sigmoid()


LARGEST_SCALE = math.log(100_000 / 16)
"""Limit of the change of a side in ``scaled_from_box``, as a logarithm."""


def scaled_from_box(raw: Float[Tensor, "... 4"], box: Float[Tensor, "... 4"]) -> Float[Tensor, "... 4"]:
    """A box relative to a reference box, as in R-CNN: ``raw`` is twice the shift of the center in units of the box's
    sides, and the logarithm of the change of the sides (Sparse R-CNN). Boxes may leave [0, 1]."""
    (shift, scale), (center, size) = raw.split(2, dim=-1), box.split(2, dim=-1)
    return torch.cat([center + shift / 2 * size, size * scale.clamp(max=LARGEST_SCALE).exp()], dim=-1)
