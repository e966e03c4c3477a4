"""Mutation tests: the comparison with the reference detects one changed line in the source of the CPU kernels."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detrs.ops import ms_deform_attn, ms_deform_attn_fused, use
from detrs.ops.ms_deform_attn import numba_cpu, operator

SHAPES, POINTS, HEADS, CHANNELS = ((5, 7), (3, 2)), (2, 2), 3, 4
TOLERANCE = 1e-12

MUTANTS = {
    "attention weights ignored": (
        "top_weight, bottom_weight = top_weight * weight, bottom_weight * weight",
        "top_weight, bottom_weight = top_weight * 0.25, bottom_weight * 0.25",
    ),
    "border padding": (
        "where_between(lower, 0.0, last, 1.0 - fraction, 0.0),",
        "where_between(lower, -1e30, 1e30, 1.0 - fraction, 0.0),",
    ),
    "align_corners": (
        "return origin, width, origin, height",
        "return origin + 0.5, width - 1.0, origin + 0.5, height - 1.0",
    ),
    "x and y swapped": (
        "raw_x, raw_y = load_raw(problem, first",
        "raw_y, raw_x = load_raw(problem, first",
    ),
    "nearest pixel": ("fraction = position - lower", "fraction = floor(position - lower + 0.5)"),
    "wrong start of a level": ("[sizes, areas.cumsum() - areas,", "[sizes, 0 * areas,"),
    "a corner dropped": (
        "store_vector(row_address(real, CORNER_WEIGHT + 3, column), bottom_weight * right_weight)",
        "store_vector(row_address(real, CORNER_WEIGHT + 3, column), bottom_weight * 0.0)",
    ),
    "softmax transposed": (
        "source = problem.weights + first * size",
        "head = first // num_samples; row, m = divmod(head, problem.num_heads); "
        "source = problem.weights + (row * num_samples + m) * problem.num_heads * size",
    ),
}
GRADIENT_MUTANTS = {
    "softmax without its derivative": (
        "(grad_weight - mean)",
        "grad_weight",
    ),
    "derivative with half the scale": (
        "grad_y * scale_y,",
        "grad_y * 0.5 * scale_y,",
    ),
    "gradient of another head": (
        "problem.grad_out + (n * problem.num_queries * problem.num_heads + m) * channels * itemsize",
        "problem.grad_out + ((n * problem.num_queries + 1) * problem.num_heads - 1 - m) * channels * itemsize",
    ),
}
"""Mistake -> the line, and its replacement."""


IMPORTS = {
    "from detrs.ops.ms_deform_attn.numba_": "from mutant.numba_",
    "from detrs.ops.ms_deform_attn import numba_": "from mutant import numba_",
}


@pytest.fixture
def mutate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Runs the operator on changed kernels: copies of their files, in a package ``mutant``."""

    def change(before: str, after: str) -> None:
        folder = tmp_path / "mutant"
        folder.mkdir()
        sources = {path.name: path.read_text() for path in Path(numba_cpu.__file__).parent.glob("numba_*.py")}
        found = sum(source.count(before) for source in sources.values())
        assert not before or found == 1, f"expected this line once, found it {found} times: {before}"
        for name, source in sources.items():
            changed = source.replace(before, after) if before else source
            for original, copy in IMPORTS.items():
                changed = changed.replace(original, copy)
            (folder / name).write_text(changed)
        monkeypatch.syspath_prepend(tmp_path)
        for name in ("mutant", *(f"mutant.{Path(name).stem}" for name in sources)):
            monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module("mutant.numba_cpu")
        assert Path(str(module._forward.py_func.__code__.co_filename)).parent == folder
        monkeypatch.setattr(operator, "_kernels", lambda device_type: module)

    with use("numba"):
        yield change


def outcomes(draw, backend: str) -> Iterator[Tensor]:
    """Outputs and gradients of both forms. The forced backend does not extend across a ``yield``."""
    batch, queries, total = 2, 7, sum(POINTS)
    value = draw.normal(batch, 41, HEADS, CHANNELS).requires_grad_()
    locations = draw.locations(batch, queries, HEADS, 2, SHAPES).flatten(3, 4).requires_grad_()
    weights = draw.normal(batch, queries, HEADS, total).requires_grad_()
    reference_points = draw.normal(batch, queries, 2, 2).sigmoid()
    offsets = draw.normal(batch, queries, HEADS, total, 2).requires_grad_()
    upstream = draw.normal(batch, queries, HEADS * CHANNELS)
    with use(backend):
        plain = ms_deform_attn(value, SHAPES, locations, weights, POINTS)
        fused = ms_deform_attn_fused(value, SHAPES, offsets, weights, reference_points, points=POINTS)
    yield plain
    yield fused
    yield from torch.autograd.grad(plain, (value, locations, weights), upstream)
    yield from torch.autograd.grad(fused, (value, offsets, weights), upstream)


def errors(draw) -> Iterator[float]:
    """Error of each outcome, one at a time: gradients are not compiled if outputs already differ."""
    for ours, truth in zip(outcomes(draw, "numba"), outcomes(type(draw)(), "reference"), strict=True):
        yield (ours - truth).abs().max().item()


def is_wrong(error: float) -> bool:
    return not error < 1e6 * TOLERANCE  # far above it, or NaN


def test_unchanged_kernels_pass(draw, mutate: Callable[[str, str], None]) -> None:
    mutate("", "")
    assert max(errors(draw)) < TOLERANCE


@pytest.mark.parametrize("mistake", MUTANTS)
def test_mutants_are_killed(draw, mutate: Callable[[str, str], None], mistake: str) -> None:
    mutate(*MUTANTS[mistake])
    assert any(map(is_wrong, errors(draw)))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", GRADIENT_MUTANTS)
def test_mutants_of_gradients_are_killed(draw, mutate: Callable[[str, str], None], mistake: str) -> None:
    mutate(*GRADIENT_MUTANTS[mistake])
    assert any(map(is_wrong, errors(draw)))
