"""Deformable convolution by our operator against torchvision's, and its gradients."""

import pytest
import torch
import torchvision

from detrs.layers.deformable_convolution import deform_conv2d


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((3, 3), 1, 1), ((3, 3), 2, 1), ((1, 3), 1, 0), ((2, 4), 3, 2)]
)
@pytest.mark.parametrize("spread", [0.0, 2.0, 20.0])
def test_output_and_gradients_are_those_of_torchvision(
    kernel: tuple[int, int], stride: int, padding: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 11, 14, dtype=torch.float64, generator=generator)
    h, w = ((side + 2 * padding - k) // stride + 1 for side, k in zip(x.shape[2:], kernel, strict=True))
    k = kernel[0] * kernel[1]
    # away from whole pixels, where the gradient of bilinear interpolation jumps
    offsets = (torch.randn(2, 2 * k, h, w, dtype=torch.float64, generator=generator) * spread).round() + 0.3
    modulation = torch.rand(2, k, h, w, dtype=torch.float64, generator=generator)
    weight = torch.randn(6, 5, *kernel, dtype=torch.float64, generator=generator)
    bias = torch.randn(6, dtype=torch.float64, generator=generator)
    inputs = [tensor.requires_grad_() for tensor in (x, offsets, modulation, weight, bias)]

    found = deform_conv2d(x, offsets, modulation, weight, bias, stride, padding)
    expected = torchvision.ops.deform_conv2d(x, offsets, weight, bias, stride, padding, mask=modulation)
    torch.testing.assert_close(found, expected)
    factors = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad((found * factors).sum(), inputs),
        torch.autograd.grad((expected * factors).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_offsets_of_another_size_are_an_error() -> None:
    x, weight = torch.zeros(1, 4, 8, 8), torch.zeros(4, 4, 3, 3)
    with pytest.raises(ValueError, match="expected"):
        deform_conv2d(x, torch.zeros(1, 18, 8, 7), torch.zeros(1, 9, 8, 8), weight, torch.zeros(4), 1, 1)
