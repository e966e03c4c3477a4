"""DETR: end-to-end object detection with transformers (Carion et al. 2020, arXiv 2005.12872).

Idea: detection is the prediction of a set. A transformer turns a feature map and a fixed number of learned queries into
as many boxes at once; during training each object is matched with one box, so nothing has to be suppressed afterwards.

=====================================  =================================================
paper                                  here
=====================================  =================================================
N, number of predictions               ``num_queries``
object queries (output positions)      ``Queries.position``, ``queries.embedding``
decoder input, zero                    ``Queries.content``
z_0, projected feature map (3.2)       ``Pyramid.tokens``
spatial positional encoding (A.4)      ``Pyramid.position``
"no object" class, its weight (3.1)    ``classification="softmax"``, ``no_object_weight``
L_Hungarian, Eq. 2                     ``criterion.set_criterion``
DC5                                    ``backbone.dilated``
=====================================  =================================================

Deviations: the weighted mean of the class loss is that of the whole batch, in the authors' code that of each process.
The first layer's self-attention sees only zeros, so but for dropout it can say no more than one constant; it is kept,
because checkpoints have its weights. ``classification="focal"`` with 300 queries is DETR-DC5+ of Deformable DETR's
tables.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from detrs.backbones.timm import BackboneConfig, TimmBackbone
from detrs.boxes import absolute
from detrs.classification import Kind, classification_of
from detrs.layers.attention import GlobalLook, SelfAttention
from detrs.layers.decoder import Decoder, DecoderLayer, keep
from detrs.layers.heads import DetectionHead, class_layer
from detrs.layers.initialization import XAVIER, ExactLinear
from detrs.models.checks import check_ranges
from detrs.models.detector import Detector
from detrs.models.one_map import check_one_map, feedforward, global_encoder, sine_neck
from detrs.structures import Pyramid, Queries


@dataclass(frozen=True, kw_only=True)
class DETRConfig:
    """DETR and its variants."""

    num_classes: int = 91
    """Number of classes; training sets it from the data set."""
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(stages=(5,)))
    dim: int = 256
    """Width of tokens and queries (C); a multiple of 4 and of ``num_heads``."""
    num_heads: int = 8
    """M, attention heads."""
    encoder_layers: int = 6
    """Layers of the encoder; 0: the neck's tokens as they are."""
    decoder_layers: int = 6
    """Layers of the decoder, each with a prediction."""
    ffn_dim: int = 2048
    """Width inside the feed-forward networks."""
    dropout: float = 0.1
    """Dropout on attention, after it and inside feed-forward networks, in training."""
    num_queries: int = 100
    """Objects the detector can find in one image."""
    classification: Kind = "softmax"
    """``softmax``: one distribution over the classes and "no object". ``focal``: one sigmoid per class (DETR-DC5+)."""


class PositionQueries(nn.Module):
    """Learned positions with nothing in them: contents start at zero, and there is no reference."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_queries, dim)

    def forward(self, memory: Pyramid) -> tuple[Queries, None]:
        position = self.embedding.weight[None].expand(memory.tokens.shape[0], -1, -1)
        return Queries(torch.zeros_like(position), position, reference=position[..., :0]), None


def build(config: DETRConfig, pretrained: bool = False) -> Detector:
    """Assemble the variant that ``config`` describes.

    Raises:
        UserError: for settings out of range.
    """
    check(config)
    backbone = TimmBackbone(config.backbone, pretrained)
    return Detector(
        backbone=backbone,
        neck=sine_neck(backbone.channels, config.dim),
        encoder=global_encoder(config),
        queries=PositionQueries(config.num_queries, config.dim),
        decoder=decoder(config),
    )


def decoder(config: DETRConfig) -> Decoder:
    """Layers, and one head for all of them, which begins with the decoder's final normalisation."""
    head = DetectionHead(
        class_layer(config.dim, config.num_classes, classification_of(config.classification)),
        ExactLinear(config.dim, 4),
        absolute,
        norm=nn.LayerNorm(config.dim),
    )
    count = config.decoder_layers
    return Decoder((decoder_layer(config) for _ in range(count)), [head] * count, keep)


def decoder_layer(config: DETRConfig) -> DecoderLayer:
    self_attention = SelfAttention(config.dim, config.num_heads, config.dropout, XAVIER)
    look = GlobalLook(config.dim, config.num_heads, config.dropout, XAVIER)
    return DecoderLayer(self_attention, look, feedforward(config), config.dim, config.dropout)


def check(config: DETRConfig) -> None:
    """Refuse what cannot be built, with the setting's name."""
    check_ranges(config)
    check_one_map(config)
