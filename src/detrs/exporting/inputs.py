"""Inputs for the comparison of an exported file with its checkpoint: real and made images, many sizes, two batch sizes.

The images are the same in every run: generators are seeded, and no global random state is used.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from detrs.data.preprocessing import resized_size
from detrs.data.sample import Dataset
from detrs.structures import Batch

BATCH_SIZE = 3
"""Images of the larger batches."""
SINGLE_SIZES = ((0.0, 0.0), (1.0, 1.0), (0.37, 0.62), (0.0, 0.7), (0.83, 0.31), (0.55, 0.55), (0.7, 0.0))
"""Height and width of single images, between the smallest size (0) and the short and the long side (1)."""
BATCH_SIZES = ((0.61, 0.47), (0.0, 0.0), (0.29, 0.58), (1.0, 0.5), (0.43, 0.36), (0.5, 0.8))
"""Likewise of batches."""


class GateInput(NamedTuple):
    """One batch that both detectors receive."""

    batch: Batch
    """uint8, resized, as ``TrainedDetector.detect`` expects it."""
    sizes: list[tuple[int, int]]
    """(height, width) of each image without its padding."""
    is_padded: bool
    """Whether its images have different sizes."""


@dataclass(frozen=True, kw_only=True)
class InputShapes:
    """The shapes that an exported file accepts."""

    resize_to: tuple[int, int]
    """(short, long) side of the detector's images in pixels."""
    static: tuple[int, int] | None = None
    """(height, width) of every image; ``None``: any."""
    min_size: int = 65
    """Smallest height and width."""
    padding: bool = False
    """Whether images of different sizes can be in one batch."""


def gate_inputs(shapes: InputShapes, dataset: Dataset | None = None) -> Iterator[GateInput]:
    """The inputs of the comparison, at least 20, one by one.

    Args:
        shapes: what the exported file accepts. Sizes range from the smallest to the short and long side, in both
            orientations; most are odd.
        dataset: source of two thirds of the images; without it, all are made.
    """
    images = _Images(dataset)
    singles = [size for fractions in SINGLE_SIZES for size in _both(fractions, shapes)]  # 14
    for number, size in enumerate(singles):
        image = images.next()
        natural = resized_size((image.shape[1], image.shape[2]), shapes.resize_to)
        is_allowed = shapes.static is None and min(natural) >= shapes.min_size
        if images.is_real and number % 2 == 0 and is_allowed and number >= 4:
            size = natural  # the extreme sizes are first, and kept
        yield _input([_resized(image, size)], shapes)
    for number, fractions in enumerate(BATCH_SIZES):
        height, width = _size(fractions, shapes)
        group = [_resized(images.next(), (height, width)) for _ in range(BATCH_SIZE)]
        if shapes.padding and number % 2 == 0:  # the first has the full size, the others leave a margin
            floor = max(shapes.min_size // 2, 1)
            group[1] = group[1][:, : max(floor, height * 3 // 4)]
            group[2] = group[2][:, : max(floor, height * 7 // 8), : max(floor, width * 2 // 3)]
        yield _input(group, shapes)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """An image of ``size``; sides below 8 pixels are cut, since resizing to 1 x 1 fails in PyTorch 2.15."""
    height, width = size
    return transforms.resize(image, [max(height, 8), max(width, 8)])[:, :height, :width]


def _input(images: Sequence[Tensor], shapes: InputShapes) -> GateInput:
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    batch = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for index, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        batch[index, :, :h, :w] = image
        padding[index, :h, :w] = False
    return GateInput(Batch(batch, padding, ()), sizes, len(set(sizes)) > 1)


def _both(fractions: tuple[float, float], shapes: InputShapes) -> list[tuple[int, int]]:
    """A size in landscape and in portrait format."""
    height, width = _size(fractions, shapes)
    return [(height, width), (height, width) if shapes.static else (width, height)]


def _size(fractions: tuple[float, float], shapes: InputShapes) -> tuple[int, int]:
    if shapes.static is not None:
        return shapes.static
    height, width = (
        _between(shapes.min_size, side, fraction) for side, fraction in zip(shapes.resize_to, fractions, strict=True)
    )
    return height, width


def _between(low: int, high: int, fraction: float) -> int:
    """A size between two; odd, except the limits themselves."""
    high = max(low, high)
    size = round(low + (high - low) * fraction)
    return size if size in (low, high) else min(size | 1, high)


class _Images:
    """An endless sequence of different images (3, H, W), uint8: two of a dataset, then a made one, and so on."""

    def __init__(self, dataset: Dataset | None) -> None:
        self.dataset, self.is_real = dataset, False
        self._count = self._count_real = 0
        self._generator = torch.Generator().manual_seed(0)

    def next(self) -> Tensor:
        self._count += 1
        self.is_real = self.dataset is not None and self._count % 3 != 0
        if self.dataset is None or not self.is_real:
            return MADE[self._count % len(MADE)](self._generator)
        index = self._count_real * 61 % len(self.dataset)  # a prime step: neighbors are often similar
        self._count_real += 1
        return self.dataset[index].image.as_subclass(Tensor)


def _noise(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (3, 211, 263), generator=generator, dtype=torch.uint8)


def _smooth(generator: torch.Generator) -> Tensor:
    """Colors that change slowly."""
    coarse = torch.rand(1, 3, 5, 7, generator=generator)
    return (F.interpolate(coarse, (211, 263), mode="bicubic")[0].clamp(0, 1) * 255).to(torch.uint8)


def _gradient(generator: torch.Generator) -> Tensor:
    """From dark to bright, each color in a direction of its own."""
    y, x = torch.linspace(0, 1, 211)[:, None], torch.linspace(0, 1, 263)[None]
    weight = torch.rand(3, 1, 1, generator=generator)
    return ((weight * y + (1 - weight) * x) * 255).to(torch.uint8)


def _constant(generator: torch.Generator) -> Tensor:
    color = torch.randint(0, 256, (3, 1, 1), generator=generator, dtype=torch.uint8)
    return color.expand(3, 211, 263).clone()


def _shapes(generator: torch.Generator) -> Tensor:
    """Rectangles and ellipses of one color each before a smooth background."""
    image = _smooth(generator)
    y, x = torch.arange(211.0)[:, None], torch.arange(263.0)[None]
    for number in range(9):
        center_y, center_x, h, w = (torch.rand(4, generator=generator) * torch.tensor([211, 263, 60, 80])).tolist()
        dy, dx = (y - center_y).abs() / (h + 4), (x - center_x).abs() / (w + 4)
        inside = torch.maximum(dy, dx) < 1 if number % 2 else dy**2 + dx**2 < 1
        color = torch.randint(0, 256, (3, 1), generator=generator, dtype=torch.uint8)
        image[:, inside] = color
    return image


MADE: tuple[Callable[[torch.Generator], Tensor], ...] = (_shapes, _noise, _smooth, _shapes, _gradient, _constant)
"""Kinds of made images."""
