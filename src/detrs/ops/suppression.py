"""Non-maximum suppression of a batch as one operator with an output of fixed size.

torchvision's ``nms`` takes one image, and returns as many indices as boxes remain, a number unknown to the exporter.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import nms


def not_suppressed(
    boxes_xyxy: Float[Tensor, "B N 4"],
    scores: Float[Tensor, "B N"],
    iou: float,
    labels: Int[Tensor, "B N"] | None = None,
    num_classes: int = 1,
) -> Bool[Tensor, "B N"]:
    """Which boxes remain: they overlap no remaining box of their class with a higher score by more than ``iou``.

    Args:
        boxes_xyxy: in any unit.
        scores: any numbers; probabilities if there are labels.
        iou: largest intersection over union of two boxes that remain.
        labels: class of each box, below ``num_classes``; ``None``: boxes of all classes suppress each other.
        num_classes: K.
    """
    labels = torch.zeros_like(scores, dtype=torch.int64) if labels is None else labels
    mask: Tensor = _not_suppressed(boxes_xyxy.detach(), scores.detach(), labels, num_classes, iou)
    return mask


@torch.library.custom_op("detrs::not_suppressed", mutates_args=())
def _not_suppressed(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, iou: float) -> Tensor:
    device = boxes.device
    if device.type == "mps":  # has no float64
        boxes, scores, labels = boxes.cpu(), scores.cpu(), labels.cpu()
    if num_classes > 1 and boxes.numel():
        # Boxes of different classes do not overlap after this shift, which float32 rounds to pixels for many classes.
        low, high = boxes.amin((1, 2), keepdim=True).double(), boxes.amax((1, 2), keepdim=True).double()
        boxes, scores = boxes.double() + labels[..., None] * (high - low + 1), scores.double()
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for own, *image in zip(mask, boxes, scores, strict=True):
        own[nms(*image, iou)] = True
    return mask.to(device)


@_not_suppressed.register_fake
def _(boxes: Tensor, scores: Tensor, labels: Tensor, num_classes: int, iou: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)
