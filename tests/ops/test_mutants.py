"""The suite's comparison kills kernels with a mistake in them: the CPU kernels' own source, with one line changed."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from detrs.ops import ms_deform_attn, ms_deform_attn_fused, use
from detrs.ops.ms_deform_attn import numba_cpu, operator

SHAPES, POINTS, HEADS, CHANNELS = ((5, 7), (3, 2)), (2, 2), 3, 4
TOLERANCE = 1e-12

MUTANTS = {
    "attention weights ignored": (
        "to_top, to_bottom = to_top * share, to_bottom * share",
        "to_top, to_bottom = to_top * 0.25, to_bottom * 0.25",
    ),
    "border padding": (
        "between(low, 0.0, last, 1.0 - fraction, 0.0),",
        "between(low, -1e30, 1e30, 1.0 - fraction, 0.0),",
    ),
    "align_corners": ("origin, unit = number(-0.5), size", "origin, unit = number(0), size - number(1)"),
    "x and y swapped": (
        "raw_x, raw_y = load_pairs(problem.locations + 2 * (first",
        "raw_y, raw_x = load_pairs(problem.locations + 2 * (first",
    ),
    "nearest pixel": ("fraction = position - low", "fraction = floor(position - low + 0.5)"),
    "wrong start of a level": ("[sizes, areas.cumsum() - areas,", "[sizes, 0 * areas,"),
    "a corner dropped": (
        "store_row(_row_address(real, CORNER + 3, k), to_bottom * to_right)",
        "store_row(_row_address(real, CORNER + 3, k), to_bottom * 0.0)",
    ),
    "softmax transposed": (
        "_shares(problem.weights + first * size,",
        "_shares(problem.weights + ((n * problem.queries + q) * samples + m) * problem.heads * size,",
    ),
}
GRADIENT_MUTANTS = {
    "softmax without its derivative": (
        "(_real_row(real, BY_SHARE, k, compute) - pull)",
        "_real_row(real, BY_SHARE, k, compute)",
    ),
    "derivative in half the unit": ("by_y * _real_row(frame, UNIT_Y, k", "by_y * 0.5 * _real_row(frame, UNIT_Y, k"),
    "gradient of a neighbour's head": (
        "upstream = problem.grad_out + (n * problem.queries * problem.heads + m) * channels * itemsize",
        "upstream = problem.grad_out + ((n * problem.queries + 1) * problem.heads - 1 - m) * channels * itemsize",
    ),
}
"""What is wrong -> the line, and what is put in its place."""


@pytest.fixture
def mutate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Run the operator on changed kernels."""

    def change(before: str, after: str) -> None:
        source = Path(numba_cpu.__file__).read_text()
        assert not before or source.count(before) == 1, f"the line has changed: {before}"
        path = tmp_path / "mutant.py"
        path.write_text(source.replace(before, after) if before else source)
        spec = importlib.util.spec_from_file_location("mutant", path)
        assert spec and spec.loader
        module: ModuleType = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "mutant", module)
        spec.loader.exec_module(module)
        monkeypatch.setattr(operator, "_kernels", lambda device_type: module)

    with use("numba"):
        yield change


def outcomes(draw, backend: str) -> Iterator[Tensor]:
    """Outputs and gradients of both forms. The choice of kernels is never left open across a ``yield``."""
    batch, queries, total = 2, 7, sum(POINTS)
    value = draw.normal(batch, 41, HEADS, CHANNELS).requires_grad_()
    locations = draw.locations(batch, queries, HEADS, 2, SHAPES).flatten(3, 4).requires_grad_()
    weights = draw.normal(batch, queries, HEADS, total).requires_grad_()
    reference = draw.normal(batch, queries, 2, 2).sigmoid()
    offsets = draw.normal(batch, queries, HEADS, total, 2).requires_grad_()
    upstream = draw.normal(batch, queries, HEADS * CHANNELS)
    with use(backend):
        plain = ms_deform_attn(value, SHAPES, locations, weights, POINTS)
        fused = ms_deform_attn_fused(value, SHAPES, offsets, weights, reference, points=POINTS)
    yield plain
    yield fused
    yield from torch.autograd.grad(plain, (value, locations, weights), upstream)
    yield from torch.autograd.grad(fused, (value, offsets, weights), upstream)


def errors(draw) -> Iterator[float]:
    """Deviation of each outcome, one at a time: gradients are not compiled where outputs differ already."""
    for ours, truth in zip(outcomes(draw, "numba"), outcomes(type(draw)(), "reference"), strict=True):
        yield (ours - truth).abs().max().item()


def is_wrong(error: float) -> bool:
    return not error < 1e6 * TOLERANCE  # far beyond it, or not a number


def test_without_a_mistake_nothing_is_seen(draw, mutate: Callable[[str, str], None]) -> None:
    mutate("", "")
    assert max(errors(draw)) < TOLERANCE


@pytest.mark.parametrize("mistake", MUTANTS)
def test_a_mistake_is_seen(draw, mutate: Callable[[str, str], None], mistake: str) -> None:
    mutate(*MUTANTS[mistake])
    assert any(map(is_wrong, errors(draw)))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", GRADIENT_MUTANTS)
def test_a_mistake_in_a_gradient_is_seen(draw, mutate: Callable[[str, str], None], mistake: str) -> None:
    mutate(*GRADIENT_MUTANTS[mistake])
    assert any(map(is_wrong, errors(draw)))
