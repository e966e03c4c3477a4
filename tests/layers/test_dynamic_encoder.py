"""The dynamic encoder: limits in which it is an ordinary convolution, and independence of padding."""

import torch
import torch.nn.functional as F
from torch import Tensor

from detrs.layers.dynamic_encoder import DeformableConvolution, DynamicEncoderLayer, DynamicReLU, doubled
from detrs.structures import Pyramid

DIM = 32


def pyramid(shapes: tuple[tuple[int, int], ...], tokens: Tensor, padding: Tensor) -> Pyramid:
    batch, count = padding.shape
    return Pyramid(
        tokens=tokens,
        position=torch.zeros(batch, count, 0),
        reference_points=torch.zeros(batch, count, 2),
        padding=padding,
        shapes=shapes,
        valid_ratio=torch.ones(batch, len(shapes), 2),
        image_sizes=torch.ones(batch, 2, dtype=torch.long),
    )


@torch.no_grad()
def test_without_offsets_it_is_a_convolution_of_half_the_weight() -> None:
    """Zero offsets, and modulation 0.5 = sigmoid(0)."""
    torch.manual_seed(0)
    x, none = torch.randn(2, DIM, 7, 11), torch.zeros(2, 7, 11, dtype=torch.bool)
    layer = DeformableConvolution(DIM, stride=1)
    layer.bias.normal_()
    found = layer(x, torch.zeros(2, 18, 7, 11), torch.full((2, 9, 7, 11), 0.5), none)
    expected = layer.norm(F.conv2d(x, 0.5 * layer.weight, layer.bias, padding=1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    finer = DeformableConvolution(DIM, stride=2)
    found = finer(torch.randn(2, DIM, 13, 22), torch.zeros(2, 18, 7, 11), torch.ones(2, 9, 7, 11), none)
    assert found.shape == (2, DIM, 7, 11)  # of the coarser level


@torch.no_grad()
def test_offsets_are_rows_then_columns() -> None:
    """One cell down moves the content up."""
    torch.manual_seed(0)
    x, none = torch.randn(1, DIM, 9, 12), torch.zeros(1, 9, 12, dtype=torch.bool)
    layer, ones = DeformableConvolution(DIM, stride=1), torch.ones(1, 9, 9, 12)
    layer.norm = torch.nn.GroupNorm(1, DIM)
    offsets = torch.zeros(1, 18, 9, 12)
    offsets[:, 0::2] = 1.0
    shifted = F.conv2d(F.pad(x, (1, 1, 0, 2)), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x, offsets, ones, none), layer.norm(shifted), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_dynamic_relu_without_coefficients_is_relu() -> None:
    """Coefficients of zero: hard sigmoid 0.5, so a1 = 1 and a2 = b1 = b2 = 0."""
    layer = DynamicReLU(DIM, 4)
    layer.coefficients.weight.zero_()
    layer.coefficients.bias.zero_()
    x = torch.randn(2, DIM, 5, 7)
    torch.testing.assert_close(layer(x, x.mean((2, 3))), x.relu())


@torch.no_grad()
def test_interpolation_does_not_depend_on_padding() -> None:
    x, padding = torch.randn(1, 3, 5, 8), torch.ones(1, 5, 8, dtype=torch.bool)
    padding[:, :3, :6] = False
    alone = doubled(x[:, :, :3, :6], padding[:, :3, :6], (5, 11))
    torch.testing.assert_close(doubled(x, padding, (9, 15))[:, :, :5, :11], alone)
    expected = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
    torch.testing.assert_close(doubled(x, torch.zeros_like(padding), (10, 16)), expected)


@torch.no_grad()
def test_a_layer_does_not_depend_on_padding_and_mixes_neighbors_only() -> None:
    torch.manual_seed(0)
    layer = DynamicEncoderLayer(DIM)
    for parameter in layer.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    small, large = ((8, 12), (4, 6), (2, 3)), ((12, 16), (6, 8), (3, 4))
    maps = [torch.randn(1, DIM, *shape) for shape in large]
    masks = [torch.ones(1, *shape, dtype=torch.bool) for shape in large]
    for mask, (height, width) in zip(masks, small, strict=True):
        mask[:, :height, :width] = False
    cut = [x[..., :height, :width] for x, (height, width) in zip(maps, small, strict=True)]

    def run(shapes: tuple[tuple[int, int], ...], levels: list[Tensor], paddings: list[Tensor]) -> list[Tensor]:
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], 1)
        return layer(pyramid(shapes, tokens, torch.cat([mask.flatten(1) for mask in paddings], 1))).maps()

    none = [torch.zeros(1, *shape, dtype=torch.bool) for shape in small]
    padded, alone = run(large, maps, masks), run(small, cut, none)
    for mine, other, (height, width) in zip(padded, alone, small, strict=True):
        torch.testing.assert_close(mine[..., :height, :width], other, atol=1e-5, rtol=1e-4)
    changed = run(small, [*cut[:2], cut[2] + 1], none)
    assert torch.equal(changed[0], alone[0])
    assert (changed[1] - alone[1]).abs().max() > 1e-3 and (changed[2] - alone[2]).abs().max() > 1e-3


@torch.no_grad()
def test_fusion_and_residual_are_settings() -> None:
    """With one level there is one candidate, of which mean and sum are the same; with two, the sum is larger."""
    torch.manual_seed(0)
    shapes = ((6, 10), (3, 5))
    memory = pyramid(shapes, torch.randn(1, 75, DIM), torch.zeros(1, 75, dtype=torch.bool))
    layer = DynamicEncoderLayer(DIM)
    layer.gate.coefficients.weight.zero_()
    layer.gate.coefficients.bias.zero_()  # ReLU
    mean = layer(memory).tokens
    layer.fusion = "sum"
    torch.testing.assert_close(layer(memory).tokens, 2 * mean)  # two levels: two candidates each
    layer.residual = True
    torch.testing.assert_close(layer(memory).tokens, 2 * mean + memory.tokens)
