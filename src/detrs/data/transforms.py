"""What happens to a picture before the detector sees it, in uint8.

Every augmentation is drawn first as a ``Plan`` of plain numbers, a pure function of a random stream and of the size of
the picture, and then applied. So the padded size of a batch is known before any picture is decoded, and no global
random state is touched.

The recipe is DETR's (Carion et al., arXiv 2005.12872, A.4), and ``crop`` is the same recipe at any ``image_size``:

1. horizontal flip in half of the pictures (done last here, when the picture is smallest: windows fall evenly, so the
   outcome has the same distribution);
2. in half of the pictures: resize the short side to 400, 500 or 600 of 800, and cut out a window with sides in
   384..600;
3. resize the short side to one of 11 steps between 480 and 800 of 800, the long side at most 1333.
"""

from typing import NamedTuple

import numpy as np
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detrs.config import OFFICIAL_MIN_SCALE, OFFICIAL_SIZE, DataConfig
from detrs.data.sample import Sample

NUM_SCALES = 11
CROP_SHORTS = (400, 500, 600)
"""Short sides before cropping, at the official size 800."""
CROP_SIDES = (384, 600)
"""Smallest and largest side of the window, at the official size 800."""
CROP_MAX_ASPECT = 16
"""The official recipe does not limit the long side before cropping; a panorama would fill the memory."""


class Plan(NamedTuple):
    """The fate of one picture; all sizes are (height, width) in pixels."""

    flip: bool
    """Mirror left and right, after all the rest."""
    crop: tuple[tuple[int, int], tuple[int, int, int, int]] | None
    """Size to resize to before cropping, and the window (top, left, height, width) in it."""
    size: tuple[int, int]
    """Size in the end."""


def resized_size(size: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
    """Size of a picture whose short side becomes ``short`` unless its long side would exceed ``long``.

    DETR's rule to the pixel: Python's rounding of the short side, truncation of the long one, so that the long side can
    come out a little beside ``long``. Sides never vanish.

    Args:
        size: (height, width) of the picture.
        image_size: (short, long) in pixels.

    >>> resized_size((480, 640), (800, 1333))
    (800, 1066)
    """
    (height, width), (short, long) = size, image_size
    small, large = min(size), max(size)
    if large / small * short > long:
        short = round(long * small / large)
        if short == 0:  # flatter than 2 * long : 1, where the official rule gives an empty picture
            return (1, long) if height < width else (long, 1)
    if small == short:
        return size
    other = int(short * large / small)
    return (short, other) if height < width else (other, short)


def plan(config: DataConfig, size: tuple[int, int], random: np.random.Generator) -> Plan:
    """Draw what will happen to a training picture of ``size`` (height, width)."""
    short, long = OFFICIAL_SIZE if config.augment == "official" else config.image_size
    if config.augment == "none":
        return Plan(False, None, resized_size(size, (short, long)))
    min_scale = OFFICIAL_MIN_SCALE if config.augment == "official" else config.min_scale
    scales = np.linspace(min_scale, 1, NUM_SCALES)
    flip = random.random() < 0.5 and config.mirror
    crop = None
    if config.augment != "flip" and random.random() < 0.5:
        crop = _crop(size, short / OFFICIAL_SIZE[0], random)
    target = (round(short * scales[random.integers(NUM_SCALES)]), long)
    return Plan(flip, crop, resized_size(crop[1][2:] if crop else size, target))


def _crop(
    size: tuple[int, int], factor: float, random: np.random.Generator
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Draw the size before cropping and the window; ``factor`` is the short side relative to the official 800."""
    short = round(factor * CROP_SHORTS[random.integers(len(CROP_SHORTS))])
    height, width = resized_size(size, (short, CROP_MAX_ASPECT * short))
    low, high = (round(factor * side) for side in CROP_SIDES)
    window_width, window_height = (
        int(random.integers(min(low, side), min(high, side), endpoint=True)) for side in (width, height)
    )
    top = int(random.integers(0, height - window_height, endpoint=True))
    left = int(random.integers(0, width - window_width, endpoint=True))
    return (height, width), (top, left, window_height, window_width)


def apply(plan: Plan, sample: Sample) -> Sample:
    """``sample`` flipped, cropped and resized as planned; boxes are clipped, those without area dropped."""
    image, boxes, labels = sample.image, sample.boxes, sample.labels
    if plan.crop is not None:
        before, window = plan.crop
        image, boxes = F.resize(image, list(before)), F.resize(boxes, list(before))
        image, boxes = F.crop(image, *window), F.crop(boxes, *window)
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, labels = tv_tensors.wrap(boxes[keep], like=boxes), labels[keep]
    image, boxes = F.resize(image, list(plan.size)), F.resize(boxes, list(plan.size))
    if plan.flip:
        image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
    return sample._replace(image=image, boxes=boxes, labels=labels)


def resize(
    image: Tensor, boxes: tv_tensors.BoundingBoxes | None, image_size: tuple[int, int]
) -> tuple[Tensor, tv_tensors.BoundingBoxes | None]:
    """Image (3, H, W) and boxes at the size a detector is evaluated at; ``image_size`` is (short, long) in pixels."""
    size = list(resized_size((image.shape[-2], image.shape[-1]), image_size))
    return F.resize(image, size), None if boxes is None else F.resize(boxes, size)
