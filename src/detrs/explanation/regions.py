"""Views of regions: those that dynamic filters read (Sparse R-CNN, Dynamic DETR), and proposals (Faster R-CNN)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from detrs.boxes import xyxy_to_cxcywh
from detrs.explanation.recording import Call, Selection
from detrs.explanation.tracing import Trace
from detrs.explanation.views import Duplicate, LayerTrace, RegionView
from detrs.models.faster_rcnn import Candidates, FasterRCNN, RegionPrediction, limits_of
from detrs.structures import Queries


def dynamic_filter_view(call: Call, selection: Selection) -> RegionView:
    """Of ``DynamicInteraction``, ``DepthwiseFilter`` or ``SharedFilter``.

    The response of a cell is the Euclidean norm of its features behind the filters, normalization and ReLU: what the
    layer that follows receives.
    """
    queries: Queries = call.arguments[0]
    chosen = selection.queries.to(queries.content.device)
    features: Tensor = call.module.responses(*call.arguments)[0, chosen]  # type: ignore[operator]
    side = round(features.shape[1] ** 0.5)
    return RegionView(
        stage=call.stage,
        layer=call.layer,
        name=call.name,
        queries=selection.queries,
        boxes=queries.reference[0, chosen].float().cpu(),
        responses=features.norm(dim=2).unflatten(1, (side, side)).float().cpu(),
    )


def proposal_view(call: Call, selection: Selection) -> RegionView:
    """Of ``FasterRCNN``: the proposals, from which features are pooled, with their probability of any object."""
    found: RegionPrediction = call.output
    chosen = selection.queries.to(found.proposals.device)
    return RegionView(
        stage="decoder",
        layer=0,
        name="rpn",
        queries=selection.queries,
        boxes=proposed_boxes(call)[chosen.cpu()],
        responses=None,
        objectness=found.objectness[0, chosen].sigmoid().float().cpu(),
    )


def proposed_boxes(call: Call) -> Tensor:
    """The proposals of ``FasterRCNN`` (N, 4), cxcywh in [0, 1] of the un-padded image."""
    found: RegionPrediction = call.output
    return xyxy_to_cxcywh(found.proposals[0] / limits_of(call.arguments[1], found)).float().cpu()


def faster_rcnn_classes(model: FasterRCNN) -> set[type[nn.Module]]:
    """The whole model, whose output is all that its ``detect`` needs."""
    return {type(model)}


def faster_rcnn_trace(model: FasterRCNN, calls: Sequence[Call], max_detections: int) -> Trace:
    """One layer: each proposal, and its box for its best class."""
    (call,) = [call for call in calls if call.module is model]
    found: RegionPrediction = call.output
    limits = limits_of(call.arguments[1], found)
    scores = model.scores(found)[0]  # (N, K)
    candidates = model.candidates(found, limits)
    best, order = model.best(candidates, max_detections)
    proposals = torch.arange(len(scores), device=scores.device)
    boxes = model.boxes(found, proposals[None], scores.argmax(1)[None], limits)[0]
    layer = (proposed_boxes(call), xyxy_to_cxcywh(boxes / limits), scores)
    relative = xyxy_to_cxcywh(candidates.boxes_xyxy / limits[:, None])[0].detach().float().cpu()
    return Trace(
        layers=(LayerTrace(*(each.detach().float().cpu() for each in layer)),),
        queries=candidates.proposals.gather(1, order)[0].cpu(),
        labels=candidates.labels.gather(1, order)[0].cpu(),
        scores=best[0].detach().cpu(),
        boxes=relative[order[0].cpu()],
        suppressed=suppressed(candidates, relative, order[0], model.config.nms_iou),
    )


def suppressed(candidates: Candidates, relative: Tensor, kept: Tensor, iou: float) -> tuple[tuple[Duplicate, ...], ...]:
    """The candidates that suppression removed for each of those that it kept, best first.

    A candidate is removed for the best one of its class that overlaps it.

    Args:
        candidates: of one image.
        relative: (n, 4) their boxes, cxcywh in [0, 1] of the image.
        kept: (N,) indices of candidates, best first.
        iou: smallest overlap of duplicates.
    """
    places = relative.tolist()
    boxes, scores, labels, proposals = (each[0].detach().cpu() for each in candidates)
    kept = kept.cpu()
    overlap = box_iou(boxes[kept].double(), boxes.double())  # (N, n)
    overlap = overlap.masked_fill(labels[kept][:, None] != labels, 0.0)
    near = (overlap > iou) & (scores[kept] > 0)[:, None] & (scores > 0)
    order = kept.argsort()  # in which suppression takes them, also those of equal scores
    near &= (near[order].cumsum(0) == 1)[order.argsort()]  # for the first only
    near[torch.arange(len(kept)), kept] = False
    return tuple(
        tuple(
            Duplicate(int(proposals[i]), int(labels[i]), float(scores[i]), float(overlaps[i]), tuple(places[i]))
            for i in row.nonzero()[:, 0].tolist()
        )
        for row, overlaps in zip(near, overlap, strict=True)
    )
