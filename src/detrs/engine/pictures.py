"""Pictures of a run: what the detector is shown, and what it finds."""

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
from detrs.explain.curves import results_figure
from detrs.explain.draw import draw_boxes, grid
from detrs.files import replaced
from detrs.structures import Batch

MAX_PICTURES = 16
"""Pictures on one sheet."""
MAX_SIDE = 800
"""Longest side in pixels in which a picture is drawn; 16 photographs of 50 megapixels would take gigabytes."""


def save_training_batch(batch: Batch, names: Sequence[str], path: Path) -> None:
    """Draw a batch as the loader makes it, with its labels, as one sheet."""
    pictures = []
    for image, padding, target in list(zip(batch.images, batch.padding, batch.targets, strict=True))[:MAX_PICTURES]:
        height, width = int((~padding[:, 0]).sum()), int((~padding[0]).sum())
        boxes_xyxy = cxcywh_to_xyxy(target.boxes) * torch.tensor([width, height, width, height])
        small, boxes_xyxy = shrunk(image[:, :height, :width], boxes_xyxy)
        pictures.append(draw_boxes(small, boxes_xyxy, target.labels, names))
    save_sheet(pictures, path)


def save_predictions(dataset: Dataset, results: list[dict[str, Any]], path: Path, threshold: float = 0.3) -> None:
    """Draw the first pictures of ``dataset`` with the results (COCO format) that score at least ``threshold``."""
    found = defaultdict(list)
    for result in results:
        if result["score"] >= threshold:
            found[result["image_id"]].append(result)
    labels = {category_id: label for label, category_id in enumerate(dataset.classes.category_ids)}
    pictures = []
    for index in range(min(len(dataset), MAX_PICTURES)):
        sample = dataset[index]
        own = found[sample.image_id]
        boxes = torch.tensor([result["bbox"] for result in own]).reshape(-1, 4)
        boxes_xyxy = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        own_labels = torch.tensor([labels[result["category_id"]] for result in own], dtype=torch.long)
        scores = torch.tensor([result["score"] for result in own])
        image, boxes_xyxy = shrunk(sample.image, boxes_xyxy)
        pictures.append(draw_boxes(image, boxes_xyxy, own_labels, dataset.classes.names, scores))
    save_sheet(pictures, path)


def save_curves(metrics: Path, path: Path) -> None:
    """Draw the curves of ``metrics.jsonl``."""
    with replaced(path) as temporary:
        results_figure(metrics, temporary)


def shrunk(image: Tensor, boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """A picture (3, H, W) and its boxes, scaled down to ``MAX_SIDE`` where it is larger."""
    height, width = image.shape[1:]
    scale = MAX_SIDE / max(height, width)
    if scale >= 1:
        return image, boxes_xyxy
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    factors = torch.tensor([size[1] / width, size[0] / height] * 2)
    return functional.resize_image(image.as_subclass(Tensor), size, antialias=True), boxes_xyxy * factors


def save_sheet(pictures: Sequence[Image.Image], path: Path) -> None:
    """Write pictures as one."""
    sheet = grid(pictures)
    with replaced(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=90)
