"""Bipartite matching of queries and objects (DETR, Eq. 1)."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from detrs.boxes import cxcywh_to_xyxy, generalized_iou
from detrs.classification import ClassLogits
from detrs.config.criterion import BoxCoordinates
from detrs.criterion.losses import COORDINATES

DENSE = 1000
"""Number of queries above which an assignment is solved with a part of them; see ``block``."""


class Costs(NamedTuple):
    """The terms of the matching cost: the classification, which has its own weight, and weights and coordinates of the
    boxes."""

    classes: ClassLogits
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
    classes = costs.classes.cost(logits, labels)  # (Y, Q, N)
    of = COORDINATES[costs.box_coordinates]
    distance = torch.cdist(of(boxes.float()), of(target_boxes).expand(len(boxes), -1, -1), p=1.0)
    overlap = generalized_iou(cxcywh_to_xyxy(boxes.float())[..., None, :], cxcywh_to_xyxy(target_boxes))
    return costs.classes.cost_weight * classes + costs.box_weight * distance - costs.giou_weight * overlap


class Block(NamedTuple):
    """What the assignment of one image needs of its matrix of costs."""

    cost: Float[Tensor, "Y R N"]
    query: Int[Tensor, "Y R"] | None
    """Query of each row; the same can occur several times. ``None``: row r is query r."""


def block(cost: Float[Tensor, "Y Q N"]) -> Block:
    """The rows that can be part of a cheapest assignment: for many queries, the N cheapest of each of the N objects.

    One of the N cheapest queries of an object is always free, since the other objects have N - 1, so exchanging a
    query that is not among them for the free one never raises the total. Of queries with equal cost, any can be chosen.
    """
    num_queries, num_objects = cost.shape[1:]
    if num_queries <= DENSE or num_objects**2 >= num_queries:
        return Block(cost, None)
    cost = torch.nan_to_num(cost, nan=1e30, posinf=1e30, neginf=1e30)  # as in match
    query = cost.topk(num_objects, dim=1, largest=False, sorted=False).indices.flatten(1)  # (Y, N*N)
    return Block(cost.gather(1, query[..., None].expand(-1, -1, num_objects)), query)


def match(costs: Iterable[Iterable[Float[Tensor, "_ _ _"]]]) -> list[Matches]:
    """Solve one assignment per layer and image.

    All costs that are needed are copied to the host at once. A cost that is not finite (a diverging model) is replaced
    by a large finite one, so that matching succeeds and the loss shows the divergence.

    Args:
        costs: per group of predictions (decoder layers, proposals) one (Y, Q, N) for each image. With iterators, only
            one complete matrix exists at a time if Q is large.
    """
    groups = [[block(cost) for cost in group] for group in costs]
    compact = [part for group in groups for part in group]
    host = torch.cat([part.cost.flatten() for part in compact]).cpu().numpy()
    host = np.nan_to_num(host, nan=1e30, posinf=1e30, neginf=1e30)  # -inf would be preferred to all others
    blocks = iter(np.split(host, np.cumsum([part.cost.numel() for part in compact])[:-1]))
    rows = iter(names_of_rows(compact))
    matches = []
    for group in groups:
        columns: list[list[np.ndarray]] = [[], [], [], []]
        for image, part in enumerate(group):
            for layer, matrix in enumerate(next(blocks).reshape(part.cost.shape)):
                query, target = assign(matrix, None if part.query is None else next(rows))
                for column, values in zip(
                    columns, (np.full(len(query), layer), np.full(len(query), image), query, target), strict=True
                ):
                    column.append(values)
        indices = torch.from_numpy(np.stack([np.concatenate(column) for column in columns])).to(compact[0].cost.device)
        matches.append(Matches(*indices.unbind(0)))
    return matches


def names_of_rows(blocks: list[Block]) -> list[np.ndarray]:
    """Queries of the rows of each layer of the blocks that have a part of them, all copied to the host at once."""
    queries = [layer for part in blocks if part.query is not None for layer in part.query]
    if not queries:
        return []
    host = torch.cat(queries).cpu().numpy()
    return np.split(host, np.cumsum([len(query) for query in queries])[:-1])


def assign(cost: np.ndarray, query: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Query and target of each pair of the cheapest assignment; ``query`` names the rows, by default their number."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and not needed for predictions

    if query is None:
        return linear_sum_assignment(cost)
    names, first = np.unique(query, return_index=True)
    rows, targets = linear_sum_assignment(cost[first])
    return names[rows], targets
