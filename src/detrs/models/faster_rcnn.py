"""Faster R-CNN with a feature pyramid network (Ren et al. 2015, arXiv 1506.01497; Lin et al. 2017, arXiv 1612.03144).

Idea: a network scores anchors, boxes of fixed sizes at every cell; the best become proposals. Features pooled from each
proposal are classified and refine its box. Duplicates are removed by non-maximum suppression. It is the baseline of the
detectors without anchors and suppression.

=========================================  ===========================================
paper                                      here
=========================================  ===========================================
P2 ... P6                                  ``FeaturePyramid``
region proposal network, k anchors         ``RegionProposalNetwork``, ``anchor_sizes``
p_i, t_i of an anchor                      ``AnchorScores.logits``, ``.deltas``
RoI pooling, Eq. 1 of FPN                  ``RoIPooling``
p, t^k of a proposal                       ``RegionPrediction.logits``, ``.deltas``
L_cls, L_reg                               ``criterion/region_losses.py``
=========================================  ===========================================

The parts are torchvision's; weights of the same parts of its model fit. Deviations from torchvision, with reasons:

- Images are resized and normalized by this library, not by ``GeneralizedRCNNTransform``, and are not padded to a
  multiple of 32; anchors have the exact strides for images of any size.
- Padding is zero for the convolutions behind the backbone, is never sampled or proposed, and does not change
  interpolation at the border. From the feature maps of the backbone on, detections do not depend on it. Boxes at the
  right or bottom border that are smaller than a cell are pooled from the border, not partly from zeros.
- Losses are means over the samples of each image, then over the images of the whole batch, so they do not depend on
  micro-batches. ``criterion.giou_weight`` adds the loss of the DETR paper's baseline.
- Non-maximum suppression of detections considers the best 2000 candidates, so ``detect`` has tensors of fixed size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from detrs.backbones.timm import TimmBackbone
from detrs.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detrs.config.criterion import CriterionConfig
from detrs.config.faster_rcnn import FasterRCNNConfig
from detrs.criterion.objective import Objective
from detrs.criterion.region_losses import anchor_losses, roi_losses, sample
from detrs.layers.fpn import FeaturePyramid, extended
from detrs.layers.initialization import ExactLinear
from detrs.layers.neck import check_padding
from detrs.layers.region_proposals import AnchorScores, RegionProposalNetwork, clipped
from detrs.layers.roi_pooling import RoIPooling, RoIs, rois_of
from detrs.models.detector import Model
from detrs.ops.suppression import not_suppressed
from detrs.precision import full_precision
from detrs.structures import Batch, Boxes, Losses, Totals

CANDIDATES = 2000
"""Boxes with a class that non-maximum suppression considers, per image."""
MIN_SIDE = 1e-2
"""Smallest side of a detection, in pixels."""
BOX_CODE = (10.0, 10.0, 5.0, 5.0)
"""Scale of the four numbers that code a box relative to its proposal."""


class RegionPrediction(NamedTuple):
    """Proposals of each image, and the class and box of each."""

    proposals: Float[Tensor, "B N 4"]
    """xyxy in pixels."""
    objectness: Float[Tensor, "B N"]
    """Logit of "any object", from the proposal network; -inf for the rest of images with fewer proposals."""
    logits: Float[Tensor, "B N _"]
    """Of background and each class."""
    deltas: Float[Tensor, "B N _ 4"]
    """Code of the box for background (unused) and each class."""


class Candidates(NamedTuple):
    """The best boxes with a class before non-maximum suppression, highest score first."""

    boxes_xyxy: Float[Tensor, "B n 4"]
    """In pixels, clipped to the image."""
    scores: Float[Tensor, "B n"]
    """0 where the score is too low or the box too small."""
    labels: Int[Tensor, "B n"]
    proposals: Int[Tensor, "B n"]
    """Index of the proposal of each."""


class BoxHead(nn.Module):
    """Class and class-specific box of pooled features, in full precision."""

    def __init__(self, config: FasterRCNNConfig, size: int) -> None:
        super().__init__()
        self.hidden = TwoMLPHead(config.dim * size**2, config.hidden_dim)
        self.classes = ExactLinear(config.hidden_dim, config.num_classes + 1)
        self.boxes = ExactLinear(config.hidden_dim, 4 * (config.num_classes + 1))

    def forward(self, pooled: Float[Tensor, "R C _ _"]) -> tuple[Float[Tensor, "R _"], Float[Tensor, "R _ 4"]]:
        hidden = self.hidden(pooled)
        return self.classes(hidden), self.boxes(hidden).unflatten(1, (-1, 4))


class FasterRCNN(Model):
    """Backbone, feature pyramid, proposals, and a head for the features of each proposal."""

    def __init__(self, config: FasterRCNNConfig, pretrained: bool) -> None:
        super().__init__()
        self.config = config
        self.backbone = TimmBackbone(config.backbone, pretrained)
        strides = tuple(2**stage for stage in config.backbone.stages)
        self.neck = FeaturePyramid(self.backbone.channels, strides, config.dim, len(config.anchor_sizes))
        self.rpn = RegionProposalNetwork(config.dim, self.neck.strides, config.anchor_sizes, config.aspect_ratios)
        self.pooling = RoIPooling(strides, canonical_size=config.canonical_size, aligned=config.roi_aligned)
        self.head = BoxHead(config, self.pooling.size)
        self.coder = BoxCoder(BOX_CODE)

    def features(self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"]) -> list[Tensor]:
        """The levels of the pyramid, (B, C, h, w) each."""
        check_padding(padding)
        maps: list[Tensor] = self.neck(self.backbone(images), padding)
        return maps

    def classify(self, maps: list[Tensor], padding: Bool[Tensor, "B H W"], rois: RoIs) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, K + 1, 4) of boxes."""
        levels = [extended(x, padding, stride) for x, stride in zip(maps, self.pooling.strides, strict=False)]
        logits, deltas = self.head(self.pooling(levels, rois))
        return logits, deltas

    def forward(self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"]) -> RegionPrediction:
        maps = self.features(images, padding)
        scores = self.rpn(maps, padding)
        proposals, objectness = self.rpn.propose(scores, limits_of(padding, scores), self.config.num_proposals)
        logits, deltas = self.classify(maps, padding, rois_of(proposals))
        count = proposals.shape[:2]
        return RegionPrediction(proposals, objectness, logits.unflatten(0, count), deltas.unflatten(0, count))

    def objective(self, config: CriterionConfig) -> Objective:
        return RegionObjective(self, config)

    def detect(
        self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"], max_detections: int = 100
    ) -> Boxes:
        found = self(images, padding)
        limits = limits_of(padding, found)
        candidates = self.candidates(found, limits)
        scores, order = self.best(candidates, max_detections)
        boxes = xyxy_to_cxcywh(candidates.boxes_xyxy / limits[:, None]).gather(1, order[..., None].expand(-1, -1, 4))
        labels, nothing = candidates.labels.gather(1, order), scores == 0
        return Boxes(boxes.masked_fill(nothing[..., None], 0.0), scores, labels.masked_fill(nothing, 0))

    def scores(self, found: RegionPrediction) -> Float[Tensor, "B N K"]:
        """Probability of each class of each proposal; 0 for the rest of images with fewer proposals."""
        return found.logits.softmax(-1)[..., 1:].masked_fill((found.objectness == -torch.inf)[..., None], 0.0)

    def candidates(self, found: RegionPrediction, limits: Float[Tensor, "B 4"]) -> Candidates:
        """The best pairs of proposal and class.

        Args:
            found: of this model.
            limits: (width, height, width, height) of each image.
        """
        scores = self.scores(found)
        num_classes = scores.shape[2]
        scores, best = scores.flatten(1).topk(torch.sym_min(CANDIDATES, scores.shape[1] * num_classes), dim=1)
        proposal, labels = best // num_classes, best % num_classes  # (B, n)
        boxes = self.boxes(found, proposal, labels, limits)
        wrong = (scores <= self.config.min_score) | ((boxes[..., 2:] - boxes[..., :2]).amin(-1) < MIN_SIDE)
        return Candidates(boxes, scores.masked_fill(wrong, 0.0), labels, proposal)

    def boxes(
        self,
        found: RegionPrediction,
        proposals: Int[Tensor, "B n"],
        labels: Int[Tensor, "B n"],
        limits: Float[Tensor, "B 4"],
    ) -> Float[Tensor, "B n 4"]:
        """xyxy in pixels of pairs of proposal and class, clipped to the image."""
        image = torch.arange(labels.shape[0], device=labels.device)[:, None]
        deltas, boxes = found.deltas[image, proposals, labels + 1], found.proposals[image, proposals]
        refined = self.coder.decode_single(deltas.flatten(0, 1), boxes.flatten(0, 1)).view_as(boxes)
        return clipped(refined, limits)

    def best(self, candidates: Candidates, count: int) -> tuple[Float[Tensor, "B _"], Int[Tensor, "B _"]]:
        """Scores and indices of the best candidates after non-maximum suppression within each class."""
        boxes, scores, labels, _ = candidates
        unique = not_suppressed(boxes, scores, self.config.nms_iou, labels, self.config.num_classes)
        scores = scores.masked_fill(~unique, 0.0)
        return scores.topk(torch.sym_min(count, scores.shape[1]), dim=1)


class RegionObjective(Objective):
    """The losses of both stages; ``box_weight`` and ``giou_weight`` of the criterion weight the second stage's."""

    def __init__(self, model: FasterRCNN, config: CriterionConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, batch: Batch, totals: Totals) -> Losses:
        model, padding = self.model, batch.padding
        maps = model.features(batch.images, padding)
        scores = model.rpn(maps, padding)
        limits = limits_of(padding, scores)
        labels = [target.labels for target in batch.targets]
        objects = [
            cxcywh_to_xyxy(target.boxes.to(size.dtype)) * size
            for target, size in zip(batch.targets, limits, strict=True)
        ]
        with full_precision(batch.images.device.type):
            anchors = [
                anchor_losses(*image, scores.anchors, model.rpn.coder)
                for image in zip(scores.logits, scores.deltas, scores.outside, objects, strict=True)
            ]
            proposals, objectness = model.rpn.propose(scores, limits, model.config.num_training_proposals)
            samples = [
                sample(boxes[mask], own, classes, model.config.num_samples)
                for boxes, mask, own, classes in zip(proposals, objectness > -torch.inf, objects, labels, strict=True)
            ]
        rois = [F.pad(each.boxes, (1, 0), value=i) for i, each in enumerate(samples)]
        logits, deltas = model.classify(maps, padding, torch.cat(rois))
        with full_precision(batch.images.device.type):
            terms = torch.stack([*torch.stack(anchors).sum(0), *roi_losses(logits, deltas, samples, model.coder)])
            terms = terms * (totals.processes / totals.images)
            total = terms.new_tensor([1.0, 1.0, 1.0, self.config.box_weight, self.config.giou_weight]) @ terms
        names = ("objectness_proposals", "box_proposals", "class", "box", "giou")
        return Losses(total, dict(zip(names, terms.detach(), strict=True)))


def limits_of(padding: Bool[Tensor, "B H W"], like: AnchorScores | RegionPrediction) -> Float[Tensor, "B 4"]:
    """(width, height, width, height) of each image in pixels, without padding."""
    size = torch.stack([(~padding[:, 0]).sum(1), (~padding[:, :, 0]).sum(1)], dim=-1)
    return size.repeat(1, 2).to(like.logits.dtype)


def build(config: FasterRCNNConfig, pretrained: bool = False) -> FasterRCNN:
    """The detector that ``config`` describes."""
    return FasterRCNN(config, pretrained)
