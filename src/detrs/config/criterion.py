"""Settings of the set criterion."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

BoxCoordinates = Literal["cxcywh", "xyxy"]
"""Coordinates of the L1 distance of boxes."""


@dataclass(frozen=True, kw_only=True)
class CriterionConfig:
    """Weights of the box terms, in the matching and in the loss (DETR, A.4).

    The weight of the classification term is ``model.classification.weight``.
    """

    box_weight: Annotated[float, Ge(0)] = 5.0
    """Weight of the L1 distance of normalized boxes."""
    box_coordinates: BoxCoordinates = "cxcywh"
    """Coordinates of the L1 distance. ``cxcywh``: center and size. ``xyxy``: corners (Sparse R-CNN)."""
    giou_weight: Annotated[float, Ge(0)] = 2.0
    """Weight of 1 - GIoU."""
    auxiliary: bool = True
    """Supervise every decoder layer, not only the last."""
