"""Figures of a training run: the first training batches, predictions beside the ground truth, the curves."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from detrs.boxes import cxcywh_to_xyxy
from detrs.data.sample import Dataset
from detrs.errors import counted
from detrs.files import atomic_write
from detrs.structures import Batch
from detrs.visualization.curves import results_figure
from detrs.visualization.draw import WHITE, draw_boxes, grid

MAX_IMAGES = 16
"""Images of a training batch in the figure."""
MAX_PAIRS = 8
"""Validation images in the figure, each with its ground truth and its detections."""
MAX_SIDE = 800
"""Images are scaled down to this long side in pixels; 16 images of 50 megapixels would need gigabytes."""


def save_training_batch(batch: Batch, names: Sequence[str], path: Path) -> None:
    """Draws the augmented images of a batch with their ground-truth boxes into one JPEG file."""
    drawn = []
    for image, padding, target in list(zip(batch.images, batch.padding, batch.targets, strict=True))[:MAX_IMAGES]:
        height, width = int((~padding[:, 0]).sum()), int((~padding[0]).sum())
        boxes_xyxy = cxcywh_to_xyxy(target.boxes) * torch.tensor([width, height, width, height], dtype=torch.float32)
        small, boxes_xyxy = scaled_down(image[:, :height, :width], boxes_xyxy)
        drawn.append(draw_boxes(small, boxes_xyxy, target.labels, names))
    save_grid(drawn, path)


def save_predictions(dataset: Dataset, results: list[dict[str, Any]], path: Path, threshold: float) -> None:
    """Draws validation images into one JPEG file: on the left the ground truth, on the right the detections.

    The images are those of ``spread``, the same in every epoch and every run on the same data.

    Args:
        dataset: The images, their objects and the class names.
        results: Detections in COCO format, of any images of ``dataset``.
        path: File to write.
        threshold: Minimum score of the detections drawn.
    """
    detections = defaultdict(list)
    for result in results:
        if result["score"] >= threshold:
            detections[result["image_id"]].append(result)
    labels = {category_id: label for label, category_id in enumerate(dataset.classes.category_ids)}
    pairs, captions = [], []
    for index in spread(len(dataset), MAX_PAIRS):
        sample = dataset[index]
        own = detections[sample.image_id]
        boxes = torch.tensor([result["bbox"] for result in own], dtype=torch.float32).reshape(-1, 4)
        boxes_xyxy = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        own_labels = torch.tensor([labels[result["category_id"]] for result in own], dtype=torch.long)
        scores = torch.tensor([result["score"] for result in own], dtype=torch.float32)
        image, truth_xyxy = scaled_down(sample.image, sample.boxes.as_subclass(Tensor))
        image, boxes_xyxy = scaled_down(sample.image, boxes_xyxy)
        names = dataset.classes.names
        truth = draw_boxes(image, truth_xyxy, sample.labels, names)
        pairs.append(beside(truth, draw_boxes(image, boxes_xyxy, own_labels, names, scores)))
        captions.append(
            f"{Path(sample.path).name}: {counted(len(truth_xyxy), 'object')}, {counted(len(own), 'detection')}"
        )
    title = f"left: ground truth; right: detections with a score of at least {threshold:.2f}"
    save_grid(pairs, path, captions, title)


def spread(number: int, limit: int) -> list[int]:
    """Indices of at most ``limit`` of ``number`` items, spread evenly: the middles of equal parts.

    >>> spread(100, 4)
    [12, 37, 62, 87]
    """
    parts = min(number, limit)
    return [(2 * part + 1) * number // (2 * parts) for part in range(parts)]


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two images of equal size as one, with a narrow white line between them."""
    gap = max(2, left.width // 100)
    both = Image.new("RGB", (left.width + gap + right.width, left.height), WHITE)
    both.paste(left, (0, 0))
    both.paste(right, (left.width + gap, 0))
    return both


def save_curves(metrics: Path, path: Path, steps_per_epoch: int) -> None:
    """Plots the curves in ``metrics.jsonl`` into a PNG file."""
    with atomic_write(path) as temporary:
        results_figure(metrics, temporary, steps_per_epoch=steps_per_epoch)


def scaled_down(image: Tensor, boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """The image (3, H, W) and its boxes, scaled so that the long side is at most ``MAX_SIDE``."""
    height, width = image.shape[1:]
    scale = MAX_SIDE / max(height, width)
    if scale >= 1:
        return image, boxes_xyxy
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    factors = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float32)
    return functional.resize_image(image.as_subclass(Tensor), size, antialias=True), boxes_xyxy * factors


def save_grid(images: Sequence[Image.Image], path: Path, captions: Sequence[str] = (), title: str = "") -> None:
    """Tiles the images and writes them as one JPEG file."""
    tiled = grid(images, captions=captions, title=title)
    with atomic_write(path) as temporary:
        tiled.save(temporary, format="JPEG", quality=90)
