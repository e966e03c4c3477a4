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

from functools import partial

import torch
from torch import nn

from detrs.backbones.timm import TimmBackbone
from detrs.boxes import absolute
from detrs.config.detr import DETRConfig
from detrs.criterion.training_objective import set_objective
from detrs.layers.attention import GlobalCrossAttention, SelfAttention
from detrs.layers.decoder import Decoder, DecoderLayer, keep
from detrs.layers.heads import DetectionHead, box_mlp, class_layer
from detrs.layers.initialization import XAVIER, ExactLinear
from detrs.models.detector import Detector
from detrs.models.single_scale import feedforward, global_encoder, sine_neck
from detrs.structures import Pyramid, Queries


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
        objective=partial(set_objective, learned=partial(PositionQueries, dim=config.dim)),
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
