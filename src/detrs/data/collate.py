"""Samples to a batch: padded right and bottom to a common size, uint8."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert

from detrs.data.sample import Sample
from detrs.structures import Batch, Target


def collate(
    samples: Sequence[Sample], size: tuple[int, int] | None = None, memory: Callable[[int], Tensor] | None = None
) -> Batch:
    """Pads samples to a common size and stacks them.

    Args:
        samples: At least one.
        size: (height, width) of the batch. Default: the largest height and the largest width of ``samples``.
        memory: For the images: returns a uint8 tensor of the given number of bytes. Default: new memory.

    Returns:
        A batch with uint8 images (B, 3, H, W), channels-last and zero where padded, and boxes relative to the un-padded
        images.
    """
    sizes = [size_of(sample) for sample in samples]
    height, width = size or (max(h for h, _ in sizes), max(w for _, w in sizes))
    shape = len(samples), height, width, 3
    pixels = torch.empty(shape, dtype=torch.uint8) if memory is None else memory(math.prod(shape)).view(shape)
    images = pixels.permute(0, 3, 1, 2)  # (B, 3, H, W)
    for sample, (h, w), image in zip(samples, sizes, images, strict=True):
        image[:, :h, :w] = sample.image
        image[:, :h, w:] = 0
        image[:, h:] = 0
    targets = tuple(_target(sample, h, w) for sample, (h, w) in zip(samples, sizes, strict=True))
    return Batch(images, padding_of(sizes, (height, width)), targets)


def size_of(sample: Sample) -> tuple[int, int]:
    """(height, width) of the image of a sample."""
    return sample.image.shape[-2], sample.image.shape[-1]


def padding_of(sizes: Sequence[tuple[int, int]], size: tuple[int, int]) -> Tensor:
    """The padding mask (B, H, W) of a batch: images of ``sizes`` are padded to ``size``, both (height, width)."""
    padding = torch.ones(len(sizes), *size, dtype=torch.bool)
    for mask, (h, w) in zip(padding, sizes, strict=True):
        mask[:h, :w] = False
    return padding


def _target(sample: Sample, height: int, width: int) -> Target:
    boxes = sample.boxes.as_subclass(Tensor)  # (N, 4)
    boxes = box_convert(boxes, "xyxy", "cxcywh") / torch.tensor([width, height, width, height], dtype=boxes.dtype)
    labels = sample.labels.clone()  # pickling a view would send the labels of the whole dataset
    return Target(boxes, labels, sample.image_id, sample.original_size)
