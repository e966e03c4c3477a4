"""Data settings and augmentation, in uint8.

Every augmentation is drawn first as a ``Plan`` of plain numbers, a pure function of a random generator and of the size
of the image, and then applied. So the padded size of a batch is known before any image is decoded, and no global random
state is used.

The recipe is DETR's (Carion et al., arXiv 2005.12872, A.4), and ``crop`` is the same recipe at any ``resize_to``:

1. horizontal flip of half of the images (done last here, when the image is smallest: crop windows are uniform, so the
   distribution is the same);
2. in half of the images: resize the short side to 400, 500 or 600 of 800, and crop a window with sides in 384..600;
3. resize the short side to one of 11 steps between 480 and 800 of 800, the long side at most 1333.
"""

from typing import NamedTuple

import numpy as np
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detrs.config.data import OFFICIAL_MIN_SCALE, OFFICIAL_SIZE, DataConfig
from detrs.data.preprocessing import resized_size
from detrs.data.sample import Sample
from detrs.isolation import float32_by_default

NUM_SCALES = 11
CROP_SHORTS = (400, 500, 600)
"""Short sides before cropping, at the official size 800."""
CROP_SIDES = (384, 600)
"""Smallest and largest side of the crop window, at the official size 800."""
CROP_MAX_ASPECT = 16
"""The official recipe does not limit the long side before cropping; a panorama would exhaust the memory."""


class Plan(NamedTuple):
    """The augmentation of one image; all sizes are (height, width) in pixels."""

    flip: bool
    """Flip horizontally, after the other steps."""
    crop: tuple[tuple[int, int], tuple[int, int, int, int]] | None
    """Size to resize to before cropping, and the window (top, left, height, width) in it."""
    size: tuple[int, int]
    """Final size."""


def plan(config: DataConfig, size: tuple[int, int], random: np.random.Generator) -> Plan:
    """Draw the augmentation of a training image of ``size`` (height, width)."""
    short, long = OFFICIAL_SIZE if config.augment == "official" else config.resize_to
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
    """Draw the size before cropping and the crop window; ``factor`` is the short side relative to the official 800."""
    short = round(factor * CROP_SHORTS[random.integers(len(CROP_SHORTS))])
    height, width = resized_size(size, (short, CROP_MAX_ASPECT * short))
    low, high = (round(factor * side) for side in CROP_SIDES)
    window_width, window_height = (
        int(random.integers(min(low, side), min(high, side), endpoint=True)) for side in (width, height)
    )
    top = int(random.integers(0, height - window_height, endpoint=True))
    left = int(random.integers(0, width - window_width, endpoint=True))
    return (height, width), (top, left, window_height, window_width)


@float32_by_default()  # torchvision scales boxes in the default dtype
def apply(plan: Plan, sample: Sample) -> Sample:
    """``sample`` cropped, resized and flipped as planned; boxes are clipped, boxes without area are dropped."""
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
