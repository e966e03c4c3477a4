"""Collates samples to batches, padded at the right and bottom, in uint8; normalises batches on their device."""

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
        A batch with uint8 images (B, 3, H, W), zero where padded, and boxes relative to the un-padded images.
    """
    sizes = [(sample.image.shape[-2], sample.image.shape[-1]) for sample in samples]
    height, width = size or (max(h for h, _ in sizes), max(w for _, w in sizes))
    images = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)  # (B, 3, H, W)
    padding = torch.ones(len(samples), height, width, dtype=torch.bool)  # (B, H, W)
    for sample, (h, w), image, mask in zip(samples, sizes, images, padding, strict=True):
        image[:, :h, :w] = sample.image
        mask[:h, :w] = False
    return Batch(images, padding, tuple(_target(sample, h, w) for sample, (h, w) in zip(samples, sizes, strict=True)))


def _target(sample: Sample, height: int, width: int) -> Target:
    boxes = sample.boxes.as_subclass(torch.Tensor)  # (N, 4)
    boxes = box_convert(boxes, "xyxy", "cxcywh") / torch.tensor([width, height, width, height], dtype=boxes.dtype)
    labels = sample.labels.clone()  # pickling a view would send the labels of the whole data set
    return Target(boxes, labels, sample.image_id, sample.original_size)


def normalize(batch: Batch, mean: Sequence[float], std: Sequence[float]) -> Batch:
    """Converts the images to float32 as ``(pixel / 255 - mean) / std``, zero where padded, on their device."""
    images = batch.images
    scale = torch.tensor([1 / (255 * s) for s in std], device=images.device).view(3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device).view(3, 1, 1)
    normalized = torch.addcmul(shift, images.to(torch.float32), scale)  # (B, 3, H, W)
    return batch._replace(images=normalized.masked_fill_(batch.padding[:, None], 0.0))
