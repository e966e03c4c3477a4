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

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detrs.data.preprocessing import MAX_SIDE, resized_size
from detrs.data.sample import Sample
from detrs.errors import UserError
from detrs.isolation import float32_by_default

OFFICIAL_SIZE = (800, 1333)
"""``resize_to`` of DETR's recipe."""
OFFICIAL_MIN_SCALE = 0.6
"""``min_scale`` of DETR's recipe."""

NUM_SCALES = 11
CROP_SHORTS = (400, 500, 600)
"""Short sides before cropping, at the official size 800."""
CROP_SIDES = (384, 600)
"""Smallest and largest side of the crop window, at the official size 800."""
CROP_MAX_ASPECT = 16
"""The official recipe does not limit the long side before cropping; a panorama would exhaust the memory."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The dataset, and how its images are batched and augmented."""

    path: str | None = None
    """Folder or file of a dataset in any supported format, ``hf:OWNER/NAME``, or ``digits`` for the demo set."""
    train_split: str = "train"
    """Name of the split to train on."""
    val_split: str = "val"
    """Name of the split to evaluate on (``val``, ``valid`` and ``validation`` are synonyms); ``none``: train without
    validation."""
    val_fraction: Annotated[float, Gt(0), Lt(1)] | None = None
    """Fraction of the training images to hold out for validation, stratified by class; for datasets without a
    validation split. The same images are held out in every run."""
    resize_to: tuple[Annotated[int, Ge(32), Le(MAX_SIDE)], Annotated[int, Ge(32), Le(MAX_SIDE)]] = OFFICIAL_SIZE
    """(short, long) in pixels: the short side becomes ``short`` unless the long side would exceed ``long``."""
    augment: Literal["none", "flip", "crop", "official"] = "crop"
    """``flip``: horizontal flip and multi-scale. ``crop``: also a random crop in half of the images, scaled to
    ``resize_to``. ``official``: DETR's own recipe, at its own sizes only (480..800, 1333)."""
    mirror: bool = True
    """Flip half of the training images horizontally. Ignored if ``augment`` is ``none``. False where left and right
    have a meaning (text, digits, arrows); the built-in digits are never mirrored."""
    min_scale: Annotated[float, Ge(0.1), Le(1)] = OFFICIAL_MIN_SCALE
    """Multi-scale: the short side is sampled from 11 sizes between ``min_scale * short`` and ``short``. Ignored if
    ``augment`` is ``none``."""
    batch_size: Annotated[int, Ge(1)] = 16
    """Images per optimizer step, over all processes and accumulated micro-batches."""
    padded_together: Annotated[int, Gt(0)] | None = None
    """Number of images padded to one common size. None: the whole batch, so that results do not depend on how it is
    divided. N: N consecutive images, or the micro-batch of a process where that is larger. The authors trained with 2
    images per device (1 for DC5 and Anchor DETR), which have less padding than a large batch."""
    keep_empty: bool = True
    """Train on images without objects, as negatives."""


def check_official(config: DataConfig) -> None:
    """Check that sizes do not contradict the recipe or each other.

    Raises:
        UserError: naming the setting.
    """
    short, long = config.resize_to
    if short > long:
        raise UserError(f"data.resize_to is {config.resize_to}, but must be (short, long) with short <= long.")
    for setting, fixed in {"resize_to": OFFICIAL_SIZE, "min_scale": OFFICIAL_MIN_SCALE}.items():
        given = getattr(config, setting)
        if config.augment == "official" and given != fixed:
            raise UserError(
                f"data.{setting} is {given}, but data.augment 'official' always trains at {fixed}: add "
                "--data.augment crop (the same recipe at any size) or flip."
            )


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
