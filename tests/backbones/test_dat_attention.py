"""The attentions of DAT: the authors' numbers, and their formulas in loops."""

from itertools import product
from pathlib import Path

import goldens
import jaxtyping
import pytest
import torch
import torch.fx.experimental._config
import torch.nn.functional as F
from torch import nn

from detrs.backbones.dat import ConvolutionalPerceptron
from detrs.backbones.dat_attention import (
    DeformableAttention,
    NeighborhoodAttention,
    Sampling,
    WindowAttention,
)


@torch.no_grad()
def fill(module: nn.Module, expected: list[str]) -> None:
    """Fill the parameters, which have the names of the reference."""
    parameters = dict(module.named_parameters())
    assert sorted(parameters) == expected
    for index, name in enumerate(expected):
        parameters[name].copy_(goldens.parameter(name, index, tuple(parameters[name].shape)))


CVPR = Sampling(plus=False, stride=1, kernel=5, offset_range=2.0)
PLUS = Sampling(plus=True, stride=2, kernel=5, offset_range=-1.0)


@torch.no_grad()
def test_golden_values_of_local_attention(shared: Path) -> None:
    module, values = WindowAttention(24, 3, 4, shift=0), goldens.golden(shared, "dat.local")
    fill(module, values["params"])
    goldens.check(module(goldens.inputs(1000, 2, 24, 8, 8)), values["out"])


@pytest.mark.parametrize(("key", "sampling"), [("dat.deform_cvpr_orf2", CVPR), ("dat.deform_pp_orf-1_s2_k5", PLUS)])
@torch.no_grad()
def test_golden_values_of_deformable_attention(shared: Path, key: str, sampling: Sampling) -> None:
    module, values = DeformableAttention(32, 4, 2, sampling, (8, 10)), goldens.golden(shared, key)
    fill(module, values["params"])
    x = goldens.inputs(1001, 2, 32, 8, 10)
    points = module.points(module.proj_q(x))
    goldens.check(points, values["pos"])
    reference = module.references(*points.shape[2:4], points)
    goldens.check(reference.expand_as(points).contiguous(), values["ref"])
    goldens.check(module(x), values["out"])


@torch.no_grad()
def test_golden_values_of_the_convolutional_perceptron(shared: Path) -> None:
    module, values = ConvolutionalPerceptron(32), goldens.golden(shared, "dat.convmlp")
    fill(module, values["params"])
    goldens.check(module(goldens.inputs(1001, 2, 32, 8, 10)), values["out"])


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, without small values that hide errors."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return module


def region(index: int, size: int, window: int, shift: int) -> int:
    """Side of the rolled map that a cell comes from, along one axis."""
    return (index >= size - window) + (index >= size - shift)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(6, 9), (3, 6), (3, 3), (7, 5)])
@torch.no_grad()
def test_windows_in_a_loop(size: tuple[int, int], shift: int) -> None:
    """Cells attend to the cells of their window; with a shift, to those from the same side of the rolled map."""
    heads, dim, window = 2, 4, 3
    module = randomized(WindowAttention(heads * dim, heads, window, shift))
    x = torch.randn(1, heads * dim, *size, dtype=torch.float64)
    height, width = (side + -side % window for side in size)
    padded = torch.zeros(1, heads * dim, height, width, dtype=torch.float64)
    padded[:, :, : size[0], : size[1]] = x
    qkv = module.proj_qkv(padded[0].permute(1, 2, 0)).view(height, width, 3, heads, dim)
    expected = torch.zeros(height, width, heads * dim, dtype=torch.float64)
    table = module.relative_position_bias_table.view(2 * window - 1, 2 * window - 1, heads)

    def rolled(y: int, x: int) -> tuple[int, int]:
        return (y - shift) % height, (x - shift) % width

    for y, x_ in product(range(height), range(width)):
        own = rolled(y, x_)
        keys, biases = [], []
        for other_y, other_x in product(range(height), range(width)):
            there = rolled(other_y, other_x)
            if any(a // window != b // window for a, b in zip(own, there, strict=True)):
                continue
            apart = shift and any(
                region(a, side, window, shift) != region(b, side, window, shift)
                for a, b, side in zip(own, there, (height, width), strict=True)
            )
            keys.append((other_y, other_x))
            bias = table[own[0] - there[0] + window - 1, own[1] - there[1] + window - 1]
            biases.append(bias - (100.0 if apart else 0.0))
        logits = torch.stack([(qkv[y, x_, 0] * qkv[k][1]).sum(-1) * dim**-0.5 for k in keys]) + torch.stack(biases)
        weights = logits.softmax(0)  # (keys, M)
        expected[y, x_] = (weights[..., None] * torch.stack([qkv[k][2] for k in keys])).sum(0).flatten()
    expected = module.proj_out(expected).permute(2, 0, 1)[None, :, : size[0], : size[1]]
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("size", [(7, 9), (11, 8), (4, 10), (3, 5)])
@torch.no_grad()
def test_neighborhoods_in_a_loop(size: tuple[int, int]) -> None:
    """The nearest 7 x 7 cells; maps with a side below 7 are padded."""
    heads, dim, kernel = 2, 4, 7
    module = randomized(NeighborhoodAttention(heads * dim, heads, kernel))
    x = torch.randn(1, heads * dim, *size, dtype=torch.float64)
    height, width = (max(side, kernel) for side in size)
    padded = torch.zeros(1, heads * dim, height, width, dtype=torch.float64)
    padded[:, :, : size[0], : size[1]] = x
    qkv = module.qkv(padded[0].permute(1, 2, 0)).view(height, width, 3, heads, dim)
    expected = torch.zeros(height, width, heads * dim, dtype=torch.float64)
    for y, x_ in product(range(height), range(width)):
        top, left = min(max(y - 3, 0), height - 7), min(max(x_ - 3, 0), width - 7)
        logits = torch.zeros(heads, 7, 7, dtype=torch.float64)
        values = torch.zeros(heads, 7, 7, dim, dtype=torch.float64)
        for i, j in product(range(7), range(7)):
            _, key, value = qkv[top + i, left + j]
            bias = module.rpb[:, top + i - y + 6, left + j - x_ + 6]
            logits[:, i, j] = (qkv[y, x_, 0] * key).sum(-1) * dim**-0.5 + bias
            values[:, i, j] = value
        weights = logits.flatten(1).softmax(-1).view(heads, 7, 7, 1)
        expected[y, x_] = (weights * values).sum((1, 2)).flatten()
    expected = module.proj(expected).permute(2, 0, 1)[None, :, : size[0], : size[1]]
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize("sampling", [CVPR, PLUS], ids=["cvpr", "plus"])
@pytest.mark.parametrize("size", [(8, 10), (5, 13)])
@torch.no_grad()
def test_deformable_attention_in_a_loop(sampling: Sampling, size: tuple[int, int]) -> None:
    """Each head of a group samples its keys, and its bias, at the points of the group."""
    module, heads, groups, dim = randomized(DeformableAttention(32, 4, 2, sampling, (8, 10))), 4, 2, 8
    x = torch.randn(1, 32, *size, dtype=torch.float64)
    query = module.proj_q(x)
    points = module.points(query).double()
    height, width = size
    count = points.shape[2] * points.shape[3]
    outputs = []
    channels = 32 // groups
    sampled = torch.zeros(1, 32, 1, count, dtype=torch.float64)
    for group in range(groups):
        part, grid = slice(group * channels, (group + 1) * channels), points[:, group].reshape(1, 1, count, 2)
        sampled[:, part] = F.grid_sample(x[:, part], grid[..., [1, 0]], align_corners=True)
    key, value = module.proj_k(sampled)[0, :, 0], module.proj_v(sampled)[0, :, 0]
    for head in range(heads):
        own, group = slice(head * dim, (head + 1) * dim), head * groups // heads
        logits = query[0, own].flatten(1).T @ key[own] * dim**-0.5
        for i, j in product(range(height), range(width)):
            if sampling.plus:
                place = torch.tensor([i / (height - 1), j / (width - 1)]) * 2 - 1
            else:
                place = torch.tensor([(i + 0.5) / height, (j + 0.5) / width]) * 2 - 1
            shift = 0.5 * (place - points[0, group].reshape(count, 2))
            table = module.rpe_table[None, head : head + 1]
            logits[i * width + j] += F.grid_sample(table, shift[None, None, :, [1, 0]].double(), align_corners=True)[
                0, 0, 0
            ]
        outputs.append((logits.softmax(-1) @ value[own].T).T)
    expected = module.proj_out(torch.cat(outputs).view(1, 32, height, width))
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)  # points and bias are in float32


@pytest.mark.parametrize(
    ("plus", "offset_range", "low", "high"), [(False, -1.0, -1, 1), (True, -1.0, -1, 1), (False, 2.0, -1.5, 1.5)]
)
@torch.no_grad()
def test_range_of_points(plus: bool, offset_range: float, low: float, high: float) -> None:
    sampling = Sampling(plus=plus, stride=1, kernel=3, offset_range=offset_range)
    module = DeformableAttention(32, 4, 2, sampling, (8, 10))
    module.conv_offset[3].weight.mul_(100)
    points = module.points(torch.randn(2, 32, 8, 10) * 10)
    assert low <= points.min() < -0.9 and 0.9 < points.max() <= high
    if offset_range > 0:
        moved = points - module.references(8, 10, points)
        limits = torch.tensor([offset_range / 8, offset_range / 10])
        assert (moved.abs() <= limits + 1e-6).all() and (moved.abs().amax((0, 1, 2, 3)) > 0.99 * limits).all()


@torch.no_grad()
def test_limited_offsets_of_dat_plus_are_in_keys() -> None:
    """With a range, DAT++ divides by one key less."""
    module = DeformableAttention(32, 4, 2, Sampling(plus=True, stride=2, kernel=5, offset_range=2.0), (8, 10))
    module.conv_offset[3].weight.mul_(1e3)
    points = module.points(torch.randn(2, 32, 8, 10) * 10)  # 4 x 5 keys
    moved = (points - module.references(4, 5, points)).abs().amax((0, 1, 2, 3))
    torch.testing.assert_close(moved, torch.tensor([2 / 3, 2 / 4]), atol=1e-2, rtol=0)


@pytest.mark.parametrize("sampling", [CVPR, PLUS], ids=["cvpr", "plus"])
@torch.no_grad()
def test_maps_of_one_cell(sampling: Sampling) -> None:
    module = DeformableAttention(32, 4, 2, sampling, (8, 10))
    for size in ((1, 1), (1, 5), (2, 1)):
        assert module(torch.randn(1, 32, *size)).isfinite().all()


@torch.no_grad()
def test_windows_are_exported_for_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter proves that whole windows cover the map: it finishes, and no size is excluded."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # symbolic sizes are not of type int
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, window=4, shift=2).eval()
    height, width = torch.export.Dim("height", min=5, max=300), torch.export.Dim("width", min=5, max=300)
    shapes = {"x": {0: torch.export.Dim("batch", max=64), 2: height, 3: width}}
    with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # as detrs.exporting
        program = torch.export.export(
            attention,
            (torch.randn(2, 8, 13, 19),),
            dynamic_shapes=shapes,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        ).module()
    for size in ((3, 8, 16, 16), (2, 8, 23, 7), (4, 8, 6, 41)):
        x = torch.randn(size)
        torch.testing.assert_close(program(x), attention(x))
