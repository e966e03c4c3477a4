"""A training image made of one or several images of the dataset: mosaic, mixup, large-scale jitter and color.

As a ``transforms.Plan``, a ``Composition`` consists of plain numbers that are drawn before any image is decoded. They
have a random generator of their own, so that ``transforms.plan`` draws the same numbers whatever else is on.

- Large-scale jitter (Ghiasi et al., arXiv 2012.07177): an image is resized by a random factor. If it is enlarged, a
  random window of the usual size is used; otherwise it is smaller than usual.
- Mosaic (Bochkovskiy et al., YOLOv4, arXiv 2004.10934): a canvas of the usual size is divided at a random center, and
  each part shows a random window of another image, with its aspect ratio.
- Mixup (Zhang et al., arXiv 1902.04103): the image is blended with a window of another one. The ratio is close to 1/2,
  as in YOLOv5: all objects are targets of equal weight, so all must be visible.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_area

from detrs.config.data import OFFICIAL_SIZE, DataConfig
from detrs.data.color import Color, adjusted, draw_color
from detrs.data.preprocessing import resized_size
from detrs.data.sample import Sample
from detrs.data.transforms import Orientation, Plan, draw_orientation, plan

MIN_VISIBLE = 0.25
"""Boxes with less of their area in a window are dropped; whatever is left of the object is background."""
CENTER = (0.25, 0.75)
"""Range of the center of a mosaic, relative to its size."""
MIN_WINDOW = 0.5
"""Smallest window of an image in a mosaic, relative to the largest one with the same aspect ratio."""
MIN_CANVAS = 8
"""Shortest side in pixels of a mosaic: the windows of thinner images would have hardly any pixels."""
MIXUP_BETA = 32.0
"""Both parameters of the beta distribution of the ratio of mixup."""
WHOLE = 128
"""Denominator of the ratio of mixup: products with a pixel fit into int16."""


class Part(NamedTuple):
    """One image of the dataset in a training image."""

    number: int
    """Position in the dataset."""
    plan: Plan
    top: int = 0
    left: int = 0


class Composition(NamedTuple):
    """How a training image is made."""

    size: tuple[int, int]
    """(height, width) in pixels."""
    parts: tuple[Part, ...]
    """Cover the image without overlap; the first gives it its ``image_id``."""
    mixed: Part | None = None
    """Covers the image too, and is blended with it."""
    ratio: int = WHOLE
    """Weight of ``parts`` in the blend, of ``WHOLE``."""
    color: Color | None = None

    @property
    def sources(self) -> tuple[Part, ...]:
        return self.parts if self.mixed is None else (*self.parts, self.mixed)


def single(number: int, plan: Plan) -> Composition:
    """One image of the dataset as planned."""
    return Composition(plan.size, (Part(number, plan),))


def compose(
    config: DataConfig, number: int, num_images: int, size_of: Callable[[int], tuple[int, int]], seed: tuple[int, ...]
) -> Composition:
    """Draw the training image of the image at ``number``.

    Args:
        config: which augmentations.
        number: position in the dataset.
        num_images: images of the dataset, from which those of mosaic and mixup are drawn.
        size_of: (height, width) of each.
        seed: of the random generator.
    """
    own = plan(config, size_of(number), np.random.default_rng(seed))
    if not (config.color_jitter or config.large_scale_jitter or config.mosaic or config.mixup):
        return single(number, own)
    random = np.random.default_rng((*seed, 1))
    color = draw_color(config.color_jitter, random) if config.color_jitter else None

    def window(number: int, size: tuple[int, int], smallest: float) -> Plan:
        """A random part of an image at ``size``."""
        orientation = draw_orientation(config, random)
        return _window(size_of(number), size, random.uniform(smallest, 1), orientation, random)

    if min(own.size) >= MIN_CANVAS and random.random() < config.mosaic:
        parts = tuple(
            Part(other, window(other, (height, width), MIN_WINDOW), top, left)
            for other, (top, left, height, width) in zip(
                (number, *random.integers(num_images, size=3).tolist()), _quarters(own.size, random), strict=True
            )
        )
    else:
        if config.large_scale_jitter is not None:
            own = _large_scale(config, config.large_scale_jitter, size_of(number), own.orientation, random)
        parts = (Part(number, own),)
    size, mixed, ratio = own.size, None, WHOLE
    if random.random() < config.mixup:
        other = int(random.integers(num_images))
        mixed, ratio = Part(other, window(other, size, 1.0)), round(WHOLE * random.beta(MIXUP_BETA, MIXUP_BETA))
    return Composition(size, parts, mixed, ratio, color)


def _large_scale(
    config: DataConfig,
    factors: tuple[float, float],
    original: tuple[int, int],
    orientation: Orientation,
    random: np.random.Generator,
) -> Plan:
    """The plan of an image of ``original`` size that is resized by a random one of ``factors``."""
    size = resized_size(
        orientation.of_size(original), OFFICIAL_SIZE if config.augment == "official" else config.resize_to
    )
    factor = random.uniform(*factors)
    if factor > 1:
        return _window(original, size, 1 / factor, orientation, random)
    return Plan(orientation, None, (max(1, round(factor * size[0])), max(1, round(factor * size[1]))))


def _quarters(size: tuple[int, int], random: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of the parts of a mosaic of ``size``."""
    y, x = (int(random.integers(round(CENTER[0] * side), round(CENTER[1] * side), endpoint=True)) for side in size)
    height, width = size
    return [
        (top, left, part_height, part_width)
        for top, part_height in ((0, y), (y, height - y))
        for left, part_width in ((0, x), (x, width - x))
    ]


def _window(
    original: tuple[int, int],
    size: tuple[int, int],
    fraction: float,
    orientation: Orientation,
    random: np.random.Generator,
) -> Plan:
    """The plan of a random window of an image of ``original`` size, resized to ``size``.

    The window has the aspect ratio of ``size`` and ``fraction`` of the sides of the largest such window. It is cut from
    the original image, so that each pixel is resampled once and no intermediate image is larger than both.
    """
    original = orientation.of_size(original)
    scale = fraction * min(original[0] / size[0], original[1] / size[1])
    height, width = (min(old, max(1, round(scale * new))) for old, new in zip(original, size, strict=True))
    top, left = int(random.integers(original[0] - height + 1)), int(random.integers(original[1] - width + 1))
    crop = orientation.of_crop((original, (top, left, height, width)))
    return Plan(orientation, crop, size, MIN_VISIBLE)


def composed(composition: Composition, samples: list[Sample], max_objects: int | None = None) -> Sample:
    """The training image.

    Args:
        composition: how it is made.
        samples: those of ``composition.sources``, as planned.
        max_objects: keep that many at most, those with the largest boxes.
    """
    first = samples[0]
    image, boxes, labels = first.image.as_subclass(Tensor), first.boxes.as_subclass(Tensor), first.labels
    if len(composition.parts) > 1:
        image = torch.empty((*composition.size, 3), dtype=torch.uint8).permute(2, 0, 1)
        for part, sample in zip(composition.parts, samples, strict=False):
            height, width = part.plan.size
            image[:, part.top : part.top + height, part.left : part.left + width] = sample.image
    if len(samples) > 1:
        corners = [torch.tensor((part.left, part.top) * 2, dtype=boxes.dtype) for part in composition.sources]
        moved = [sample.boxes.as_subclass(Tensor) + corner for sample, corner in zip(samples, corners, strict=True)]
        boxes, labels = torch.cat(moved), torch.cat([sample.labels for sample in samples])
    if composition.mixed is not None:
        image = blended(image, samples[-1].image.as_subclass(Tensor), composition.ratio)
    if composition.color is not None:
        image = adjusted(image, composition.color)
    if max_objects is not None and len(labels) > max_objects:
        kept = box_area(boxes).sort(descending=True, stable=True).indices[:max_objects].sort().values
        boxes, labels = boxes[kept], labels[kept]
    return first._replace(
        image=tv_tensors.Image(image),
        boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=composition.size),
        labels=labels,
    )


def blended(image: Tensor, other: Tensor, ratio: int) -> Tensor:
    """``ratio`` parts of ``WHOLE`` of a uint8 image, and the rest of another one, rounded."""
    total = image.to(torch.int16).mul_(ratio).add_(other.to(torch.int16), alpha=WHOLE - ratio)
    return total.add_(WHOLE // 2).div_(WHOLE, rounding_mode="floor").to(torch.uint8)
