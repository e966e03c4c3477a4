"""The inputs of the kernels as one value."""

from typing import NamedTuple

from torch import Tensor

from detrs.structures import Shapes


class Inputs(NamedTuple):
    """Arguments of multi-scale deformable attention, in its plain and in its fused form.

    Without ``reference_points``, locations and weights are used as they are. With them, ``locations`` are sampling
    offsets and ``weights`` are logits.
    """

    value: Tensor
    """(B, S, M, D)"""
    shapes: Shapes
    """(height, width) of each of the L levels."""
    points: tuple[int, ...]
    """Number of points on each level. The sum is K."""
    locations: Tensor
    """(B, Q, M, K, 2), level after level; float64 if ``value`` is and float32 otherwise, like all that follow."""
    weights: Tensor
    """(B, Q, M, K)"""
    reference_points: Tensor | None
    """(B, Q, L, 2) points or (B, Q, L, 4) boxes; ``None`` for the plain form."""
    padding: Tensor | None
    """(B, S) bool, True for tokens that count as zero."""

    @property
    def sizes(self) -> list[int]:
        """``shapes`` as PyTorch operators take it: (h, w, h, w, ...)."""
        return [size for shape in self.shapes for size in shape]

    @property
    def reference_dim(self) -> int:
        """0 without reference points, 2 for points, 4 for boxes."""
        return 0 if self.reference_points is None else self.reference_points.shape[3]


Needs = tuple[bool, bool, bool, bool]
"""Whether the gradients of value, locations, weights and reference points are needed."""

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]
"""Gradients of value, locations, weights and reference points; without elements where not needed."""
