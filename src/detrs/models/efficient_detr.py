"""Efficient DETR: improving end-to-end object detector with dense prior (Yao et al. 2021, arXiv 2104.01318).

Idea: most decoder layers compensate for queries that start anywhere. Here a dense prediction of every token of the
encoder gives the reference boxes and the contents of the queries, so a single decoder layer is sufficient. The dense
and the sparse part have the same head and the same loss.

=====================================  =================================================
paper                                  here
=====================================  =================================================
dense part, dense detections           ``DenseQueries``, ``Predictions.proposals``
one detection head for both parts      ``shared_head``
objectness: score of the best class    ``best_class``
4-d proposal -> reference points       ``Queries.reference``
256-d encoder feature -> queries       ``Queries.content``
number of proposals, decreasing        ``num_queries``, ``initial_queries``, ``LinearDecrease``
3 encoder layers, 1 decoder layer      ``encoder_layers``, ``decoder_layers``
=====================================  =================================================

There is no official code. What the paper leaves open is a setting, or follows the nearest public implementation
(Sparse DETR's "efficient" options), whose transformer gives the same numbers with the same weights:

- ``token_transform``: the head receives linearly transformed, normalized tokens, as in two-stage Deformable DETR.
- The position embedding of a query is a learned projection of the sine features of its reference box.
- ``dropout`` is 0.1, and dense and sparse losses have the same weight.
- ``initial_queries``: the paper trains with a decreasing number of proposals; here from 300 to 100, over 36 epochs of
  COCO. The last number is that of prediction.

Deviation from that implementation: tokens without a valid anchor, padding for example, become queries only if there are
fewer others than queries (``proposals="usable"``). There they can always do so, and their contents, which nothing else
uses, would reach the predictions. ``proposals="all"`` restores this.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from detrs.backbones.timm import TimmBackbone
from detrs.boxes import offset_from_box
from detrs.classification import ProposalLabels
from detrs.config.criterion import CriterionConfig
from detrs.config.efficient_detr import EfficientDETRConfig
from detrs.criterion.objective import Objective
from detrs.criterion.training_objective import set_objective
from detrs.layers.autocast import tokens_for_linear_layers
from detrs.layers.decoder import Decoder, refine
from detrs.layers.encoder import Encoder
from detrs.layers.heads import BoxCoder, DetectionHead, box_mlp, class_layer, zero_box_layer
from detrs.layers.initialization import xavier_linear
from detrs.layers.neck import (
    APPLICATIONS,
    ChannelMapper,
    LevelEmbedding,
    PyramidNeck,
    normalized_projection,
)
from detrs.layers.position import SinePosition, sine_features
from detrs.layers.queries import (
    CANDIDATES,
    Candidates,
    StartsFromBoxes,
    best_class,
    offset_from_logits,
    proposal_anchors,
)
from detrs.models.deformable_layers import decoder_layer, encoder_layer
from detrs.models.detector import Detector
from detrs.structures import Batch, Losses, Prediction, Pyramid, Queries, Totals

PROPOSALS: ProposalLabels = "classes"


class LinearDecrease(nn.Module):
    """Number of proposals that become queries: ``final`` in prediction; in training, ``initial`` at first, then linear.

    If both are equal, the count of images is not read, which would synchronize with the device.

    Args:
        initial: at the start of training.
        final: after ``images`` images, and in evaluation mode.
        images: training images over which the number decreases.
    """

    images_seen: Int[Tensor, ""]

    def __init__(self, initial: int, final: int, images: int) -> None:
        super().__init__()
        self.initial, self.final, self.images = initial, final, images
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.long))  # saved, so that runs can be resumed

    def forward(self) -> int:
        if not self.training or self.initial == self.final:
            return self.final
        progress = min(int(self.images_seen) / self.images, 1.0)
        return round(self.initial + (self.final - self.initial) * progress)

    def advance(self, images: int) -> None:
        """Count ``images`` more training images."""
        self.images_seen += images  # in place: a skipped step is undone


class DenseQueries(StartsFromBoxes, nn.Module):
    """Every token predicts classes and a box; the best become queries: their boxes references, their tokens contents.

    Gradients reach the encoder through the contents, but not the boxes through the references.

    Args:
        number: returns the number of queries; all tokens where there are fewer.
        dim: embedding dimension of tokens and queries.
        head: predicts classes and box of each token.
        token_transform: tokens to the input of the head.
        candidates: which tokens can become queries.
    """

    def __init__(
        self,
        number: LinearDecrease,
        dim: int,
        head: DetectionHead,
        token_transform: nn.Module,
        candidates: Candidates,
    ) -> None:
        super().__init__()
        self.number = number
        self.dim = dim
        self.token_transform = token_transform
        self.head = head
        self.candidates = candidates
        self.label_channels = dim
        self.box_proj = xavier_linear(2 * dim, dim)
        self.box_norm = nn.LayerNorm(dim)

    def count(self) -> int:
        """Queries of an image with enough tokens."""
        return self.number()

    def of_boxes(self, boxes: Float[Tensor, "B Q 4"]) -> tuple[Float[Tensor, "B Q C"], Float[Tensor, "B Q C"]]:
        """Content and position of queries that start at ``boxes``: without a token, the content is zero."""
        features = sine_features(boxes * 2 * math.pi, self.dim // 2).flatten(2)  # (B, Q, 2C)
        position = self.box_norm(self.box_proj(features.to(self.box_proj.weight.dtype)))
        return torch.zeros_like(position), position

    def forward(self, memory: Pyramid, further: int = 0) -> tuple[Queries, Prediction]:
        anchors, usable = proposal_anchors(memory)
        tokens = self.token_transform(memory.tokens.masked_fill(~usable, 0.0))
        proposals = self.head(Queries(tokens, memory.position, anchors), memory)
        scores = self.candidates(best_class(proposals.logits), usable[..., 0])
        best = scores.topk(min(self.number() + further, tokens.shape[1]), dim=1).indices[..., None]  # (B, Q, 1)
        reference = proposals.boxes.gather(1, best.expand(-1, -1, 4)).detach()
        content = memory.tokens.gather(1, best.expand(-1, -1, self.dim))
        return Queries(content, self.of_boxes(reference)[1], reference), proposals


class CountingObjective(Objective):
    """Dense and sparse set losses; counts the training images, on which the number of queries depends."""

    def __init__(self, detector: Detector, config: CriterionConfig) -> None:
        super().__init__()
        self.detector = detector
        self.losses = set_objective(detector, config, PROPOSALS)
        self.has_unused_parameters = self.losses.has_unused_parameters

    @property
    def training_parts(self) -> nn.Module:
        return self.losses.training_parts

    def forward(self, batch: Batch, totals: Totals) -> Losses:
        losses: Losses = self.losses(batch, totals)
        if self.training:
            queries: Any = self.detector.queries
            queries.number.advance(len(batch.targets) * totals.processes)
        return losses


def build(config: EfficientDETRConfig, pretrained: bool = False) -> Detector:
    """The variant that ``config`` describes."""
    backbone = TimmBackbone(config.backbone, pretrained)
    head = shared_head(config)
    return Detector(
        backbone=backbone,
        neck=PyramidNeck(
            ChannelMapper(
                backbone.channels,
                config.dim,
                config.num_levels,
                normalized_projection,
                APPLICATIONS[config.neck_norm],
            ),
            SinePosition(config.dim, shift=-0.5),
            LevelEmbedding(config.num_levels, config.dim),
        ),
        encoder=Encoder(encoder_layer(config) for _ in range(config.encoder_layers)),
        queries=DenseQueries(
            LinearDecrease(config.initial_queries or config.num_queries, config.num_queries, config.decrease_images),
            config.dim,
            head(offset_from_logits),
            token_transform(config),
            CANDIDATES[config.proposals],
        ),
        decoder=Decoder(
            [decoder_layer(config) for _ in range(config.decoder_layers)],
            [head(offset_from_box)] * config.decoder_layers,
            refine,
            tokens_for_linear_layers,
        ),
        classification=config.classification,
        objective=CountingObjective,
    )


def shared_head(config: EfficientDETRConfig) -> Callable[[BoxCoder], DetectionHead]:
    """A function from a box coder to a head; all heads have the same parameters."""
    classes = class_layer(config.dim, config.num_classes, config.classification)
    return partial(DetectionHead, classes, box_mlp(zero_box_layer(config.dim)))


def token_transform(config: EfficientDETRConfig) -> nn.Module:
    if not config.token_transform:
        return nn.Identity()
    return nn.Sequential(xavier_linear(config.dim, config.dim), nn.LayerNorm(config.dim))
