"""The operator under the names of the official CUDA operator, beside that of ``transformers`` in plain PyTorch."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from detrs.errors import UserError
from detrs.integrations import official
from detrs.ops import use

SHAPES = ((5, 7), (3, 4), (2, 2))
STARTS = (0, 35, 47)
ARGUMENTS = (torch.tensor(SHAPES), torch.tensor(STARTS))
REPOSITORY = '''
"""Calls the compiled module as models/ops/functions/ms_deform_attn_func.py of the official repository does."""
import torch
import MultiScaleDeformableAttention as MSDA


class MSDeformAttnFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, shapes, starts, locations, weights, im2col_step):
        ctx.im2col_step = im2col_step
        output = MSDA.ms_deform_attn_forward(value, shapes, starts, locations, weights, ctx.im2col_step)
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        value, shapes, starts, locations, weights = ctx.saved_tensors
        grad_value, grad_locations, grad_weights = MSDA.ms_deform_attn_backward(
            value, shapes, starts, locations, weights, grad_output, ctx.im2col_step
        )
        return grad_value, None, None, grad_locations, grad_weights, None
'''


def inputs(channels: int = 4) -> list[Tensor]:
    """Value, locations (some out of bounds) and weights. The kernels are those that tests of the operator compile."""
    torch.manual_seed(0)
    samples = (3, 11, 2, 3, 4)
    value = torch.randn(3, 51, 2, channels, requires_grad=True)
    locations = (torch.rand(*samples, 2) * 1.4 - 0.2).requires_grad_()
    return [value, locations, torch.rand(samples).requires_grad_()]


def theirs(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return MultiScaleDeformableAttention()(value, None, list(SHAPES), None, locations, weights, 64)


def assert_same_gradients(function: Any) -> None:
    """Output and gradients, with a batch that is not a multiple of ``im2col_step``."""
    given = inputs()
    expected, actual = theirs(*given), function(given[0], *ARGUMENTS, *given[1:], 2)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(actual, given, upstream), torch.autograd.grad(expected, given, upstream), strict=True
    )
    for x, y in pairs:
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_gradients_are_equal(backend: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the function, and of a repository that wraps the installed module; on kernels and in plain PyTorch."""
    (tmp_path / "their_functions.py").write_text(REPOSITORY)
    monkeypatch.syspath_prepend(tmp_path)
    with use(backend), official.install() as module:
        assert sys.modules["MultiScaleDeformableAttention"] is module
        repository = importlib.import_module("their_functions")
        assert_same_gradients(repository.MSDeformAttnFunction.apply)
        assert_same_gradients(official.MSDeformAttnFunction.apply)
    assert "MultiScaleDeformableAttention" not in sys.modules
    del sys.modules["their_functions"]


def test_gradients_have_the_dtypes_of_inputs() -> None:
    value, locations, weights = (x.detach() for x in inputs(3))
    upstream = torch.randn(3, 11, 6)
    exact = official.ms_deform_attn_backward(value.double(), *ARGUMENTS, locations, weights, upstream, 64)
    assert [x.dtype for x in exact] == [torch.float64, torch.float32, torch.float32]
    value, locations, weights = (x.detach() for x in inputs(16))
    upstream = torch.randn(3, 11, 32)
    exact = official.ms_deform_attn_backward(value, *ARGUMENTS, locations, weights, upstream, 64)
    half = official.ms_deform_attn_backward(
        value.bfloat16(), *ARGUMENTS, locations, weights.bfloat16(), upstream.bfloat16(), 64
    )
    assert [x.dtype for x in half] == [torch.bfloat16, torch.float32, torch.bfloat16]
    for x, y in zip(half, exact, strict=True):
        assert float((x - y).abs().max()) < 0.03 * float(y.abs().max())


def test_shapes_without_tensors() -> None:
    given = inputs()
    for shapes in (SHAPES, [list(shape) for shape in SHAPES], ARGUMENTS[0]):
        actual = official.ms_deform_attn_core_pytorch(given[0], shapes, *given[1:])
        torch.testing.assert_close(actual, theirs(*given), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("starts", [(0, 35, 46), (35, 0, 47), (0, 35)])
def test_other_starts_of_levels_are_errors(starts: tuple[int, ...]) -> None:
    value, locations, weights = inputs()
    with pytest.raises(UserError, match=r"level_start_index: expected \[0, 35, 47\], .* got"):
        official.MSDeformAttnFunction.apply(value, ARGUMENTS[0], torch.tensor(starts), locations, weights, 64)


def test_other_names_of_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``from package import _C``, as the repository of Grounding DINO imports it."""
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "__init__.py").touch()
    (tmp_path / "their_package" / "attention.py").write_text("from their_package import _C\n")
    monkeypatch.syspath_prepend(tmp_path)
    with official.install("their_package._C"):
        attention = importlib.import_module("their_package.attention")
    assert attention._C.ms_deform_attn_forward is official.ms_deform_attn_forward
    for name in ("their_package.attention", "their_package"):
        del sys.modules[name]


def test_installed_only_before_the_first_import() -> None:
    installed = official.install("their_package._C")
    with pytest.raises(UserError, match=r"their_package\._C .* imported from detrs"):
        official.install("their_package._C")
    assert importlib.util.find_spec("their_package._C") is not None
    installed.undo()
    installed.undo()
    with pytest.raises(UserError, match=r"json yet, but it is imported from .*json/__init__\.py"):
        official.install("json")
