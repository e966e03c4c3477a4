"""DETR: end-to-end object detection with transformers (Carion et al. 2020, arXiv 2005.12872).

Idea: detection is the prediction of a set. A transformer maps a feature map and a fixed number of learned queries to as
many boxes in parallel; in training each object is matched with one box, so no non-maximum suppression is needed.

=====================================  =================================================
paper                                  here
=====================================  =================================================
N, number of predictions               ``num_queries``
object queries (output positions)      ``Queries.position``, ``queries.embedding``
decoder input, zero                    ``Queries.content``
z_0, projected feature map (3.2)       ``Pyramid.tokens``
spatial positional encoding (A.4)      ``Pyramid.position``
"no object" class, its weight (3.1)    ``Softmax``, ``no_object_weight``
L_Hungarian, Eq. 2                     ``criterion.set_criterion``
DC5                                    ``backbone.dilated``
=====================================  =================================================

Deviations: the weighted mean of the class loss is over the whole batch, in the authors' code over each process. The
values of the first self-attention are zero, so its output is a constant (up to dropout); it is kept because checkpoints
contain its weights. ``classification=Focal()`` with 300 queries is DETR-DC5+ of Deformable DETR's tables.
"""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Le, Lt
from torch import nn

from detrs.backbones.timm import BackboneConfig, TimmBackbone
from detrs.boxes import absolute
from detrs.classification import Classification, Softmax
from detrs.layers.attention import GlobalCrossAttention, SelfAttention
from detrs.layers.decoder import Decoder, DecoderLayer, keep
from detrs.layers.heads import DetectionHead, box_mlp, class_layer
from detrs.layers.initialization import XAVIER, ExactLinear
from detrs.models.checks import check_queries
from detrs.models.detector import Detector
from detrs.models.single_scale import check_single_scale, feedforward, global_encoder, sine_neck
from detrs.structures import Pyramid, Queries


@dataclass(frozen=True, kw_only=True)
class DETRConfig:
    """DETR and its variants."""

    num_classes: Annotated[int, Ge(1), Le(100_000)] = 91
    """Number of classes (K); training sets it from the dataset."""
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(stages=(5,)))
    dim: Annotated[int, Ge(1), Le(8_192)] = 256
    """Embedding dimension (C); a multiple of 4 and of ``num_heads``."""
    num_heads: Annotated[int, Ge(1), Le(1_024)] = 8
    """M, attention heads."""
    encoder_layers: Annotated[int, Ge(0), Le(100)] = 6
    """Layers of the encoder; 0: no encoder."""
    decoder_layers: Annotated[int, Ge(1), Le(100)] = 6
    """Layers of the decoder; each makes a prediction."""
    ffn_dim: Annotated[int, Ge(1), Le(65_536)] = 2048
    """Hidden dimension of the feed-forward networks."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Dropout on attention, after it and inside feed-forward networks, in training."""
    num_queries: Annotated[int, Ge(1), Le(100_000)] = 100
    """Object queries (Q); each is matched with one object at most, so no image may have more objects."""
    classification: Classification = field(default_factory=Softmax)
    """``Softmax``: one distribution over the classes and "no object". ``Focal``: one sigmoid per class (DETR-DC5+)."""


class PositionQueries(nn.Module):
    """Learned position embeddings; contents start at zero, and there is no reference."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_queries, dim)

    def forward(self, memory: Pyramid) -> tuple[Queries, None]:
        position = self.embedding.weight[None].expand(memory.tokens.shape[0], -1, -1)
        return Queries(torch.zeros_like(position), position, reference=position[..., :0]), None


def build(config: DETRConfig, pretrained: bool = False) -> Detector:
    """The variant that ``config`` describes."""
    backbone = TimmBackbone(config.backbone, pretrained)
    return Detector(
        backbone=backbone,
        neck=sine_neck(backbone.channels, config.dim),
        encoder=global_encoder(config),
        queries=PositionQueries(config.num_queries, config.dim),
        decoder=decoder(config),
        classification=config.classification,
    )


def decoder(config: DETRConfig) -> Decoder:
    """Layers, and one head for all of them, which starts with the decoder's final normalization."""
    head = DetectionHead(
        class_layer(config.dim, config.num_classes, config.classification),
        box_mlp(ExactLinear(config.dim, 4)),
        absolute,
        norm=nn.LayerNorm(config.dim),
    )
    count = config.decoder_layers
    return Decoder((decoder_layer(config) for _ in range(count)), [head] * count, keep)


def decoder_layer(config: DETRConfig) -> DecoderLayer:
    self_attention = SelfAttention(config.dim, config.num_heads, config.dropout, XAVIER)
    cross_attention = GlobalCrossAttention(config.dim, config.num_heads, config.dropout, XAVIER)
    return DecoderLayer(self_attention, cross_attention, feedforward(config), config.dim, config.dropout)


def check(config: DETRConfig) -> None:
    """Check that settings do not contradict each other."""
    check_single_scale(config)


def check_capacity(config: DETRConfig, max_objects: int) -> None:
    """Check that no image has more objects than queries."""
    check_queries(max_objects, config.num_queries, enough=max_objects)
