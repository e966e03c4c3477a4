"""Multi-scale deformable attention: the reference, the kernel against the reference, and the errors of both."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad, gradcheck

from detrs.ops import ms_deform_attn, use

FORWARD = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
BACKWARD = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
CHANNELS = {torch.float64: (3, 33), torch.float32: (4, 32), torch.float16: (16,), torch.bfloat16: (16,)}

CHECKED_CHANNELS = (1, 2, 3, 4, 7, 16, 24, 30, 32, 33, 64, 71, 96, 128, 1025)


@pytest.fixture(autouse=True)
def numba():
    """Every test runs the kernel on outputs that are filled with NaN."""
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    with use("numba"):
        yield
    torch.use_deterministic_algorithms(False)


def error(ours: Tensor, truth: Tensor) -> float:
    """Largest error, relative to the largest value (or to 1)."""
    if not truth.numel():
        return 0.0
    return ((ours.double() - truth).abs().max() / truth.abs().max().clamp(min=1)).item()


def defined(value: Tensor, shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The reference, in the precision of its inputs."""
    with use("reference"):
        return ms_deform_attn(value, shapes, locations, weights)


def hat_functions(value, shapes, locations, weights):
    """An independent definition: all pixels, weighted by their distance from the sample in x and in y."""
    out = 0
    for level, (tokens, (h, w)) in enumerate(zip(value.split([h * w for h, w in shapes], dim=1), shapes, strict=True)):
        x, y = (locations[:, :, :, level] * torch.tensor([w, h]) - 0.5).unbind(-1)  # (B, Q, M, P)
        near_x = (1 - (x[..., None] - torch.arange(w)).abs()).clamp(min=0)  # (B, Q, M, P, w)
        near_y = (1 - (y[..., None] - torch.arange(h)).abs()).clamp(min=0)
        pixels = tokens.unflatten(1, (h, w))  # (B, h, w, M, D)
        out = out + torch.einsum("bqmp,bqmpy,bqmpx,byxmd->bqmd", weights[:, :, :, level], near_y, near_x, pixels)
    return out.flatten(2)


@pytest.mark.parametrize("backend", ["reference", "gather"])
def test_reference_is_the_definition(draw, backend) -> None:
    inputs = draw(shapes=((5, 7), (1, 1), (1, 3), (2, 1))).differentiable()
    tensors = [inputs.value, inputs.locations, inputs.weights]
    with use(backend):
        out, truth = ms_deform_attn(*inputs), hat_functions(*inputs)
    assert error(out, truth) < 1e-13
    upstream = draw.normal(*truth.shape)
    for ours, theirs in zip(grad(out, tensors, upstream), grad(truth, tensors, upstream), strict=True):
        assert error(ours, theirs) < 1e-13


def test_reference_equals_transformers(draw) -> None:
    modeling = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    inputs = draw(batch=3, channels=4, points=3, shapes=((7, 11), (5, 3), (2, 3)))
    theirs = modeling.MultiScaleDeformableAttention()(
        inputs.value, torch.tensor(inputs.shapes), inputs.shapes, None, inputs.locations, inputs.weights, 64
    )
    assert error(defined(*inputs), theirs) < 1e-13


def random_inputs(draw, dtype: torch.dtype):
    shapes = tuple((draw.choice(1, 2, 3, 5, 13), draw.choice(1, 2, 3, 7, 11)) for _ in range(draw.integer(1, 5)))
    return draw(
        batch=draw.integer(1, 3),
        queries=draw.choice(1, 2, 13, 41),
        heads=draw.integer(1, 3),
        channels=draw.choice(*CHANNELS[dtype]),
        points=draw.choice(1, 2, 3, 4, 8),
        shapes=shapes,
        dtype=dtype,
    )


@pytest.mark.parametrize("dtype", FORWARD, ids=str)
def test_kernel_equals_float64_reference(draw, dtype) -> None:
    """Half precision is for values only: coordinates and weights remain float32."""
    for _ in range(30):
        inputs = random_inputs(draw, dtype)
        if dtype in (torch.float16, torch.bfloat16):
            inputs = inputs._replace(locations=inputs.locations.float(), weights=inputs.weights.float())
            locations = draw.locations(*inputs.locations.shape[:3], inputs.locations.shape[4], inputs.shapes)
            inputs = inputs._replace(locations=locations.float())
        inputs, exact = inputs.differentiable(), inputs.to(torch.float64).differentiable()
        ours, truth = ms_deform_attn(*inputs), defined(*exact)
        assert ours.dtype == dtype
        assert error(ours, truth) < FORWARD[dtype]
        upstream = draw.normal(*truth.shape, dtype=dtype)
        for name in ("value", "locations", "weights"):
            (ours_grad,) = grad(ours, getattr(inputs, name), upstream, retain_graph=True)
            (truth_grad,) = grad(truth, getattr(exact, name), upstream.double(), retain_graph=True)
            assert ours_grad.dtype == getattr(inputs, name).dtype
            assert error(ours_grad, truth_grad) < BACKWARD[dtype], name


@pytest.mark.parametrize("channels", CHECKED_CHANNELS)
def test_gradcheck(draw, channels) -> None:
    inputs = draw(1, 2, 2, channels, 2, ((2, 3), (1, 2))).differentiable()
    assert gradcheck(
        lambda value, locations, weights: ms_deform_attn(value, inputs.shapes, locations, weights),
        (inputs.value, inputs.locations, inputs.weights),
        eps=1e-6,
        atol=1e-6,
        rtol=1e-4,
        fast_mode=channels > 16,
    )
    assert error(ms_deform_attn(*inputs), defined(*inputs)) < FORWARD[torch.float64]


@pytest.mark.parametrize("queries", [22223, 22229])
def test_many_queries(draw, queries) -> None:
    inputs = draw(batch=1, queries=queries, heads=1, channels=4, points=1, dtype=torch.float32)
    assert error(ms_deform_attn(*inputs), defined(*inputs.to(torch.float64))) < FORWARD[torch.float32]


def test_images_do_not_mix(draw) -> None:
    inputs = draw(batch=154, queries=3, heads=1)
    together = ms_deform_attn(*inputs)
    for i in range(154):
        alone = ms_deform_attn(
            inputs.value[i : i + 1], inputs.shapes, inputs.locations[i : i + 1], inputs.weights[i : i + 1]
        )
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize("empty", ["batch", "queries", "heads", "channels", "points"])
def test_nothing_to_do(draw, empty) -> None:
    inputs = draw(**{empty: 0}).differentiable()
    for name in ("numba", "reference"):
        with use(name):
            out = ms_deform_attn(*inputs)
            assert out.shape == (inputs.value.shape[0], inputs.locations.shape[1], inputs.value.shape[2:].numel())
            grads = grad(out.sum(), [inputs.value, inputs.locations, inputs.weights])
            assert all(not out.any() for out in (out, *grads))


# Locations at pixel boundaries and out of bounds


def sample(position_x: float, position_y: float, size: tuple[int, int], value: Tensor | None = None):
    """One sample at a position in pixels (0 is the centre of the first one), its value and its three gradients."""
    h, w = size
    value = torch.ones(1, h * w, 1, 4) if value is None else value
    location = (torch.tensor([position_x, position_y]) + 0.5) / torch.tensor([w, h])
    tensors = [
        value.clone().requires_grad_(),
        location.view(1, 1, 1, 1, 1, 2).requires_grad_(),
        torch.ones(1, 1, 1, 1, 1),
    ]
    tensors[2].requires_grad_()
    out = ms_deform_attn(tensors[0], (size,), tensors[1], tensors[2])
    return out[0, 0], *grad(out.sum(), tensors)


def test_at_the_centre_of_a_pixel_lies_its_value_and_the_slope_to_the_next() -> None:
    """The convention is floor: at a pixel centre the derivative is the one to the right and below."""
    value = torch.tensor([[0.0, 1, 4, 9], [16, 25, 36, 49]]).reshape(1, 8, 1, 1).expand(1, 8, 1, 4)
    out, grad_value, grad_location, grad_weight = sample(1, 0, (2, 4), value)
    assert out.tolist() == [1, 1, 1, 1]
    assert grad_value[0, :, 0, 0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    assert grad_location.flatten().tolist() == [4 * 4 * (4 - 1), 4 * 2 * (25 - 1)]
    assert grad_weight.item() == 4
    with use("reference"):
        assert sample(1, 0, (2, 4), value)[2].tolist() == grad_location.tolist()


def test_edges_fade_to_zero_within_one_pixel() -> None:
    for x in (-0.5, 2.5):
        assert sample(x, 1, (2, 3))[0].tolist() == [0.5] * 4
        assert sample(x, -0.5, (2, 3))[0].tolist() == [0.25] * 4
    for x, y in ((-1, 0), (3, 0), (0, -1), (0, 2)):
        assert not any(out.any() for out in sample(x, y, (2, 3)))


def amid_nan(value: Tensor) -> Tensor:
    """The same value surrounded by NaN in memory, so that reads out of bounds are detected."""
    memory = torch.full((value.numel() + 2000,), math.nan, dtype=value.dtype)
    return memory[1000:-1000].view(value.shape).copy_(value)


@pytest.mark.parametrize("far", [-1e6, 1e6, -1e30, 1e30, math.inf, -math.inf, math.nan])
def test_far_away_is_exactly_nothing(draw, far) -> None:
    value, shapes, locations, weights = draw()
    for axis in (0, 1):
        moved = locations.clone()
        moved[:, ::2, ..., axis] = far
        tensors = [x.detach().requires_grad_() for x in (amid_nan(value), moved, weights)]
        for name in ("numba", "reference"):
            with use(name):
                out = ms_deform_attn(tensors[0], shapes, *tensors[1:])
            assert out.isfinite().all() and not out[:, ::2].any() and out[:, 1::2].any()
            grads = grad(out.sum(), tensors)
            assert all(grad.isfinite().all() for grad in grads)
            assert not grads[1][:, ::2].any() and not grads[2][:, ::2].any()


def test_nothing_beside_the_value_is_read(draw) -> None:
    inputs = draw(queries=199, channels=3, shapes=((5, 7), (1, 1), (1, 3), (2, 1)))
    value = amid_nan(inputs.value)
    assert ms_deform_attn(value, *inputs[1:]).isfinite().all()
    on_centres = [[x / 6 - 0.5, y / 6 - 0.5] for x, y in itertools.product(range(13), repeat=2)]
    locations = torch.tensor(on_centres, dtype=torch.float64)[None, :, None, None, None].expand(2, 169, 3, 4, 2, 2)
    assert ms_deform_attn(value, inputs.shapes, locations, torch.ones(2, 169, 3, 4, 2)).isfinite().all()


def test_nan_goes_where_it_belongs(draw) -> None:
    inputs = draw(queries=41).differentiable()
    for name in ("value", "weights"):
        poisoned = getattr(inputs, name).detach().clone()
        poisoned[0, ::7] = math.nan
        case = inputs._replace(**{name: poisoned.requires_grad_()})
        ours = ms_deform_attn(*case)
        with use("reference"):
            truth = ms_deform_attn(*case)
        assert ours.isnan().any() and not ours.isnan().all()
        assert torch.equal(ours.isnan(), truth.isnan())
    weights = inputs.weights.detach().clone()
    weights[0, 4, 1, 1, 1] = math.nan
    for name in ("numba", "reference"):  # 0 * NaN is NaN out of bounds too
        with use(name):
            out = ms_deform_attn(inputs.value, inputs.shapes, inputs.locations + 9, weights)
        assert out[0, 4, 3:6].isnan().all() and out.isnan().sum() == 3 and not out.nan_to_num().any()
    out = ms_deform_attn(*inputs)
    upstream = torch.ones_like(out)
    upstream[0, 3, 0] = math.nan
    grads = grad(out, [inputs.value, inputs.locations, inputs.weights], upstream)
    assert grads[0].isnan().any() and not grads[0][1].isnan().any()
    assert grads[1][0, 3, 0].isnan().any() and grads[1].isnan().any(-1).sum() == grads[1][0, 3, 0].isnan().any(-1).sum()


# Memory layouts and subsets of gradients


def test_any_layout_gives_the_same_bits(draw) -> None:
    inputs = draw(batch=2, dtype=torch.float32, channels=4)
    value, shapes, locations, weights = inputs
    upstream = draw.normal(2, 11, 12, dtype=torch.float32)

    def run(value, locations, weights, upstream):
        tensors = [x.requires_grad_() for x in (value, locations, weights)]
        out = ms_deform_attn(tensors[0], shapes, tensors[1], tensors[2])
        return out, *grad(out, tensors, upstream)

    def shuffled(x: Tensor) -> Tensor:
        """The same numbers in memory with reversed axes and gaps between the elements."""
        order = list(range(x.ndim))[::-1]
        return x.permute(order).repeat_interleave(2, dim=-1).contiguous()[..., ::2].permute(order)

    expected = run(value.clone(), locations.clone(), weights.clone(), upstream)
    layouts = {
        "head-major": (
            value.transpose(1, 2).contiguous().transpose(1, 2),
            locations.clone(),
            weights.clone(),
            upstream,
        ),
        "offset": (F.pad(value, (1, 3))[..., 1:-3], F.pad(locations, (1, 1))[..., 1:-1], weights.clone(), upstream),
        "shuffled": (shuffled(value), shuffled(locations), shuffled(weights), shuffled(upstream)),
    }
    for name, layout in layouts.items():
        assert not layout[0].is_contiguous()
        for ours, same in zip(run(*layout), expected, strict=True):
            assert torch.equal(ours, same), name


def test_expanded_inputs(draw) -> None:
    value, shapes, locations, weights = draw(batch=1)
    value = value.expand(2, -1, -1, -1)
    locations = locations[:, :1].expand(2, 5, -1, -1, -1, -1)
    weights = weights[:, :1].expand(2, 5, -1, -1, -1).detach().requires_grad_()
    out = ms_deform_attn(value, shapes, locations, weights)
    assert torch.equal(out, out[:1, :1].expand_as(out))
    (expanded,) = grad(out.sum(), weights, retain_graph=True)  # an upstream gradient with strides 0
    assert torch.equal(expanded, grad(out, weights, torch.ones_like(out))[0])


def test_addresses_beyond_32_bits(draw) -> None:
    stride = 2**31 + 16
    inputs = draw(batch=2, channels=16, heads=1)
    tokens = inputs.value.shape[1]
    memory = torch.UntypedStorage(2 * (stride + tokens * 16))  # 4 GB, of which three pages are touched
    value = torch.empty(0, dtype=torch.bfloat16).set_(memory, 0, (2, tokens, 1, 16), (stride, 16, 16, 1))
    value.copy_(inputs.value)
    assert torch.equal(ms_deform_attn(value, *inputs[1:]), ms_deform_attn(value.contiguous(), *inputs[1:]))


@pytest.mark.parametrize("needed", [n for n in itertools.product((False, True), repeat=3) if any(n)])
def test_only_the_gradients_that_are_needed(draw, needed) -> None:
    inputs = draw().differentiable()
    tensors = [inputs.value, inputs.locations, inputs.weights]
    expected = grad(ms_deform_attn(*inputs).square().sum(), tensors)
    for tensor, need in zip(tensors, needed, strict=True):
        tensor.requires_grad_(need)
    ms_deform_attn(*inputs).square().sum().backward()
    for tensor, need, truth in zip(tensors, needed, expected, strict=True):
        assert torch.equal(tensor.grad, truth) if need else tensor.grad is None


def test_mixed_types_compute_in_the_widest(draw) -> None:
    inputs = draw()
    half = inputs._replace(value=inputs.value.half())
    assert error(ms_deform_attn(*half), defined(*half.to(torch.float64)).half().double()) == 0
    assert ms_deform_attn(*half).dtype == torch.float16
    single = inputs._replace(value=inputs.value.float(), weights=inputs.weights.float())
    assert error(ms_deform_attn(*single), defined(*single.to(torch.float64)).float().double()) < 1e-7


# Mutants


def sampled_by(value, shapes, locations, weights, *, padding="zeros", align=False, mode="bilinear", grad_scale=1.0):
    """The output of a kernel with another sampling convention."""
    out = 0
    for level, (tokens, (h, w)) in enumerate(zip(value.split([h * w for h, w in shapes], dim=1), shapes, strict=True)):
        image = tokens.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (h, w))
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        sampled = F.grid_sample(image, grid, mode, padding, align)  # (B*M, D, Q, P)
        out = out + (
            sampled.unflatten(0, value.shape[::2][:2]) * weights[:, :, :, level].transpose(1, 2)[:, :, None]
        ).sum(-1)
    return out.permute(0, 3, 1, 2).flatten(2)


MUTANTS = {
    "border padding": lambda v, s, x, w: sampled_by(v, s, x, w, padding="border"),
    "reflection padding": lambda v, s, x, w: sampled_by(v, s, x, w, padding="reflection"),
    "align corners": lambda v, s, x, w: sampled_by(v, s, x, w, align=True),
    "nearest pixel": lambda v, s, x, w: sampled_by(v, s, x, w, mode="nearest"),
    "x and y swapped": lambda v, s, x, w: sampled_by(v, s, x.flip(-1), w),
    "height and width swapped": lambda v, s, x, w: sampled_by(v, tuple((b, a) for a, b in s), x, w),
    "half a pixel off": lambda v, s, x, w: sampled_by(v, s, x + 0.5 / torch.tensor([[b, a] for a, b in s])[:, None], w),
    "weights ignored": lambda v, s, x, w: sampled_by(v, s, x, torch.full_like(w, 1 / w[0, 0, 0].numel())),
    "weights normalised": lambda v, s, x, w: sampled_by(v, s, x, w / w.sum((-1, -2), keepdim=True)),
    "points swapped": lambda v, s, x, w: sampled_by(v, s, x, w.flip(-1)),
    "levels swapped": lambda v, s, x, w: sampled_by(v, s, x.flip(3), w),
    "heads swapped": lambda v, s, x, w: sampled_by(v.flip(2), s, x, w),
    "images swapped": lambda v, s, x, w: sampled_by(v.flip(0), s, x, w),
    "last channel missing": lambda v, s, x, w: sampled_by(F.pad(v[..., :-1], (0, 1)), s, x, w),
    "last level missing": lambda v, s, x, w: sampled_by(v, s, x, F.pad(w[..., :-1, :], (0, 0, 0, 1))),
    "half coordinates": lambda v, s, x, w: sampled_by(v, s, x.half().double(), w),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_tolerances_catch_a_wrong_kernel(draw, mutant) -> None:
    """Each exceeds ten times the tolerance of float32, in every draw."""
    for _ in range(20):
        inputs = draw(queries=13, points=3)
        inputs = inputs._replace(weights=inputs.weights * 1.25)  # detects weights that are normalised twice
        truth = defined(*inputs)
        assert error(sampled_by(*inputs), truth) < FORWARD[torch.float64]  # the unchanged sampling is right
        assert error(MUTANTS[mutant](*inputs), truth) > 10 * FORWARD[torch.float32]
