"""Preprocessing: how an image becomes the input of a detector, the same in training, evaluation and prediction."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torchvision.transforms.v2.functional import resize_image

from detrs.config.data import MAX_SIDE
from detrs.structures import Batch


class FixedSize(NamedTuple):
    """The only size of images of an exported file with static size."""

    height: int
    """In pixels."""
    width: int
    keep_ratio: bool
    """Images are resized to fit into this size, and padded; otherwise they are resized to it, and distorted if they
    have another aspect ratio."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resizing and normalization that a detector expects.

    The way back to the original image needs nothing else: boxes are in [0, 1] of the image, whatever its size.
    """

    resize_to: tuple[Annotated[int, Ge(1), Le(MAX_SIDE)], Annotated[int, Ge(1), Le(MAX_SIDE)]]
    """(short, long) in pixels: the short side becomes ``short`` unless the long side would exceed ``long``."""
    mean: tuple[float, float, float]
    """Of each color channel, on [0, 1]."""
    std: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)], Annotated[float, Gt(0)]]
    """Of each color channel, on [0, 1]."""
    fixed: FixedSize | None = None
    """Instead of ``resize_to``, in exported files with static size."""

    def resize(self, image: Tensor) -> Tensor:
        """An image (3, H, W) at the size for evaluation."""
        return resized(image, self.size_of((image.shape[-2], image.shape[-1])))

    def size_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) for evaluation of an image of (height, width) ``size``."""
        return resized_size(size, self.resize_to, self.fixed)

    def normalize(self, batch: Batch) -> Batch:
        """A uint8 batch as float32: ``(pixel / 255 - mean) / std``, zero where padded; channels-last, on its device."""
        pixels = batch.images.permute(0, 2, 3, 1).contiguous().to(torch.float32, copy=True)  # (B, H, W, 3)
        rows, width = pixels.flatten(2), pixels.shape[2]  # (B, H, W * 3): rows of three numbers are slow on CPUs
        scale, shift = (each.flatten().repeat(width) for each in self._scale_and_shift(rows.device))
        torch.addcmul(shift, rows, scale, out=rows)
        images = pixels.permute(0, 3, 1, 2)  # (B, 3, H, W)
        return batch._replace(images=images.masked_fill_(batch.padding[:, None], 0.0))

    def normalize_planar(self, images: Tensor, padding: Tensor) -> Tensor:
        """The same numbers as those of ``normalize`` for a batch that is not channels-last, as in exported graphs."""
        scale, shift = self._scale_and_shift(images.device)
        return torch.addcmul(shift, images.to(torch.float32), scale).masked_fill_(padding[:, None], 0.0)

    def _scale_and_shift(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Factor and summand of each channel (3, 1, 1)."""
        scale = torch.tensor([1 / (255 * s) for s in self.std], dtype=torch.float32, device=device)
        shift = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        return scale.view(3, 1, 1), torch.tensor(shift, dtype=torch.float32, device=device).view(3, 1, 1)


def channels_last(image: Tensor) -> Tensor:
    """An image (3, H, W) with the channels of a pixel next to each other in memory; a copy unless it is so already."""
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 image (3, H, W) at ``size``: bilinear with antialiasing, the one resampling of this library.

    The result is channels-last, as are decoded images, batches and the convolutions of most backbones: from file to
    backbone, no pixel changes its layout, which would take as long as decoding.
    """
    return resize_image(channels_last(image), list(size))


def resized_size(size: tuple[int, int], resize_to: tuple[int, int], fixed: FixedSize | None = None) -> tuple[int, int]:
    """Size of an image whose short side becomes ``short`` unless its long side would exceed ``long``.

    DETR's rule to the pixel: Python's rounding of the short side, truncation of the long one, so the long side can
    differ a little from ``long``. Sides are at least 1.

    Args:
        size: (height, width) of the image.
        resize_to: (short, long) in pixels.
        fixed: used instead of ``resize_to``.

    >>> resized_size((480, 640), (800, 1333))
    (800, 1066)
    """
    if fixed is not None:
        return fixed_size(size, fixed)
    (height, width), (short, long) = size, resize_to
    small, large = min(size), max(size)
    if large / small * short > long:
        short = round(long * small / large)
        if short == 0:  # flatter than 2 * long : 1, where the official rule gives an empty image
            return (1, long) if height < width else (long, 1)
    if small == short:
        return size
    other = int(short * large / small)
    return (short, other) if height < width else (other, short)


def fixed_size(size: tuple[int, int], fixed: FixedSize) -> tuple[int, int]:
    """Size of an image within a fixed size, of which it fills at least one side.

    Args:
        size: (height, width) of the image.
        fixed: the fixed size.

    >>> fixed_size((480, 640), FixedSize(320, 320, keep_ratio=True))
    (240, 320)
    """
    (height, width), (most_high, most_wide, keep_ratio) = size, fixed
    if not keep_ratio:
        return most_high, most_wide
    if height * most_wide >= width * most_high:
        return most_high, max(1, round(width * most_high / height))
    return max(1, round(height * most_wide / width)), most_wide
