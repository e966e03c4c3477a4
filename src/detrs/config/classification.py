"""Settings of classification: what class logits mean; ``detrs.classification`` computes with them."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le


@dataclass(frozen=True, kw_only=True)
class Focal:
    """One sigmoid per class, trained with the focal loss (Lin et al. 2017)."""

    weight: Annotated[float, Ge(0)] = 2.0
    """Weight of the classification term, in the matching and in the loss (Deformable DETR, A.4)."""
    cost_weight: Annotated[float, Ge(0)] | None = None
    """Weight in the matching, if it differs (DAB-DETR and DINO: 2, and 1 in the loss)."""
    alpha: Annotated[float, Ge(0), Le(1)] = 0.25
    """Weight of the positive class in the focal loss."""
    gamma: Annotated[float, Ge(0)] = 2.0
    """Focusing exponent of the focal loss."""


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """One distribution over the classes and, last, "no object", trained with cross entropy (DETR, 3.1)."""

    weight: Annotated[float, Ge(0)] = 1.0
    """Weight of the classification term, in the matching and in the loss."""
    no_object_weight: Annotated[float, Gt(0), Le(1)] = 0.1
    """Weight of unmatched queries, the large majority, in the cross entropy."""


Classification = Focal | Softmax
