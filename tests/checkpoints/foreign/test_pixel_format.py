"""Pixels of foreign models: order of channels, mean and standard deviation."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detrs.backbones.timm import BackboneConfig
from detrs.checkpoints.foreign.pixel_format import BGR, RGB, PixelFormat, pixel_format
from detrs.errors import UserError


def tensors(mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Tensor]:
    return {"pixel_mean": torch.tensor(mean)[:, None, None], "pixel_std": torch.tensor(std)[:, None, None]}


def test_published_weights_expect_the_pixels_of_imagenet() -> None:
    default = BackboneConfig()
    for each in (RGB, BGR):
        assert each.on_unit_interval() == (default.mean, default.std)
    assert pixel_format({}, "a.pth") == RGB


@pytest.mark.parametrize("form", [RGB, BGR])
def test_the_file_contains_mean_and_standard_deviation(form: PixelFormat) -> None:
    """As float32; the order of channels follows from the mean."""
    found = pixel_format(tensors(form.mean, form.std), "a.pth")
    assert found.order == form.order
    assert found.on_unit_interval() == form.on_unit_interval()


@pytest.mark.parametrize("form", [RGB, BGR, PixelFormat("bgr", (100.0, 110.0, 130.0), (50.0, 60.0, 70.0))])
def test_the_first_convolution_gives_the_same_features_of_the_same_image(form: PixelFormat) -> None:
    """Of an image in the order of the file with 0..255, and of the RGB image with [0, 1]."""
    torch.manual_seed(0)
    image, weight = torch.randint(256, (1, 3, 17, 23)).double(), torch.randn(5, 3, 3, 3).double()
    column = [torch.tensor(values).double().view(3, 1, 1) for values in (form.mean, form.std)]
    theirs = F.conv2d((image - column[0]) / column[1], weight)
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in form.on_unit_interval())
    rgb = image.flip(1) if form.order == "bgr" else image
    ours = F.conv2d((rgb / 255 - mean) / std, form.converted(weight))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert torch.equal(form.converted(form.converted(weight)), weight)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"pixel_mean": torch.zeros(3)}, "expected three numbers in 'pixel_std', got no such tensor"),
        (tensors((1.0, 2.0), (1.0, 1.0, 1.0)), r"expected three numbers in 'pixel_mean', got shape \(2, 1, 1\)"),
        (tensors((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)), "the order of channels is unknown"),
        (tensors(BGR.mean, (1.0, 1.0, 1.0)), "the strides of Caffe, which is not supported"),
        (tensors(RGB.mean, (58.0, 0.0, 57.0)), "'pixel_std' must be positive, got 0"),
    ],
)
def test_other_pixels_are_rejected(found: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pixel_format(found, "a.pth")
