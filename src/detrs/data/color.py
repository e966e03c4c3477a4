"""Color jitter in uint8, by the transforms of torchvision with drawn numbers.

The ranges are those of SimCLR (Chen et al., arXiv 2002.05709, appendix A) for a strength in [0, 1].
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import (
    adjust_brightness_image,
    adjust_hue_image,
    adjust_saturation_image,
    rgb_to_grayscale_image,
)

FACTOR_RANGE = 0.8
"""Largest deviation from 1 of the factors of brightness, contrast and saturation."""
HUE_RANGE = 0.2
"""Largest shift of the hue, as a fraction of the color circle."""


class Color(NamedTuple):
    """The color jitter of one image."""

    brightness: float
    """Factor, as are contrast and saturation."""
    contrast: float
    saturation: float
    hue: float
    """Shift, as a fraction of the color circle."""
    order: tuple[int, ...] = (0, 1, 2, 3)
    """Of the four adjustments above."""


def draw_color(strength: float, random: np.random.Generator) -> Color:
    """Draw a color jitter of ``strength`` in [0, 1]."""
    brightness, contrast, saturation = (1 + FACTOR_RANGE * strength * random.uniform(-1, 1, 3)).tolist()
    hue = HUE_RANGE * strength * random.uniform(-1, 1)
    return Color(brightness, contrast, saturation, hue, tuple(random.permutation(4).tolist()))


def adjusted(image: Tensor, color: Color) -> Tensor:
    """A uint8 image (3, H, W) with the planned colors."""
    adjustments = (
        (adjust_brightness_image, color.brightness),
        (adjust_contrast, color.contrast),
        (adjust_saturation_image, color.saturation),
        (adjust_hue_image, color.hue),
    )
    for number in color.order:
        adjust, value = adjustments[number]
        image = adjust(image, value)
    return image


def adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Torchvision's ``adjust_contrast`` with the exact mean.

    A sum of floats depends on the number of threads, which differs between loader processes and the main process.
    """
    gray = rgb_to_grayscale_image(image)
    mean = int(gray.sum(dtype=torch.int64)) / gray.numel()
    return image.mul(factor).add_((1 - factor) * mean).clamp_(0, 255).to(torch.uint8)
