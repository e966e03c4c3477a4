"""Derivatives beyond the gradient on the default backend: forward mode, second derivatives, maps over gradients."""

import pytest
import torch
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck

from detrs.ops import use
from detrs.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused, operator

# PyTorch compiles decompositions with its deprecated compiler on the first use of forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")


@pytest.fixture(params=["plain", "points", "boxes"])
def problem(request, draw):
    """A function of differentiable tensors, and the tensors."""
    inputs = draw(batch=1, queries=3, heads=2, channels=2, points=2)
    tensors = [inputs.value, inputs.locations, inputs.weights]
    if request.param == "plain":
        return lambda *given: ms_deform_attn(given[0], inputs.shapes, *given[1:]), tensors
    sizes = 2 if request.param == "points" else 4
    reference_points = 0.3 + 0.4 * torch.rand(
        1, 3, len(inputs.shapes), sizes, generator=draw.random, dtype=torch.float64
    )
    padding = torch.zeros(inputs.value.shape[:2], dtype=torch.bool)
    padding[:, 2::7] = True
    tensors = [inputs.value, inputs.locations - 0.5, inputs.weights, reference_points]
    return lambda *given: ms_deform_attn_fused(given[0], inputs.shapes, *given[1:], padding), tensors


def test_forward_mode_equals_the_reverse_mode(problem) -> None:
    function, tensors = problem
    tangents = [torch.randn_like(tensor) for tensor in tensors]
    out, tangent = torch.func.jvp(function, tuple(tensors), tuple(tangents))
    assert torch.allclose(out, function(*tensors), rtol=0, atol=1e-12)
    upstream = torch.randn_like(out)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    gradients = grad(function(*leaves), leaves, upstream)
    expected = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    assert tangent.abs().max() > 0.01
    assert torch.allclose((tangent * upstream).sum(), expected, rtol=1e-9)
    with forward_ad.dual_level():
        dual = function(*map(forward_ad.make_dual, tensors, tangents))
        assert torch.allclose(forward_ad.unpack_dual(dual).tangent, tangent)


def test_derivatives_on_pixel_centers_are_the_same_in_all_modes(draw) -> None:
    inputs = draw(batch=1, queries=3, heads=1, channels=2, points=1)
    locations = inputs.locations.clone()
    for level, (height, width) in enumerate(inputs.shapes):
        locations[..., level, :, :] = torch.tensor([0.5 / width, 0.5 / height])  # the center of the first pixel
    tangent = torch.randn_like(locations)
    _, forward = torch.func.jvp(
        lambda x: ms_deform_attn(inputs.value, inputs.shapes, x, inputs.weights), (locations,), (tangent,)
    )
    leaf = locations.requires_grad_()
    (gradient,) = grad(ms_deform_attn(inputs.value, inputs.shapes, leaf, inputs.weights).sum(), leaf)
    assert torch.allclose(forward.sum(), (gradient * tangent).sum())


def test_second_derivatives(problem) -> None:
    function, tensors = problem
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)
    with use("gather"):
        expected = torch.func.hessian(lambda value: function(value, *tensors[1:]).pow(3).sum())(tensors[0])
    found = torch.func.hessian(lambda value: function(value, *tensors[1:]).pow(3).sum())(tensors[0])
    assert expected.any() and torch.allclose(found, expected)


@pytest.mark.parametrize("needed", [(0,), (1, 2), (2,)])
def test_second_derivatives_with_constant_inputs(problem, needed) -> None:
    function, tensors = problem

    def of_needed(*leaves):
        given = list(tensors)
        for index, leaf in zip(needed, leaves, strict=True):
            given[index] = leaf
        return function(*given)

    assert gradgradcheck(of_needed, [tensors[index].clone().requires_grad_() for index in needed])


def test_second_derivatives_in_half_precision(draw) -> None:
    inputs = draw(dtype=torch.float32)
    value = inputs.value.bfloat16().requires_grad_()
    locations = inputs.locations.clone().requires_grad_()
    first = grad(
        ms_deform_attn(value, inputs.shapes, locations, inputs.weights).float().square().sum(),
        [locations],
        create_graph=True,
    )
    second = grad(first[0].square().sum(), [value, locations])
    assert [tensor.dtype for tensor in second] == [torch.bfloat16, torch.float32]
    assert all(tensor.isfinite().all() and tensor.any() for tensor in second)


def test_gradients_are_mapped_over_images(problem) -> None:
    function, tensors = problem
    values = torch.randn(4, *tensors[0].shape, dtype=torch.float64)

    def loss(value, weights):
        return function(value, tensors[1], weights, *tensors[3:]).square().sum()

    of_value, of_weights = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(0, None))(values, tensors[2])
    for value, first, second in zip(values, of_value, of_weights, strict=True):
        leaves = [value.clone().requires_grad_(), tensors[2].clone().requires_grad_()]
        expected = grad(loss(*leaves), leaves)
        assert torch.allclose(first, expected[0], rtol=0, atol=1e-12)
        assert torch.allclose(second, expected[1], rtol=0, atol=1e-12)


def test_first_derivatives_use_the_kernel(problem, monkeypatch) -> None:
    function, tensors = problem
    monkeypatch.setattr(operator.reference, "compute", lambda *_: 1 / 0)
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    assert all(gradient.any() for gradient in grad(function(*leaves).sum(), leaves))
