"""Settings of the dataset, its batches and their augmentation."""

import os
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from detrs.errors import UserError

MAX_SIDE = 16_384
"""Upper limit of ``resize_to`` in pixels."""
NO_SPLIT = "none"
"""Value of ``data.val_split`` for training without validation."""
MAX_PIXELS = 100_000_000
"""Upper limit of the pixels of an image file, which is checked before it is decoded."""
HUB = "hf:"
"""Start of the name of a dataset of the Hugging Face Hub."""
OFFICIAL_SIZE = (800, 1333)
"""``resize_to`` of DETR's recipe."""
OFFICIAL_MIN_SCALE = 0.6
"""``min_scale`` of DETR's recipe."""

ScaleFactor = Annotated[float, Ge(0.1), Le(4)]
"""Factor of ``large_scale_jitter``."""


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
    vertical_flip: bool = False
    """Flip half of the training images vertically, which mirrors objects, too. For images in which no direction is up,
    such as those of microscopes and aerial photographs."""
    rotate90: bool = False
    """Rotate the training images by 0, 90, 180 or 270 degrees at random. For images in which no direction is up."""
    min_scale: Annotated[float, Ge(0.1), Le(1)] = OFFICIAL_MIN_SCALE
    """Multi-scale: the short side is sampled from 11 sizes between ``min_scale * short`` and ``short``. Ignored if
    ``augment`` is ``none``."""
    color_jitter: Annotated[float, Ge(0), Le(1)] = 0.0
    """Strength S of random changes of brightness, contrast and saturation, by factors between 1 - 0.8 S and 1 + 0.8 S,
    and of the hue, by up to 0.2 S of the color circle; in random order. 0: off."""
    large_scale_jitter: tuple[ScaleFactor, ScaleFactor] | None = None
    """(smallest, largest) factor by which an image is resized relative to ``resize_to``, for example (0.5, 1.5); of a
    larger image, a random window of the usual size is used. Replaces the crop and the multi-scale of ``augment``."""
    mosaic: Annotated[float, Ge(0), Le(1)] = 0.0
    """Probability of a training image that is composed of windows of four images around a random center."""
    mixup: Annotated[float, Ge(0), Le(1)] = 0.0
    """Probability of a training image that is blended with another one, in about equal parts; it has the objects of
    both."""
    strong_until: Annotated[float, Ge(0), Le(1)] = 0.8
    """Fraction of the training, by steps or by time budget, after which no epoch begins with ``large_scale_jitter``,
    ``mosaic`` or ``mixup``, so that training ends on images like those of prediction."""
    batch_size: Annotated[int, Ge(1)] = 16
    """Images per optimizer step, over all processes and accumulated micro-batches."""
    padded_together: Annotated[int, Gt(0)] | None = None
    """Number of images padded to one common size. None: the whole batch, so that results do not depend on how it is
    divided. N: N consecutive images, or the micro-batch of a process where that is larger. The authors trained with 2
    images per device (1 for DC5 and Anchor DETR), which have less padding than a large batch."""
    keep_empty: bool = True
    """Train on images without objects, as negatives."""


def check_augmentation(config: DataConfig) -> None:
    """Check that settings do not contradict the recipe or each other.

    Raises:
        UserError: naming the setting.
    """
    short, long = config.resize_to
    if short > long:
        raise UserError(f"data.resize_to is {config.resize_to}, but must be (short, long) with short <= long.")
    if config.large_scale_jitter is not None and config.large_scale_jitter[0] > config.large_scale_jitter[1]:
        raise UserError(
            f"data.large_scale_jitter is {config.large_scale_jitter}, but must be (smallest, largest) with smallest <= "
            "largest."
        )
    if config.vertical_flip and not config.mirror:
        raise UserError(
            "data.vertical_flip is True, which mirrors objects, but data.mirror False excludes that: leave out one of "
            "them. data.rotate90 rotates without mirroring."
        )
    for setting, fixed in {"resize_to": OFFICIAL_SIZE, "min_scale": OFFICIAL_MIN_SCALE}.items():
        given = getattr(config, setting)
        if config.augment == "official" and given != fixed:
            raise UserError(
                f"data.{setting} is {given}, but data.augment 'official' always trains at {fixed}: add "
                "--data.augment crop (the same recipe at any size) or flip."
            )


def without_strong_augmentation(config: DataConfig) -> DataConfig:
    """The settings after ``strong_until``."""
    return replace(config, large_scale_jitter=None, mosaic=0.0, mixup=0.0)


def most_objects(config: DataConfig, max_objects: int) -> int:
    """Upper limit of the objects of a training image, if those of the dataset have at most ``max_objects``."""
    images = (4 if config.mosaic else 1) + (1 if config.mixup else 0)
    return images * max_objects


def is_hub_name(path: str) -> bool:
    """Whether ``--data`` names a dataset of the Hub: ``hf:OWNER/NAME``, unless there is such a path."""
    return path.startswith(HUB) and not os.path.exists(path)
