"""Bipartite matching of queries and objects (DETR, Eq. 1)."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrs.boxes import cxcywh_to_xyxy, generalized_iou
from detrs.classification import Classification
from detrs.criterion.losses import COORDINATES, BoxCoordinates


class Costs(NamedTuple):
    """The terms of the matching cost: the classification, which has its own weight, and weights and coordinates of the
    boxes."""

    classification: Classification
    box_weight: float
    giou_weight: float
    box_coordinates: BoxCoordinates = "cxcywh"


class Matches(NamedTuple):
    """Matched pairs over all layers and images, as parallel index vectors of length N."""

    layer: Int[Tensor, "N"]
    image: Int[Tensor, "N"]
    query: Int[Tensor, "N"]
    target: Int[Tensor, "N"]
    """Index within the image's own targets."""


@torch.no_grad()
def pairwise_cost(
    logits: Float[Tensor, "Y Q K"],
    boxes: Float[Tensor, "Y Q 4"],
    labels: Int[Tensor, "N"],
    target_boxes: Float[Tensor, "N 4"],
    costs: Costs,
) -> Float[Tensor, "Y Q N"]:
    """Cost of every pair of query and object of one image, for all layers at once.

    The weighted sum of the class cost, L1 of normalized boxes and negative GIoU (DETR, Eq. 1 and A.2).
    """
    classes = costs.classification.cost(logits, labels)  # (Y, Q, N)
    of = COORDINATES[costs.box_coordinates]
    distance = torch.cdist(of(boxes.float()), of(target_boxes).expand(len(boxes), -1, -1), p=1.0)
    overlap = generalized_iou(cxcywh_to_xyxy(boxes.float())[..., None, :], cxcywh_to_xyxy(target_boxes))
    return costs.classification.weight * classes + costs.box_weight * distance - costs.giou_weight * overlap


def match(costs: list[list[Float[Tensor, "_ _ _"]]]) -> list[Matches]:
    """Solve one assignment per layer and image.

    All cost blocks are copied to the host at once. A cost that is not finite (a diverging model) is replaced by a large
    finite one, so that matching succeeds and the loss shows the divergence.

    Args:
        costs: per group of predictions (decoder layers, proposals) one (Y, Q, N) for each image.
    """
    device = costs[0][0].device
    compact = [cost for group in costs for cost in group]
    host = torch.cat([block.flatten() for block in compact]).cpu().numpy()
    host = np.nan_to_num(host, nan=1e30, posinf=1e30, neginf=1e30)  # -inf would be preferred to all others
    blocks = iter(np.split(host, np.cumsum([block.numel() for block in compact])[:-1]))
    matches = []
    for group in costs:
        columns: list[list[np.ndarray]] = [[], [], [], []]
        for image, cost in enumerate(group):
            for layer, block in enumerate(next(blocks).reshape(cost.shape)):
                query, target = linear_sum_assignment(block)
                for column, values in zip(
                    columns, (np.full(len(query), layer), np.full(len(query), image), query, target), strict=True
                ):
                    column.append(values)
        indices = torch.from_numpy(np.stack([np.concatenate(column) for column in columns])).to(device)
        matches.append(Matches(*indices.unbind(0)))
    return matches
