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
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_area

from detrs.config.data import OFFICIAL_MIN_SCALE, OFFICIAL_SIZE, DataConfig
from detrs.data.preprocessing import resized, resized_size
from detrs.data.sample import Sample

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
    min_visible: float = 0.0
    """Boxes of which less than this fraction of the area is in the window are dropped."""


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


def apply(plan: Plan, sample: Sample) -> Sample:
    """``sample`` cropped, resized and flipped as planned; boxes are clipped.

    Boxes without area are dropped, and those that lost more of it than planned.
    """
    image, boxes, labels = sample.image.as_subclass(Tensor), sample.boxes.as_subclass(Tensor), sample.labels
    size = image.shape[-2], image.shape[-1]
    if plan.crop is not None:
        before, (top, left, height, width) = plan.crop
        image, boxes = resized(image, before), _scaled(boxes, size, before)
        image, size = image[:, top : top + height, left : left + width], (height, width)
        whole = boxes - torch.tensor((left, top, left, top), dtype=boxes.dtype)
        boxes = whole.clamp(min=0).minimum(torch.tensor((width, height, width, height), dtype=boxes.dtype))
        keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        keep &= box_area(boxes) >= plan.min_visible * box_area(whole)
        boxes, labels = boxes[keep], labels[keep]
    image, boxes = resized(image, plan.size), _scaled(boxes, size, plan.size)
    if plan.flip:
        width = plan.size[1]
        image, boxes = (
            image.flip(-1),
            torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1),
        )
    return sample._replace(
        image=tv_tensors.Image(image),
        boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=plan.size),
        labels=labels,
    )


def _scaled(boxes: Tensor, size: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) xyxy of an image of ``size`` that is resized to ``new``; both are (height, width)."""
    height, width = new[0] / size[0], new[1] / size[1]
    return (boxes * torch.tensor((width, height, width, height), dtype=torch.float32)).to(boxes.dtype)
