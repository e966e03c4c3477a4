"""From a prediction to detections: scores, labels, and boxes in pixels of the original image."""

from collections.abc import Sequence

import torch

from detrs.boxes import cxcywh_to_xyxy
from detrs.classification import Classification
from detrs.structures import Classes, Detections, Prediction


@torch.no_grad()
def detections(
    prediction: Prediction,
    image_sizes: Sequence[tuple[int, int]],
    classes: Classes,
    classification: Classification,
    *,
    max_detections: int = 100,
    sources: Sequence[str] = (),
) -> list[Detections]:
    """The ``max_detections`` best answers of each image: no threshold, no non-maximum suppression, no clipping.

    Args:
        prediction: logits (B, Q, K), as ``classification`` means them, and cxcywh boxes in [0, 1].
        image_sizes: (height, width) in pixels of each of the B original images.
        classes: names and ids of the classes.
        classification: what logits mean; that of the model. With ``Focal`` a query can appear with several classes.
        max_detections: at most this many per image.
        sources: where each image came from.
    """
    best = classification.best(prediction.logits, max_detections)
    boxes = cxcywh_to_xyxy(prediction.boxes.float()).gather(1, best.queries[..., None].expand(-1, -1, 4))  # (B, N, 4)
    scale = torch.tensor([(w, h, w, h) for h, w in image_sizes], dtype=boxes.dtype, device=boxes.device)
    boxes, values, labels = (boxes * scale[:, None]).cpu(), best.scores.cpu(), best.labels.cpu()
    return [
        Detections(boxes[i], values[i], labels[i], classes, size, sources[i] if sources else "")
        for i, size in enumerate(image_sizes)
    ]
