"""Data settings and augmentation, in uint8.

Every augmentation is drawn first as a ``Plan`` of plain numbers, a pure function of a random generator and of the size
of the image, and then applied. So the padded size of a batch is known before any image is decoded, and no global random
state is used.

The recipe is DETR's (Carion et al., arXiv 2005.12872, A.4), and ``crop`` is the same recipe at any ``resize_to``:

1. horizontal flip of half of the images, and other orientations if asked for (done last here, when the image is
   smallest: crop windows are uniform, so the distribution is the same);
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


Crop = tuple[tuple[int, int], tuple[int, int, int, int]]
"""(height, width) to resize to before cropping, and the window (top, left, height, width) in it."""


class Orientation(NamedTuple):
    """One of the eight orientations of an image, which is transposed first, then flipped."""

    horizontal_flip: bool = False
    vertical_flip: bool = False
    transpose: bool = False

    def of_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of an image of ``size`` in this orientation, and the reverse."""
        return size[::-1] if self.transpose else size

    def of_crop(self, crop: Crop) -> Crop:
        """The part of an image that is this crop once it is transposed, and the reverse."""
        before, (top, left, height, width) = crop
        return (before[::-1], (left, top, width, height)) if self.transpose else crop


UPRIGHT = Orientation()


class Plan(NamedTuple):
    """The augmentation of one image; all sizes are (height, width) in pixels."""

    orientation: Orientation
    """Of the result. The image is turned after the other steps, when it is smallest."""
    crop: Crop | None
    size: tuple[int, int]
    """Final size."""
    min_visible: float = 0.0
    """Boxes of which less than this fraction of the area is in the window are dropped."""


def plan(config: DataConfig, size: tuple[int, int], random: np.random.Generator) -> Plan:
    """Draw the augmentation of a training image of ``size`` (height, width)."""
    short, long = OFFICIAL_SIZE if config.augment == "official" else config.resize_to
    orientation = draw_orientation(config, random)
    if config.augment == "none":
        return Plan(orientation, None, resized_size(orientation.of_size(size), (short, long)))
    min_scale = OFFICIAL_MIN_SCALE if config.augment == "official" else config.min_scale
    scales = np.linspace(min_scale, 1, NUM_SCALES)
    size, crop = orientation.of_size(size), None
    if config.augment != "flip" and random.random() < 0.5:
        crop = _crop(size, short / OFFICIAL_SIZE[0], random)
    target = (round(short * scales[random.integers(NUM_SCALES)]), long)
    final = resized_size(crop[1][2:] if crop else size, target)
    return Plan(orientation, orientation.of_crop(crop) if crop else None, final)


def draw_orientation(config: DataConfig, random: np.random.Generator) -> Orientation:
    """Draw the orientation of a training image: a rotation and flips."""
    horizontal = config.augment != "none" and random.random() < 0.5 and config.mirror
    vertical = config.vertical_flip and random.random() < 0.5
    turns = int(random.integers(4)) if config.rotate90 else 0  # of 90 degrees, counterclockwise
    return Orientation(horizontal != (turns >= 2), vertical != (turns in (1, 2)), turns % 2 == 1)


def _crop(size: tuple[int, int], factor: float, random: np.random.Generator) -> Crop:
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
    """``sample`` cropped, resized and turned as planned; boxes are clipped.

    Boxes without area are dropped, and those that lost more of it than planned.
    """
    image, boxes, labels = sample.image.as_subclass(Tensor), sample.boxes.as_subclass(Tensor), sample.labels
    size = image.shape[-2], image.shape[-1]
    if plan.crop is not None:
        before, (top, left, height, width) = plan.crop
        image, boxes = resized(image, before), _scaled(boxes, size, before)
        image, size = image[:, top : top + height, left : left + width], (height, width)
        boxes = boxes - torch.tensor((left, top, left, top), dtype=boxes.dtype)
    whole, boxes = boxes, _clipped(boxes, size)
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    keep &= box_area(boxes) >= plan.min_visible * box_area(whole)
    boxes, labels = boxes[keep], labels[keep]
    final = plan.orientation.of_size(plan.size)
    boxes = _clipped(_scaled(boxes, size, final), final)  # again: the product may be larger by its rounding
    image, boxes = _turned(resized(image, final), boxes, plan.orientation)
    return sample._replace(
        image=tv_tensors.Image(image),
        boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=plan.size),
        labels=labels,
    )


def _turned(image: Tensor, boxes: Tensor, orientation: Orientation) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) and its boxes (N, 4) xyxy in an orientation."""
    if orientation.transpose:
        image, boxes = image.transpose(-2, -1), boxes[:, [1, 0, 3, 2]]
    height, width = image.shape[-2], image.shape[-1]
    x1, y1, x2, y2 = boxes.unbind(1)
    if orientation.horizontal_flip:
        image, x1, x2 = image.flip(-1), width - x2, width - x1
    if orientation.vertical_flip:
        image, y1, y2 = image.flip(-2), height - y2, height - y1
    return image, torch.stack((x1, y1, x2, y2), 1)


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) xyxy, as far as they are in an image of ``size`` (height, width)."""
    height, width = size
    return boxes.clamp(min=0).minimum(torch.tensor((width, height, width, height), dtype=boxes.dtype))


def _scaled(boxes: Tensor, size: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) xyxy of an image of ``size`` that is resized to ``new``; both are (height, width)."""
    height, width = new[0] / size[0], new[1] / size[1]
    return (boxes * torch.tensor((width, height, width, height), dtype=torch.float32)).to(boxes.dtype)
