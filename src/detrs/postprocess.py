"""From predictions to detections: the tensor part, which is exported, and the list part, which is not."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from detrs.boxes import cxcywh_to_xyxy
from detrs.classification import ClassLogits
from detrs.ops.suppression import not_suppressed
from detrs.structures import Boxes, Classes, Detections, LayerBoxes, Prediction


def best_boxes(prediction: Prediction, classes: ClassLogits, max_detections: int) -> Boxes:
    """The ``max_detections`` best detections of each image (fewer if there are not as many candidates).

    Args:
        prediction: of the last decoder layer.
        classes: the meaning of its logits; with ``Focal`` a query can appear with several classes.
        max_detections: N.
    """
    return best_of_layer(prediction, classes, max_detections).boxes


def best_of_layer(prediction: Prediction, classes: ClassLogits, max_detections: int) -> LayerBoxes:
    """``best_boxes`` of any decoder layer, with the query of each."""
    best = classes.best(prediction.logits, max_detections)
    boxes = prediction.boxes.float().gather(1, best.queries[..., None].expand(-1, -1, 4))  # (B, N, 4)
    return LayerBoxes(Boxes(boxes, best.scores, best.labels), best.queries, prediction.logits.shape[1])


def without_duplicates(found: Boxes, iou: float | None, num_classes: int) -> tuple[Boxes, Int[Tensor, "B N"]]:
    """Non-maximum suppression within each class: suppressed detections have the score 0 and follow the others.

    Args:
        found: detections of a model, best first.
        iou: a box is suppressed if its IoU with a better one of its class is above this; ``None``: none is.
        num_classes: K.

    Returns:
        The detections, and the place of each in ``found``.
    """
    if iou is None:
        return found, torch.arange(found.scores.shape[1], device=found.scores.device).expand_as(found.scores)
    kept = not_suppressed(cxcywh_to_xyxy(found.boxes), found.scores, iou, found.labels, num_classes)
    count = found.scores.shape[1]
    place = torch.arange(count, device=kept.device) + count * (~kept).long()  # all different
    order = (-place.float()).topk(count, dim=1).indices
    boxes = found.boxes.gather(1, order[..., None].expand(-1, -1, 4))
    scores = found.scores.masked_fill(~kept, 0.0).gather(1, order)
    return Boxes(boxes, scores, found.labels.gather(1, order)), order


def detections(
    boxes: Boxes, image_sizes: Sequence[tuple[int, int]], classes: Classes, sources: Sequence[str | None] | None = None
) -> list[Detections]:
    """One ``Detections`` on the CPU for each of B images. No threshold, no non-maximum suppression, no clipping.

    Args:
        boxes: from ``detect``.
        image_sizes: (height, width) in pixels of each original image.
        classes: names and ids of the classes.
        sources: path or URL of each image; by default unknown.
    """
    scale = torch.tensor([(w, h, w, h) for h, w in image_sizes], dtype=torch.float32, device=boxes.boxes.device)
    boxes_xyxy = (cxcywh_to_xyxy(boxes.boxes) * scale[:, None]).cpu()
    scores, labels = boxes.scores.cpu(), boxes.labels.cpu()
    found = []
    for i, size in enumerate(image_sizes):
        real = scores[i] != 0  # the rest is padding
        source = sources[i] if sources else None
        found.append(Detections(boxes_xyxy[i, real], scores[i, real], labels[i, real], classes, size, source))
    return found


def non_maximum(found: Detections, iou: float) -> Int[Tensor, "M"]:
    """The detections that remain after greedy non-maximum suppression within each class, best first.

    Args:
        found: detections.
        iou: a box is suppressed if its IoU with a better one of its class is above this.

    Returns:
        Their indices.
    """
    boxes, scores, labels = found.boxes_xyxy, found.scores, found.labels
    kept = not_suppressed(boxes[None], scores[None], iou, labels[None], len(found.classes.names))
    rows = kept[0].nonzero()[:, 0]
    return rows[scores[rows].argsort(descending=True, stable=True)]
