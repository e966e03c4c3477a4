"""Deliberately wrong versions of multi-scale deformable attention, as wrong exports contain them."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from detrs.ops.ms_deform_attn import reference

locate, grid_sample, ms_deform_attn = reference.locate, reference.F.grid_sample, reference.ms_deform_attn


def swapped(patch: pytest.MonkeyPatch) -> None:
    """x and y of the sampling locations are swapped."""
    patch.setattr(reference, "locate", lambda *arguments: locate(*arguments).flip(-1))


def border(patch: pytest.MonkeyPatch) -> None:
    """Values outside a level are those of its border instead of zero."""

    def sample(image: Tensor, grid: Tensor, **settings: Any) -> Tensor:
        return grid_sample(image, grid, **settings | {"padding_mode": "border"})

    patch.setattr(reference.F, "grid_sample", sample)


def dropped(patch: pytest.MonkeyPatch) -> None:
    """The last level is not sampled."""

    def attend(value: Tensor, shapes: Any, points: Any, locations: Tensor, weights: Tensor, sample: Any) -> Tensor:
        weights = weights.clone()
        weights[..., -points[-1] :] = 0
        return ms_deform_attn(value, shapes, points, locations, weights, sample)

    patch.setattr(reference, "ms_deform_attn", attend)


WRONG: tuple[Callable[[pytest.MonkeyPatch], None], ...] = (swapped, border, dropped)
