"""The GPU kernels against the reference: in Triton's interpreter on the CPU, and on a GPU if there is one."""

import importlib.util
import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

from detrs.ops.ms_deform_attn import reference
from detrs.ops.ms_deform_attn.inputs import Inputs
from detrs.structures import Shapes

triton = pytest.importorskip("triton")

from detrs.ops.ms_deform_attn import triton_gpu  # noqa: E402

# The interpreter computes with numpy, which warns about samples that are far out of bounds.
pytestmark = [
    pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning"),  # Triton 3.6
]

FORWARD = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
BACKWARD = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
FORMS = ("plain", "point", "box")
NAMES = ("value", "locations", "weights", "reference_points")
ALL = (True, True, True, True)


class Case(Inputs):
    def to(self, device: str) -> "Case":
        return Case(*(x.to(device) if isinstance(x, Tensor) else x for x in self))


def draw(
    form: str = "plain",
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
    queries: int = 7,
    heads: int = 2,
    channels: int = 8,
    points: tuple[int, ...] = (2, 1),
    shapes: Shapes = ((5, 7), (3, 2)),
    padded: bool = False,
    seed: int = 0,
) -> Case:
    """Samples from two pixels before each level to two behind it, at least 0.1 pixels away from every kink."""
    random = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(shapes).flip(1).double()  # (L, 2): width and height
    tokens = int(sizes.prod(1).sum())
    level = [i for i, count in enumerate(points) for _ in range(count)]
    samples = (batch, queries, heads, len(level), 2)
    cell = torch.floor(torch.rand(samples, generator=random).double() * (sizes[level] + 3)) - 2
    positions = cell + 0.1 + 0.8 * torch.rand(samples, generator=random)  # in pixels
    center = None
    if form == "plain":
        locations = (positions + 0.5) / sizes[level]
    else:
        center = torch.rand(batch, queries, len(points), 4 if form == "box" else 2, generator=random).mul(0.8).add(0.1)
        near = center.double()[:, :, None, level]
        unit = near[..., 2:] * sizes[level] * (0.5 / torch.tensor(points)[level, None]) if form == "box" else 1
        locations = (positions + 0.5 - near[..., :2] * sizes[level]) / unit
    return Case(
        torch.randn(batch, tokens, heads, channels, generator=random).to(dtype),
        shapes,
        points,
        locations.float(),
        torch.randn(samples[:-1], generator=random),
        center,
        torch.rand(batch, tokens, generator=random) < 0.3 if padded else None,
    )


def truth(case: Case, upstream: Tensor) -> list[Tensor]:
    """Output and gradients of the reference in float64."""
    tensors = [x.double().requires_grad_() for x in (case.value, case.locations, case.weights)]
    value, locations, weights = tensors
    if case.padding is not None:
        value = value.masked_fill(case.padding[..., None, None], 0)
    if case.reference_points is not None:
        tensors.append(case.reference_points.double().requires_grad_())
        locations = reference.locate(locations, tensors[3], case.shapes, case.points)
        weights = weights.softmax(-1)
    out = reference.ms_deform_attn(value, case.shapes, case.points, locations, weights)
    return [out, *grad(out, tensors, upstream.double())]


def error(ours: Tensor, expected: Tensor) -> float:
    """Largest error, relative to the largest value (or to 1)."""
    return ((ours.cpu().double() - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


def upstream_of(case: Case) -> Tensor:
    batch, queries, heads, _ = case.weights.shape
    random = torch.Generator().manual_seed(1)
    return torch.randn(batch, queries, heads * case.value.shape[3], generator=random).to(case.value.dtype)


class Runner:
    """Runs the kernels of a module on a device. Uninitialised memory is filled with NaN."""

    def __init__(self, module: ModuleType, device: str) -> None:
        self.module = module
        self.device = device

    def __call__(self, case: Case, upstream: Tensor | None = None, needs: tuple = ALL, binned: bool = False) -> list:
        """Output and gradients; ``binned`` selects how the gradient of the value is computed."""
        case, upstream = case.to(self.device), (upstream_of(case) if upstream is None else upstream).to(self.device)
        needs = (*needs[:3], needs[3] and case.reference_points is not None)
        out = self.module.forward(case)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.module, "use_binned_backward", lambda *sizes: binned)
            patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)  # enabled to fill with NaN
            return [out, *self.module.backward(upstream, case, needs)]


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    yield
    torch.use_deterministic_algorithms(False)


def copy_of_kernels() -> ModuleType:
    """The module of the kernels, loaded a second time."""
    spec = importlib.util.spec_from_file_location("copy_of_kernels", triton_gpu.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[], ModuleType]]:
    """Loads the kernels a second time, for the interpreter."""
    import triton.experimental.gluon  # import before the changes below
    import triton.language.standard
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    def load() -> ModuleType:
        module = copy_of_kernels()
        # The interpreter multiplies bfloat16 as integers.
        module.DOT_TYPES = dict.fromkeys(module.DOT_TYPES, triton.language.float32)
        return module

    language = triton.language
    changed = (language, language.core, language.math, language.standard, language.tensor)
    before = [(library, dict(vars(library))) for library in changed]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for library in (language, language.standard):  # compiled when triton was imported
            for name, function in list(vars(library).items()):
                if isinstance(function, JITFunction):
                    setattr(library, name, InterpretedFunction(function.fn))
        yield load
    for library, names in before:  # the interpreter does not restore everything that it replaces
        for name, original in names.items():
            if vars(library)[name] is not original:
                setattr(library, name, original)


GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])


@pytest.fixture(scope="module", params=["interpreter", GPU])
def run(request) -> Runner:
    if request.param == "cuda":
        return Runner(triton_gpu, "cuda")
    return Runner(request.getfixturevalue("load")(), "cpu")


# What they compute


@pytest.mark.parametrize("binned", [False, True], ids=["atomics", "binned"])
@pytest.mark.parametrize("form", FORMS)
def test_equals_float64_reference(run, form, binned) -> None:
    """Points per level differ, one level has a single pixel, one a single row, tokens are padded."""
    case = draw(form, queries=13, channels=5, points=(3, 1, 2), shapes=((5, 9), (1, 1), (1, 3)), padded=form != "plain")
    upstream = upstream_of(case)
    expected = truth(case, upstream)
    found = run(case, upstream, binned=binned)
    assert error(found[0], expected[0]) < FORWARD[torch.float32]
    for name, ours, theirs in zip(NAMES, found[1:], expected[1:], strict=False):
        assert ours.dtype == torch.float32 and ours.shape == theirs.shape
        assert error(ours, theirs) < BACKWARD[torch.float32], name


@pytest.mark.parametrize("binned", [False, True], ids=["atomics", "binned"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_concerns_the_values_only(run, dtype, binned) -> None:
    case = draw("box", dtype, queries=5, channels=32)
    upstream = upstream_of(case)
    found, expected = run(case, upstream, binned=binned), truth(case, upstream)
    assert found[0].dtype == found[1].dtype == dtype and found[2].dtype == torch.float32
    assert error(found[0], expected[0]) < FORWARD[dtype]
    for name, ours, theirs in zip(NAMES, found[1:], expected[1:], strict=True):
        assert error(ours, theirs) < BACKWARD[dtype], name


@pytest.mark.parametrize("channels", [1, 16, 71, 128])
def test_any_number_of_channels(run, channels) -> None:
    case = draw(channels=channels, queries=3, batch=1)
    upstream = upstream_of(case)
    expected = truth(case, upstream)
    for binned in (False, True):
        found = run(case, upstream, binned=binned, needs=(True, True, not binned, False))
        assert error(found[0], expected[0]) < FORWARD[torch.float32]
        assert error(found[1], expected[1]) < BACKWARD[torch.float32]
        assert error(found[2], expected[2]) < BACKWARD[torch.float32]


@pytest.mark.parametrize("seed", range(2))
def test_long_bins_and_many_tiles(run, seed, monkeypatch) -> None:
    """More than one tile per level, so that they overlap, and more samples in a bin than one program adds up."""
    if run.device == "cuda":  # compiled kernels keep their constants
        run = Runner(copy_of_kernels(), "cuda")
    monkeypatch.setattr(run.module, "CHUNK", triton.language.constexpr(16))
    case = draw(batch=1, heads=1, queries=83, channels=4, points=(1, 2), shapes=((9, 16), (2, 2)), seed=seed)
    upstream = upstream_of(case)
    found = run(case, upstream, needs=(True, False, False, False), binned=True)
    assert error(found[1], truth(case, upstream)[1]) < BACKWARD[torch.float32]


def test_bins_give_the_same_bits_each_time(run) -> None:
    case = draw("point", batch=1, queries=23, channels=4)
    first, second = (run(case, binned=True) for _ in range(2))
    assert all(torch.equal(ours, same) for ours, same in zip(first, second, strict=True))


# Locations at pixel boundaries and out of bounds


def sample(run, x: float, y: float, size: tuple[int, int], value: Tensor, binned: bool = False) -> list[Tensor]:
    """One sample at a position in pixels, its value and its gradients."""
    h, w = size
    location = (torch.tensor([x, y]) + 0.5) / torch.tensor([w, h])
    case = Case(value, (size,), (1,), location.view(1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1), None, None)
    return [x.cpu() for x in run(case, torch.ones(1, 1, 4), binned=binned)]


@pytest.mark.parametrize("binned", [False, True], ids=["atomics", "binned"])
def test_at_the_centre_of_a_pixel_lies_its_value_and_the_slope_to_the_next(run, binned) -> None:
    value = torch.tensor([[0.0, 1, 4, 9], [16, 25, 36, 49]]).reshape(1, 8, 1, 1).expand(1, 8, 1, 4)
    out, grad_value, grad_locations, grad_weights, _ = sample(run, 1, 0, (2, 4), value, binned)
    assert out.flatten().tolist() == [1, 1, 1, 1]
    assert grad_value[0, :, 0, 0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    assert grad_locations.flatten().tolist() == [4 * 4 * (4 - 1), 4 * 2 * (25 - 1)]
    assert grad_weights.item() == 4


def test_edges_fade_to_zero_within_one_pixel(run) -> None:
    value = torch.ones(1, 6, 1, 4)
    assert sample(run, -0.5, 1, (2, 3), value)[0].flatten().tolist() == [0.5] * 4
    assert sample(run, 2.5, -0.5, (2, 3), value)[0].flatten().tolist() == [0.25] * 4
    for x, y in ((-1, 0), (3, 0), (0, -1), (0, 2)):
        assert not any(found.any() for found in sample(run, x, y, (2, 3), value))


@pytest.mark.parametrize("form", ["plain", "box"])
def test_far_away_is_exactly_nothing(run, form) -> None:
    """Values are surrounded by NaN, so that reads out of bounds are detected."""
    case = draw(form, batch=1, heads=1, queries=16)
    memory = torch.full((case.value.numel() + 2000,), math.nan, device=run.device)
    value = memory[1000:-1000].view(case.value.shape).copy_(case.value)
    locations = case.locations.clone()
    far = torch.tensor([-1e6, 1e6, -1e30, 1e30, math.inf, -math.inf, math.nan])
    locations[:, :7, ..., 0] = far[:, None, None]
    locations[:, 7:14, ..., 1] = far[:, None, None]
    case = case._replace(value=value, locations=locations)
    for binned in (False, True):
        found = run(case, binned=binned)
        assert all(x.isfinite().all() for x in found)
        assert not found[0][:, :14].any() and found[0][:, 14:].any()
        assert all(not x[:, :14].any() for x in found[2:] if x.numel())


def test_nan_goes_where_it_belongs(run) -> None:
    case = draw(queries=9, heads=1)
    for name in ("value", "weights"):
        poisoned = getattr(case, name).clone()
        poisoned[0, ::7] = math.nan
        changed = case._replace(**{name: poisoned})
        found = run(changed)[0].cpu()
        expected = reference.ms_deform_attn(changed.value, case.shapes, case.points, *changed[3:5])
        assert found.isnan().any() and torch.equal(found.isnan(), expected.isnan())
    padded = torch.zeros(case.value.shape[:2], dtype=torch.bool)
    padded[0, ::7] = True
    value = case.value.masked_fill(padded[..., None, None], math.nan)  # padded tokens are not read
    assert all(x.isfinite().all() for x in run(case._replace(value=value, padding=padded)))


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_softmax_survives_any_logits(run, shift) -> None:
    case = draw("point", batch=1, queries=8, points=(9, 12))
    weights = case.weights * 30 + shift
    weights[0, 0, 0, 1:] = -math.inf
    case = case._replace(weights=weights)
    upstream = upstream_of(case)
    for ours, theirs in zip(run(case, upstream, binned=True), truth(case, upstream), strict=True):
        assert error(ours, theirs) < BACKWARD[torch.float32]


# Memory, subsets, choices


def test_any_layout_gives_the_same_bits(run) -> None:
    def shuffled(x: Tensor) -> Tensor:
        """The same numbers in memory with reversed axes and gaps between the elements."""
        order = list(range(x.ndim))[::-1]
        return x.permute(order).repeat_interleave(2, dim=-1).contiguous()[..., ::2].permute(order)

    case = draw("box", batch=1, queries=5, channels=4, padded=True)
    upstream = upstream_of(case)
    head_major = case._replace(value=case.value.transpose(1, 2).contiguous().transpose(1, 2))
    anywhere = Case(*(shuffled(x) if isinstance(x, Tensor) else x for x in case))
    expected = run(case, upstream, binned=True)
    for layout in (head_major, anywhere):
        assert not layout.value.is_contiguous()
        for ours, same in zip(run(layout, shuffled(upstream), binned=True), expected, strict=True):
            assert torch.equal(ours, same)


def test_heads_may_lie_far_apart(run, tmp_path: Path) -> None:
    """By more elements than 32 bits can index, in a sparse file."""
    case = draw(dtype=torch.float16, batch=1, queries=3, heads=3, channels=4)
    channels, apart, before = case.value.shape[3], 2**30, 2**31
    if run.device == "cpu":
        memory = torch.from_file(
            os.fspath(tmp_path / "memory"), shared=True, size=before + 3 * apart, dtype=torch.float16
        )
    else:
        memory = torch.empty(before + 3 * apart, dtype=torch.float16, device=run.device)
    value = memory.as_strided(case.value.shape, (1, channels, apart, 1), before).copy_(case.value)
    for ours, same in zip(run(case._replace(value=value), binned=True), run(case, binned=True), strict=True):
        assert torch.equal(ours, same)


def test_only_the_gradients_that_are_needed(run) -> None:
    case = draw("point", batch=1, queries=3, heads=1, points=(1,), shapes=((2, 3),))
    expected = run(case, binned=True)
    for needs in itertools.product((False, True), repeat=4):
        for ours, truth, needed in zip(run(case, needs=needs, binned=True)[1:], expected[1:], needs, strict=True):
            assert torch.equal(ours, truth) if needed else not ours.numel()


@pytest.mark.parametrize("empty", ["batch", "queries", "heads", "channels", "points"])
def test_nothing_to_do(run, empty) -> None:
    case = draw("box", **{empty: (0, 0) if empty == "points" else 0})
    found = run(case)
    assert not any(x.any() for x in found)
    inputs = (case.value, case.locations, case.weights, case.reference_points)
    assert [x.shape for x in found[1:]] == [x.shape for x in inputs]


def test_level_without_points(run) -> None:
    case = draw("box", points=(0, 2), queries=3)
    upstream = upstream_of(case)
    for binned in (False, True):
        for ours, theirs in zip(run(case, upstream, binned=binned), truth(case, upstream), strict=True):
            assert error(ours, theirs) < BACKWARD[torch.float32]


def test_bins_are_chosen_by_samples_per_row_or_for_determinism(monkeypatch) -> None:
    assert triton_gpu.use_binned_backward(element_size=2, tokens=22223, queries=22223, points=16)
    assert not triton_gpu.use_binned_backward(element_size=2, tokens=22223, queries=300, points=16)
    assert not triton_gpu.use_binned_backward(element_size=4, tokens=22223, queries=22223, points=16)
    chosen = []
    for name in ("_by_bins", "_by_atomics"):
        monkeypatch.setattr(triton_gpu, name, lambda *arguments, name=name: chosen.append(name) or arguments[1])
    case = draw(queries=5)
    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic)
        triton_gpu.backward(upstream_of(case), case, (True, False, False, False))
    assert chosen == ["_by_bins", "_by_atomics"]


@pytest.mark.parametrize("channels", [1, 3, 16, 24, 32, 64, 71, 256, 1025])
@pytest.mark.parametrize("size", [2, 4])
def test_registers_have_room_for_a_tile(channels, size) -> None:
    tile = triton_gpu.tiling(channels, size)
    room = tile["PARTS"] * tile["WIDTH"]
    assert channels <= room < 2 * channels
    assert tile["TILE"] * room <= 64 * triton_gpu.WARP_SIZE
    if channels == 32:  # 16 bytes of a row per lane
        assert tile["PARTS"] == 1 and tile["TILE"] * 32 * size == triton_gpu.WARP_SIZE * 16


# Mutants

MUTANTS = {
    "x and y swapped": ("raw_x = tl.load(location,", "raw_x = tl.load(location + 1,"),
    "corner dropped": ("for right in tl.static_range(2)", "for right in tl.static_range(1)"),
    "half a pixel off": ("scale_x, scale_y = -0.5, -0.5", "scale_x, scale_y = 0.0, 0.0"),
    "border instead of zeros": ("position, -2.0)", "position, 0.0)"),
    "weights ignored": ("(weight * weight_y * weight_x)[None, :, None]", "(weight_y * weight_x)[None, :, None]"),
    "wrong start of levels": ("value += height * width * stride_s", "value += height * stride_s"),
    "heads mixed up": ("value += image * stride_b + head * stride_m", "value += image * stride_b"),
    "images mixed up": ("value += image * stride_b + head * stride_m", "value += head * stride_m"),
    "slope of the wrong sign": ("else -dot * weight_x", "else dot * weight_x"),
    "gradient in pixels": ("grad_x * transform[2], 0.0)", "grad_x, 0.0)"),
    "wrong tile": ("bin_column = (left + 1) // BIN_SIDE", "bin_column = left // BIN_SIDE"),
    "overlap lost": ("for left in tl.static_range(2)", "for left in tl.static_range(1)"),
    "bins shifted": ("right=True", "right=False"),
    "softmax not derived": ("(grad_weight - mean)", "grad_weight"),
    "softmax transposed": ("_softmax(weights, K)", "_softmax(weights - row % 2, K)"),
    "gradient of reference points in pixels": (
        "tl.store(of_level, grad_center_x * width",
        "tl.store(of_level, grad_center_x",
    ),
    "boxes not halved": ("return 0.5 / P", "return 1.0 / P"),
    "padding ignored": ("mask=in_bounds, other=1) == 0", "mask=in_bounds, other=1) < 9"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_killed(load, tmp_path: Path, mutant, monkeypatch) -> None:
    """Each exceeds ten times the tolerance in one of two small cases."""
    source = Path(triton_gpu.__file__).read_text()
    assert MUTANTS[mutant][0] in source
    (tmp_path / "mutant.py").write_text(source.replace(*MUTANTS[mutant]))
    monkeypatch.setattr(triton_gpu, "__file__", os.fspath(tmp_path / "mutant.py"))
    run = Runner(load(), "cpu")
    for form in ("box", "plain"):
        case = draw(form, queries=8, channels=2, points=(2, 1), shapes=((3, 9), (2, 3)), padded=form == "box")
        upstream = upstream_of(case)
        expected = truth(case, upstream)
        if error(run.module.forward(case), expected[0]) > 10 * BACKWARD[torch.float32]:
            return
        found = run(case, upstream, binned=True)
        if any(
            error(x.nan_to_num(9e9), y) > 10 * BACKWARD[torch.float32] for x, y in zip(found, expected, strict=False)
        ):
            return
    pytest.fail("survived")


# Only on a GPU


@pytest.fixture
def on_gpu() -> Runner:
    return Runner(triton_gpu, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
class TestOnGpu:
    """What the interpreter does not cover."""

    @pytest.mark.parametrize("binned", [False, True], ids=["atomics", "binned"])
    @pytest.mark.parametrize("dtype", BACKWARD, ids=str)
    @pytest.mark.parametrize("form", FORMS)
    def test_size_of_an_encoder(self, on_gpu, form, dtype, binned) -> None:
        case = draw(form, dtype, 2, 1747, 8, 32, (4, 4, 4, 4), ((25, 42), (13, 21), (7, 11), (4, 6)), form == "box")
        upstream = upstream_of(case)
        found, expected = on_gpu(case, upstream, binned=binned), truth(case, upstream)
        assert error(found[0], expected[0]) < max(
            FORWARD[dtype], 1e-5
        )  # positions up to 42 leave fewer bits for the fraction
        for name, ours, theirs in zip(NAMES, found[1:], expected[1:], strict=False):
            assert error(ours, theirs) < BACKWARD[dtype], name

    def test_bins_give_the_same_bits_each_time(self, on_gpu) -> None:
        case = draw("box", torch.bfloat16, 2, 1747, 8, 32, (4, 4), ((25, 42), (13, 21)))
        first = on_gpu(case, binned=True)
        for _ in range(5):
            assert all(torch.equal(ours, same) for ours, same in zip(on_gpu(case, binned=True), first, strict=True))

    @pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")  # it is a prototype
    @pytest.mark.parametrize("binned", [False, True], ids=["atomics", "binned"])
    def test_nothing_waits_and_graphs_can_be_captured(self, on_gpu, binned) -> None:
        torch.use_deterministic_algorithms(False)
        case = draw("box", queries=301, channels=32, padded=True).to("cuda")
        upstream = upstream_of(case).cuda()
        expected = on_gpu(case, upstream, binned=binned)  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            on_gpu(case, upstream, binned=binned)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = on_gpu(case, upstream, binned=binned)
        graph.replay()
        torch.cuda.synchronize()
        for ours, theirs in zip(found, expected, strict=True):
            assert not theirs.numel() or error(ours, theirs.double().cpu()) < 1e-6

    def test_number_of_queries_and_sizes_compile_nothing_anew(self, on_gpu) -> None:
        def compiled() -> int:
            names = ("_forward", "_backward", "_add", "_bin", "_accumulate_tile", "_gather")
            return sum(len(cache[0]) for name in names for cache in getattr(triton_gpu, name).device_caches.values())

        for binned in (False, True):
            on_gpu(draw(queries=5), binned=binned)
        before = compiled()
        small = ((5, 7), (3, 2))
        for queries, shapes in ((1, small), (16, small), (300, ((16, 32), (1, 1))), (17, ((1, 1), (8, 16)))):
            for binned in (False, True):
                on_gpu(draw(queries=queries, shapes=shapes, batch=queries % 3 + 1), binned=binned)
        assert compiled() == before

    def test_addresses_beyond_32_bits(self, on_gpu) -> None:
        stride = 2**31 + 16
        case = draw(dtype=torch.bfloat16, channels=16, heads=1).to("cuda")
        tokens = case.value.shape[1]
        memory = torch.empty(stride + tokens * 16, dtype=torch.bfloat16, device="cuda")
        value = memory.as_strided((2, tokens, 1, 16), (stride, 16, 16, 1)).copy_(case.value)
        found, expected = on_gpu(case._replace(value=value)), on_gpu(case)
        assert all(torch.equal(ours, same) for ours, same in zip(found, expected, strict=True) if ours.dim() != 4)
