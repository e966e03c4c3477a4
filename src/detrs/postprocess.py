"""From a prediction to detections: scores, labels, and boxes in pixels of the original image."""

from collections.abc import Sequence

import torch

from detrs.boxes import cxcywh_to_xyxy
from detrs.structures import Classes, Detections, Prediction


@torch.no_grad()
def detections(
    prediction: Prediction,
    image_sizes: Sequence[tuple[int, int]],
    classes: Classes,
    *,
    max_detections: int = 100,
    sources: Sequence[str] = (),
) -> list[Detections]:
    """The ``max_detections`` best pairs of query and class of each image (Deformable DETR's post-processing).

    No threshold, no non-maximum suppression, no clipping; a query can appear with several classes.

    Args:
        prediction: logits (B, Q, K) and cxcywh boxes in [0, 1].
        image_sizes: (height, width) in pixels of each of the B original images.
        classes: names and ids of the K classes.
        max_detections: at most this many per image.
        sources: where each image came from.
    """
    scores = prediction.logits.float().sigmoid().flatten(1)  # (B, Q*K)
    best = scores.topk(min(max_detections, scores.shape[1]), dim=1)
    num_classes = prediction.logits.shape[2]
    query, labels = best.indices // num_classes, best.indices % num_classes
    boxes = cxcywh_to_xyxy(prediction.boxes.float()).gather(1, query[..., None].expand(-1, -1, 4))  # (B, N, 4)
    scale = torch.tensor([(w, h, w, h) for h, w in image_sizes], dtype=boxes.dtype, device=boxes.device)
    boxes, values, labels = (boxes * scale[:, None]).cpu(), best.values.cpu(), labels.cpu()
    return [
        Detections(boxes[i], values[i], labels[i], classes, size, sources[i] if sources else "")
        for i, size in enumerate(image_sizes)
    ]
