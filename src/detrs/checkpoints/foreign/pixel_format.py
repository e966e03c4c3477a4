"""Pixels that the first convolution of a foreign model expects: order of channels, mean and standard deviation.

Our models expect RGB on [0, 1]. A model for BGR becomes one for RGB by reversing the input channels of its first
convolution; mean and standard deviation for 0..255 are divided by 255. Both are exact and reversible.

BGR is usual for the Caffe weights of ImageNet (MSRA), with a standard deviation of 1. Their ResNet has its strides in
the first convolution of a block, which weights do not show and which ours does not have, so these files are rejected.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from detrs.errors import UserError

Channels = tuple[float, float, float]
DIGITS = 7
"""Decimals of mean and standard deviation on [0, 1]; more are rounding errors of float32."""
MEAN, STD = "pixel_mean", "pixel_std"
"""Names of tensors (3, 1, 1) that older versions of detectron2 save with the weights."""
METADATA = (MEAN, STD)


class PixelFormat(NamedTuple):
    """Normalized pixels are ``(pixel - mean) / std``, for pixels of 0..255."""

    order: Literal["rgb", "bgr"]
    mean: Channels
    """In the order of the channels."""
    std: Channels

    def on_unit_interval(self) -> tuple[Channels, Channels]:
        """Mean and standard deviation of red, green and blue for pixels on [0, 1]."""
        mean, std = (tuple(round(value / 255, DIGITS) for value in values) for values in (self.mean, self.std))
        (a, b, c), (d, e, f) = mean, std
        return ((a, b, c), (d, e, f)) if self.order == "rgb" else ((c, b, a), (f, e, d))

    def converted(self, first_convolution: Tensor) -> Tensor:
        """Weight (C, 3, h, w) of the first convolution for RGB, given one for this format, and back."""
        return first_convolution if self.order == "rgb" else first_convolution.flip(1)


UNIT_STD = (1.0, 1.0, 1.0)
RGB = PixelFormat("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
"""Of torchvision's ImageNet weights: published weights of Sparse R-CNN in all layouts."""
BGR = PixelFormat("bgr", RGB.mean[::-1], RGB.std[::-1])
"""The same for images in the order of OpenCV."""


def pixel_format(tensors: Mapping[str, Tensor], source: object) -> PixelFormat:
    """The format of a file: that of ``pixel_mean`` and ``pixel_std`` if it has them, otherwise ``RGB``.

    The mean of ImageNet increases from blue to red, which shows the order of channels.

    Raises:
        UserError: they are not three (positive) numbers, do not show the order of channels, or are those of Caffe.
    """
    if not any(name in tensors for name in METADATA):
        return RGB
    values = []
    for name in METADATA:
        tensor = tensors.get(name)
        if tensor is None or tensor.numel() != 3:
            found = "no such tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
            raise UserError(f"'{source}': expected three numbers in '{name}', got {found}.")
        red, green, blue = tensor.flatten().tolist()
        values.append((red, green, blue))
    mean, std = values
    if min(std) <= 0:
        raise UserError(f"'{source}': '{STD}' must be positive, got {min(std):g}.")
    if mean[0] == mean[2]:
        raise UserError(
            f"'{source}' has the same mean of the first and the last channel ('{MEAN}'), so the order of channels is "
            "unknown. Expected the mean of ImageNet."
        )
    if std == UNIT_STD:
        raise UserError(
            f"'{source}' has a standard deviation of 1 ('{STD}'): its backbone is a ResNet with the strides of Caffe, "
            "which is not supported. Expected the ResNet of torchvision, as in the published weights."
        )
    return PixelFormat("rgb" if mean[0] > mean[2] else "bgr", mean, std)
