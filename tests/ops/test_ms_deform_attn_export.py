"""Exported programs: what they contain, and that dynamic sizes remain dynamic."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrs.ops import ms_deform_attn, ms_deform_attn_fused, use

HEADS, CHANNELS, POINTS = 2, 3, 2
QUERIES = 7


def values(maps: tuple[Tensor, ...]) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Maps (B, M*D, h, w) as the value and the shapes of their levels."""
    tokens = torch.cat([level.flatten(2) for level in maps], dim=2).transpose(1, 2)
    return tokens.unflatten(2, (HEADS, CHANNELS)), tuple((level.shape[2], level.shape[3]) for level in maps)


class Plain(nn.Module):
    def forward(self, maps: tuple[Tensor, ...], locations: Tensor, weights: Tensor) -> Tensor:
        value, shapes = values(maps)
        return ms_deform_attn(value, shapes, locations, weights)


class Fused(nn.Module):
    def forward(self, maps: tuple[Tensor, ...], offsets: Tensor, logits: Tensor, reference_points: Tensor) -> Tensor:
        value, shapes = values(maps)
        return ms_deform_attn_fused(value, shapes, offsets, logits, reference_points)


def arguments(draw, form: str, sizes: tuple[tuple[int, int], ...]) -> tuple[Any, ...]:
    maps = tuple(draw.normal(1, HEADS * CHANNELS, h, w, dtype=torch.float32) for h, w in sizes)
    samples = (1, QUERIES, HEADS, len(sizes), POINTS)
    weights = draw.normal(*samples, dtype=torch.float32)
    if form == "plain":
        return maps, draw.normal(*samples, 2, dtype=torch.float32).sigmoid(), weights
    reference_points = draw.normal(1, QUERIES, len(sizes), {"point": 2, "box": 4}[form], dtype=torch.float32).sigmoid()
    return maps, draw.normal(*samples, 2, dtype=torch.float32), weights, reference_points


@pytest.mark.parametrize("backend", ["reference", "gather"])
@pytest.mark.parametrize("form", ["plain", "point", "box"])
@pytest.mark.parametrize("strict", [False, True])
def test_heights_and_widths_may_be_dynamic(draw, strict, form, backend) -> None:
    module = Plain() if form == "plain" else Fused()
    example, other = (arguments(draw, form, sizes) for sizes in (((11, 17), (5, 7)), ((13, 9), (3, 8))))
    dims = tuple({2: torch.export.Dim(f"h{i}", min=2), 3: torch.export.Dim(f"w{i}", min=2)} for i in range(2))
    with use(backend):
        program = torch.export.export(
            module, example, strict=strict, dynamic_shapes=(dims, *(None for _ in example[1:]))
        )
        eager = module(*other)
    assert torch.equal(program.module()(*other), eager)
