"""Inputs of multi-scale deformable attention with defined derivatives: no location is near the centre of a pixel."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from detrs.structures import Shapes


class Inputs(NamedTuple):
    value: Tensor
    shapes: Shapes
    locations: Tensor
    weights: Tensor

    def differentiable(self) -> "Inputs":
        return Inputs(*(x.detach().clone().requires_grad_() if isinstance(x, Tensor) else x for x in self))

    def to(self, dtype: torch.dtype) -> "Inputs":
        return Inputs(*(x.to(dtype) if isinstance(x, Tensor) else x for x in self))


class Draw:
    """Draws random inputs from a seed."""

    def __init__(self, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)

    def integer(self, low: int, high: int) -> int:
        """From low to high, inclusive."""
        return int(torch.randint(low, high + 1, (), generator=self.random))

    def choice(self, *options: int) -> int:
        return options[self.integer(0, len(options) - 1)]

    def normal(self, *size: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(size, generator=self.random, dtype=torch.float64).to(dtype)

    def locations(self, batch: int, queries: int, heads: int, points: int, shapes: Shapes) -> Tensor:
        """From two pixels before each level to two behind it, at least 0.1 pixels away from every pixel centre."""
        sizes = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float64)[:, None]  # (L, 1, 2)
        uniform = torch.rand(2, batch, queries, heads, len(shapes), points, 2, generator=self.random).double()
        cell = torch.floor(uniform[0] * (sizes + 3)) - 2
        return (cell + 0.1 + 0.8 * uniform[1] + 0.5) / sizes

    def __call__(
        self,
        batch: int = 2,
        queries: int = 11,
        heads: int = 3,
        channels: int = 3,
        points: int = 2,
        shapes: Shapes = ((5, 7), (3, 2)),
        dtype: torch.dtype = torch.float64,
    ) -> Inputs:
        value = self.normal(batch, sum(h * w for h, w in shapes), heads, channels)
        weights = self.normal(batch, queries, heads, len(shapes) * points).softmax(-1)
        locations = self.locations(batch, queries, heads, points, shapes)
        return Inputs(value, shapes, locations, weights.unflatten(-1, (len(shapes), points))).to(dtype)


@pytest.fixture
def draw() -> Draw:
    return Draw()
