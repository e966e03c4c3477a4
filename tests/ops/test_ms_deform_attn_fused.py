"""The fused form against the plain form with masking, softmax and locations in PyTorch."""

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import grad, gradcheck

from detrs.ops import ms_deform_attn, ms_deform_attn_fused, use
from detrs.structures import Shapes

FORWARD = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
BACKWARD = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def numba():
    """Every test runs the kernel on outputs that are filled with NaN."""
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    with use("numba"):
        yield
    torch.use_deterministic_algorithms(False)


class Inputs(NamedTuple):
    value: Tensor
    shapes: Shapes
    offsets: Tensor
    logits: Tensor
    reference_points: Tensor
    padding: Tensor
    points: tuple[int, ...]

    def to(self, dtype: torch.dtype, value: torch.dtype | None = None) -> "Inputs":
        tensors = {name: getattr(self, name).detach().to(dtype) for name in ("offsets", "logits", "reference_points")}
        new = self._replace(value=self.value.detach().to(value or dtype), **tensors)
        for tensor in new.tensors():
            tensor.requires_grad_()
        return new

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.value, self.offsets, self.logits, self.reference_points

    def run(self, backend: str = "numba") -> Tensor:
        with use(backend):
            return ms_deform_attn_fused(*self)


def drawn(draw, kind: str, points=(2, 2), shapes=((5, 7), (3, 2)), batch=2, queries=11, heads=3, channels=4) -> Inputs:
    """Locations in and around the levels, away from pixel centres; a fifth of all tokens is padding."""
    total, levels = sum(points), len(shapes)
    level = torch.arange(levels).repeat_interleave(torch.tensor(points))
    locations = draw.locations(batch, queries, heads, max(points), shapes)  # (B, Q, M, L, P, 2)
    number = torch.cat([torch.arange(count) for count in points])
    locations = locations[:, :, :, level, number]  # (B, Q, M, K, 2)
    reference_points = draw.normal(batch, queries, levels, {"point": 2, "box": 4}[kind])
    sizes = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float64)
    if kind == "point":
        unit = (1 / sizes).expand(batch, queries, levels, 2)
    else:
        reference_points[..., 2:] = 0.2 + reference_points[..., 2:].sigmoid()
        unit = reference_points[..., 2:] * 0.5 / torch.tensor(points)[:, None]
    offsets = (locations - reference_points[:, :, None, level, :2]) / unit[:, :, None, level]
    tokens = sum(h * w for h, w in shapes)
    padding = draw.normal(batch, tokens) < -0.8
    start = torch.tensor([0, *(h * w for h, w in shapes)]).cumsum(0)[:-1]
    padding[:, start] = False
    value = draw.normal(batch, tokens, heads, channels)
    return Inputs(value, shapes, offsets, draw.normal(batch, queries, heads, total), reference_points, padding, points)


def error(ours: Tensor, truth: Tensor) -> float:
    """Largest error, relative to the largest value (or to 1)."""
    return ((ours.double() - truth).abs().max() / truth.abs().max().clamp(min=1)).item()


def test_reference_is_the_plain_form_with_its_surroundings(draw) -> None:
    for kind in ("point", "box"):
        inputs = drawn(draw, kind)
        center = inputs.reference_points[:, :, None, :, None, :2]  # (B, Q, 1, L, 1, 2)
        offsets, logits = inputs.offsets.unflatten(3, (2, 2)), inputs.logits
        if kind == "point":
            locations = center + offsets / torch.tensor([[7.0, 5.0], [2.0, 3.0]])[:, None]
        else:
            locations = center + offsets / 2 * inputs.reference_points[:, :, None, :, None, 2:] * 0.5
        value = inputs.value.masked_fill(inputs.padding[..., None, None], 0)
        with use("reference"):
            plain = ms_deform_attn(value, inputs.shapes, locations, logits.softmax(-1).unflatten(3, (2, 2)))
            regular = inputs._replace(offsets=offsets, logits=logits.unflatten(3, (2, 2)), points=None).run("reference")
        assert error(inputs.run("reference"), plain) < 1e-14 and error(regular, plain) < 1e-14


@pytest.mark.parametrize("kind", ["point", "box"])
@pytest.mark.parametrize("dtype", FORWARD, ids=str)
def test_kernel_equals_float64_reference(draw, dtype, kind) -> None:
    """Any number of levels, queries, and points, which differ between levels; half precision is for values only."""
    for _ in range(12):
        shapes = tuple((draw.choice(1, 2, 5, 13), draw.choice(1, 3, 7)) for _ in range(draw.integer(1, 5)))
        points = tuple(draw.integer(1, 8) for _ in shapes)
        exact = drawn(draw, kind, points, shapes, draw.integer(1, 3), draw.choice(1, 2, 13, 41), channels=16)
        exact = exact.to(torch.float64)
        inputs = exact.to(torch.float64 if dtype == torch.float64 else torch.float32, value=dtype)
        # single precision moves samples by up to 1e-4 pixels: the expected output is that of the moved samples
        exact = inputs.to(torch.float64)
        ours, truth = inputs.run(), exact.run("reference")
        assert ours.dtype == dtype and error(ours, truth) < 10 * FORWARD[dtype]
        upstream = draw.normal(*truth.shape).to(dtype)
        for given, tensor, wanted in zip(
            grad(ours, inputs.tensors(), upstream),
            inputs.tensors(),
            grad(truth, exact.tensors(), upstream.double()),
            strict=True,
        ):
            assert given.dtype == tensor.dtype and error(given, wanted) < 10 * BACKWARD[dtype]


@pytest.mark.parametrize("kind", ["point", "box"])
@pytest.mark.parametrize("channels", [1, 3, 16, 33])
def test_gradcheck(draw, kind, channels) -> None:
    inputs = drawn(draw, kind, (3, 1), ((2, 3), (1, 2)), 1, 2, 2, channels).to(torch.float64)

    def run(value, offsets, logits, reference_points):
        return ms_deform_attn_fused(
            value, inputs.shapes, offsets, logits, reference_points, inputs.padding, inputs.points
        )

    assert gradcheck(run, inputs.tensors(), eps=1e-6, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("needed", [n for n in itertools.product((False, True), repeat=4) if any(n)])
def test_only_the_gradients_that_are_needed(draw, needed) -> None:
    inputs = drawn(draw, "box").to(torch.float64)
    expected = grad(inputs.run().square().sum(), inputs.tensors())
    for tensor, need in zip(inputs.tensors(), needed, strict=True):
        tensor.requires_grad_(need)
    inputs.run().square().sum().backward()
    for tensor, need, truth in zip(inputs.tensors(), needed, expected, strict=True):
        assert torch.equal(tensor.grad, truth) if need else tensor.grad is None


def test_padding_is_never_read(draw) -> None:
    inputs = drawn(draw, "point").to(torch.float64)
    poisoned = inputs._replace(value=inputs.value.detach().masked_fill(inputs.padding[..., None, None], torch.nan))
    assert torch.equal(inputs.run(), poisoned.run())
    value = inputs.value.detach().requires_grad_()
    (gradient,) = grad(inputs._replace(value=value).run().sum(), value)
    assert not gradient[inputs.padding].any() and gradient[~inputs.padding].any()


def test_padding_elsewhere_changes_nothing_on_the_centre_of_a_pixel(draw) -> None:
    """There the next pixel has weight 0, but it contributes to the gradient."""
    inputs = drawn(draw, "point")
    sizes = torch.tensor([[7.0, 5.0], [2.0, 3.0]], dtype=torch.float64)
    inputs.reference_points[:] = (torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=torch.float64) + 0.5) / sizes
    inputs.padding[:] = False
    inputs.padding[:, -1] = True
    inputs = inputs._replace(offsets=torch.zeros_like(inputs.offsets)).to(torch.float64)
    for padded, free in zip(
        grad(inputs.run().sum(), inputs.tensors()),
        grad(inputs._replace(padding=None).run().sum(), inputs.tensors()),
        strict=True,
    ):
        assert torch.equal(padded, free)


def test_no_pixel_far_away_is_read_in_place_of_padding(draw) -> None:
    inputs = drawn(draw, "point")
    inputs.value[:, 0] = torch.nan
    inputs.padding[:, 0] = True
    inputs.padding[1] = True  # an image that is entirely padding
    inputs = inputs.to(torch.float64)
    out = inputs.run()
    assert out.isfinite().all() and not out[1].any()
    inputs.padding[0, 0] = False
    seen, truth = inputs.run(), inputs.run("reference")
    assert seen.isnan().any() and torch.equal(seen.isnan(), truth.isnan())


@pytest.mark.parametrize("kind", ["point", "box"])
def test_reference_of_a_level_without_points_has_no_gradient(draw, kind) -> None:
    inputs = drawn(draw, kind, points=(2, 2))
    inputs = inputs._replace(points=(0, 4)).to(torch.float64)
    for backend in ("reference", "gather", "numba"):
        found = grad(inputs.run(backend).sum(), inputs.tensors())
        assert all(gradient.isfinite().all() for gradient in found)
        assert not found[3][:, :, 0].any() and found[3][:, :, 1].any()


def test_nowhere_is_exactly_nothing(draw) -> None:
    for far in (1e6, -1e30, torch.inf, -torch.inf, torch.nan):
        inputs = drawn(draw, "point")
        inputs.offsets[0, 3] = far
        inputs.offsets[1, 4, 1, 2, 0] = far
        inputs = inputs.to(torch.float64)
        out = inputs.run()
        assert not out[0, 3].any() and out.isfinite().all()
        value_grad, offsets_grad, logits_grad, _ = grad(out.sum(), inputs.tensors())
        assert value_grad.isfinite().all() and not offsets_grad[0, 3].any() and not offsets_grad[1, 4, 1, 2].any()
        assert logits_grad.isfinite().all() and not logits_grad[0, 3].any()


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softmax_survives_any_logits(draw, dtype, shift) -> None:
    inputs = drawn(draw, "point", points=(9, 12)).to(dtype)
    logits = inputs.logits.detach() * 30 + shift
    logits[0, 0, 0, 1:] = -torch.inf
    inputs = inputs._replace(logits=logits)
    assert error(inputs.run(), inputs.run("reference").double()) < 100 * FORWARD[dtype]


def test_nan_goes_where_it_belongs(draw) -> None:
    inputs = drawn(draw, "point")
    inputs.logits[0, 3, 1, 2] = torch.nan
    hit = inputs.run().isnan().unflatten(-1, (3, 4))
    assert hit[0, 3, 1].all() and hit.sum() == 4
    inputs.logits[0, 3, 1, 2] = 0
    inputs.offsets[0, 5, 2] = torch.tensor([9e9, 9e9])  # out of bounds, but the weights are NaN
    inputs.logits[0, 5, 2, 0] = torch.nan
    hit = inputs.run().isnan().unflatten(-1, (3, 4))
    assert hit[0, 5, 2].all() and hit.sum() == 4


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"reference_points": torch.ones(2, 11, 2, 3)}, ValueError, r"\(2, 11, 2, 2 or 4\)"),
        ({"reference_points": torch.ones(2, 11, 2)}, ValueError, "2 or 4"),
        ({"padding": torch.ones(2, 41)}, TypeError, "bool"),
        ({"padding": torch.ones(2, 40, dtype=torch.bool)}, ValueError, r"\(2, 41\)"),
        ({"points": (2, 3)}, ValueError, "K=5"),
        ({"points": (4,)}, ValueError, "each of the 2 levels"),
        ({"points": (5, -1)}, ValueError, "each of the 2 levels"),
        ({"points": None}, ValueError, r"offsets: expected \(B, Q, M, L, P, 2\)"),
        ({"logits": torch.ones(2, 11, 3, 5)}, ValueError, r"logits.*\(2, 11, 3, 4\) as offsets"),
        ({"offsets": torch.ones(2, 11, 3, 4, 2, dtype=torch.int32)}, TypeError, "offsets.*int32"),
    ],
)
def test_mismatched_inputs_are_errors(draw, change, error, message) -> None:
    with pytest.raises(error, match=message):
        drawn(draw, "point")._replace(**change).run()
