"""Samples and losses of the two stages of Faster R-CNN: anchors, then proposals.

Matching and sampling are torchvision's. Losses are means over the samples of an image, then over the images of the
whole batch; torchvision's are means over all samples of a micro-batch, which is the same if all images have equally
many.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.ops import box_iou

from detrs.boxes import generalized_iou

BETA = 1 / 9
"""Distance at which the smooth L1 loss turns from a square into a line."""
ANCHORS_PER_IMAGE, POSITIVE_ANCHORS = 256, 0.5
"""Sampled anchors, and the largest fraction of them that contains objects."""
POSITIVE_ROIS = 0.25
"""Largest fraction of the sampled proposals that contains objects."""
MATCH_ANCHORS = Matcher(0.7, 0.3, allow_low_quality_matches=True)
MATCH_ROIS = Matcher(0.5, 0.5, allow_low_quality_matches=False)


def matched(
    matcher: Matcher, boxes: Float[Tensor, "N 4"], objects: Float[Tensor, "T 4"], excluded: Bool[Tensor, "N"]
) -> tuple[Int[Tensor, "N"], Int[Tensor, "N"]]:
    """Index of the object of each box, and 1 (object), 0 (background) or -1 (neither: not sampled)."""
    if len(objects) == 0:
        nothing = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
        return nothing, nothing.masked_fill(excluded, -1)
    index = matcher(box_iou(objects, boxes).masked_fill(excluded, -1.0))
    kind = (index >= 0).long().masked_fill(index == matcher.BETWEEN_THRESHOLDS, -1)
    return index.clamp(min=0), kind.masked_fill(excluded, -1)


def anchor_losses(
    logits: Float[Tensor, "A"],
    deltas: Float[Tensor, "A 4"],
    outside: Bool[Tensor, "A"],
    objects: Float[Tensor, "T 4"],
    anchors: Float[Tensor, "A 4"],
    coder: BoxCoder,
) -> Float[Tensor, "2"]:
    """Objectness and box loss of one image: means over up to 256 random anchors.

    Args:
        logits: of "any object".
        deltas: code of the box.
        outside: anchors on padding.
        objects: xyxy in pixels.
        anchors: xyxy in pixels.
        coder: of ``deltas``.
    """
    index, kind = matched(MATCH_ANCHORS, anchors, objects, outside)
    positive, negative = BalancedPositiveNegativeSampler(ANCHORS_PER_IMAGE, POSITIVE_ANCHORS)([kind])
    chosen = torch.where(positive[0])[0]
    sampled = torch.cat([chosen, torch.where(negative[0])[0]])
    count = max(len(sampled), 1)
    objectness = F.binary_cross_entropy_with_logits(logits[sampled], kind[sampled].to(logits.dtype), reduction="sum")
    codes = coder.encode_single(objects[index[chosen]], anchors[chosen])
    box = F.smooth_l1_loss(deltas[chosen], codes, beta=BETA, reduction="sum")
    return torch.stack([objectness, box]) / count


class Samples(NamedTuple):
    """The R proposals of one image that are trained."""

    boxes: Float[Tensor, "R 4"]
    """xyxy in pixels."""
    labels: Int[Tensor, "R"]
    """0: background; k + 1: an object of class k."""
    objects: Float[Tensor, "R 4"]
    """Box of the object; any numbers for background."""


def sample(
    proposals: Float[Tensor, "N 4"], objects: Float[Tensor, "T 4"], labels: Int[Tensor, "T"], count: int
) -> Samples:
    """Up to ``count`` random proposals of one image; the objects themselves are proposals too."""
    boxes = torch.cat([proposals, objects])
    index, kind = matched(MATCH_ROIS, boxes, objects, torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device))
    positive, negative = BalancedPositiveNegativeSampler(count, POSITIVE_ROIS)([kind])
    chosen = torch.where(positive[0] | negative[0])[0]
    if len(objects) == 0:
        return Samples(boxes[chosen], kind[chosen], boxes[chosen])
    index = index[chosen]
    return Samples(boxes[chosen], (labels[index] + 1) * kind[chosen], objects[index])


def roi_losses(
    logits: Float[Tensor, "R _"], deltas: Float[Tensor, "R _ 4"], samples: list[Samples], coder: BoxCoder
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Class, smooth L1 and 1 - GIoU loss: sums over the images of means over their samples.

    Args:
        logits: of background and each class, for the samples of all images.
        deltas: code of the box for background (unused) and each class.
        samples: of each image.
        coder: of ``deltas``.
    """
    boxes, labels, objects = (torch.cat(parts) for parts in zip(*samples, strict=True))
    weights = torch.cat([logits.new_full((len(each.labels),), 1 / max(len(each.labels), 1)) for each in samples])
    classes = (F.cross_entropy(logits, labels, reduction="none") * weights).sum()
    chosen = torch.where(labels > 0)[0]
    predicted, weights = deltas[chosen, labels[chosen]], weights[chosen]
    codes = coder.encode_single(objects[chosen], boxes[chosen])
    distance = F.smooth_l1_loss(predicted, codes, beta=BETA, reduction="none").sum(1)
    overlap = generalized_iou(coder.decode_single(predicted, boxes[chosen]), objects[chosen])
    return classes, (distance * weights).sum(), ((1 - overlap) * weights).sum()
