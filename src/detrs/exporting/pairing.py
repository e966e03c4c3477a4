"""Pairs of equal detections in two lists for the same image."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrs.exporting.limits import Limits
from detrs.structures import Detections


class Pairs(NamedTuple):
    """Detections that agree: of the same class, with boxes and scores within the limits; each is in one pair."""

    is_paired: Tensor
    """(N,) bool, of each expected detection."""
    box_differences: Tensor
    """(A,) largest difference of a coordinate of each pair, relative to the image."""
    score_differences: Tensor
    """(A,)"""


def pair(expected: Detections, found: Detections, limits: Limits, clips: bool = False) -> Pairs:
    """As many pairs of detections that agree as possible, and among those the nearest ones.

    Args:
        expected: not clipped to the image. Boxes that extend far beyond it have larger rounding errors.
        found: boxes that are not finite agree with none.
        limits: of the differences.
        clips: compare boxes clipped to the image.
    """
    height, width = expected.image_size
    scale = torch.tensor([width, height, width, height], dtype=torch.float64)
    size = (expected.boxes_xyxy.double() / scale).abs().amax(-1).clamp(min=1.0)  # (N,)
    if clips:
        expected, found = expected.clipped(), found.clipped()
    one, other = expected.boxes_xyxy.double() / scale, found.boxes_xyxy.double() / scale  # (N, 4), (n, 4)
    boxes = (one[:, None] - other[None]).abs().amax(-1) / size[:, None]  # (N, n)
    scores = (expected.scores.double()[:, None] - found.scores.double()[None]).abs()
    agree = (expected.labels[:, None] == found.labels[None]) & (boxes <= limits.box) & (scores <= limits.score)
    # In [0, 2] where they agree: a single pair more outweighs any difference of all the others.
    cost = boxes / limits.box + scores / limits.score
    cost = torch.where(agree, cost, torch.tensor(4.0 * (1 + min(agree.shape)), dtype=torch.float64))
    rows, columns = (torch.from_numpy(np.asarray(each)) for each in linear_sum_assignment(cost.numpy()))
    real = agree[rows, columns]
    rows, columns = rows[real], columns[real]
    is_paired = torch.zeros(len(expected), dtype=torch.bool)
    is_paired[rows] = True
    return Pairs(is_paired, boxes[rows, columns], scores[rows, columns])
