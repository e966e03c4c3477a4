"""Pictures of a run: what the detector is shown, and what it finds."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from detrs.boxes import cxcywh_to_xyxy
from detrs.data.sample import Dataset
from detrs.explain.draw import draw_boxes, grid
from detrs.structures import Batch

MAX_PICTURES = 16
"""Pictures on one sheet."""


def save_training_batch(batch: Batch, names: Sequence[str], path: Path) -> None:
    """Draw a batch as the loader makes it, with its labels, as one sheet."""
    pictures = []
    for image, padding, target in list(zip(batch.images, batch.padding, batch.targets, strict=True))[:MAX_PICTURES]:
        height, width = int((~padding[:, 0]).sum()), int((~padding[0]).sum())
        boxes_xyxy = cxcywh_to_xyxy(target.boxes) * torch.tensor([width, height, width, height])
        pictures.append(draw_boxes(image[:, :height, :width], boxes_xyxy, target.labels, names))
    grid(pictures).save(path, quality=90)


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
        pictures.append(draw_boxes(sample.image, boxes_xyxy, own_labels, dataset.classes.names, scores))
    grid(pictures).save(path, quality=90)
