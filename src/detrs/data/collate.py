"""Samples to a batch: padded right and bottom to a common size, uint8."""

from collections.abc import Sequence

import torch
from torchvision.ops import box_convert

from detrs.data.sample import Sample
from detrs.structures import Batch, Target


def collate(samples: Sequence[Sample], size: tuple[int, int] | None = None) -> Batch:
    """Pads samples to a common size and stacks them.

    Args:
        samples: At least one.
        size: (height, width) of the batch. Default: the largest height and the largest width of ``samples``.

    Returns:
        A batch with uint8 images (B, 3, H, W), channels-last and zero where padded, and boxes relative to the un-padded
        images.
    """
    sizes = [(sample.image.shape[-2], sample.image.shape[-1]) for sample in samples]
    height, width = size or (max(h for h, _ in sizes), max(w for _, w in sizes))
    images = torch.empty(len(samples), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)  # (B, 3, H, W)
    padding = torch.ones(len(samples), height, width, dtype=torch.bool)  # (B, H, W)
    for sample, (h, w), image, mask in zip(samples, sizes, images, padding, strict=True):
        image[:, :h, :w] = sample.image
        image[:, :h, w:] = 0
        image[:, h:] = 0
        mask[:h, :w] = False
    return Batch(images, padding, tuple(_target(sample, h, w) for sample, (h, w) in zip(samples, sizes, strict=True)))


def _target(sample: Sample, height: int, width: int) -> Target:
    boxes = sample.boxes.as_subclass(torch.Tensor)  # (N, 4)
    boxes = box_convert(boxes, "xyxy", "cxcywh") / torch.tensor([width, height, width, height], dtype=boxes.dtype)
    labels = sample.labels.clone()  # pickling a view would send the labels of the whole dataset
    return Target(boxes, labels, sample.image_id, sample.original_size)
