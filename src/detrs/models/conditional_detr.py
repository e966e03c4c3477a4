"""Conditional DETR for fast training convergence (Meng et al. 2021, arXiv 2108.06152).

Idea: in DETR's cross-attention a query must locate the extremities of an object by content and position in one product.
Here these are two products: one of contents, and one of positions with a spatial query computed from the query's
reference point. Each head learns to attend to one extremity or the inside of the box, in 6 to 10 times fewer epochs.

=====================================  ===========================================================
paper                                  here
=====================================  ===========================================================
o_q, object query (3.3)                ``Queries.position``, ``queries.embedding``
s, reference point (3.1)               ``queries.reference``; here after the sigmoid, in [0, 1]
p_s, its sine embedding                ``point_features``
c_q, c_k, p_q, p_k                     contents and positions of ``ConditionalCrossAttention``
T, lambda_q, the diagonal of T (3.3)   ``ConditionalLayer.transform``
FFN(f) + s, box regression (3.1)       ``offset_from_point``
=====================================  ===========================================================

Deviations from the paper, all as in the authors' code: contents of the first layer include the positions, and lambda
is 1 there; sine features of a point start with the row.
"""

from functools import partial

import torch
from torch import nn

from detrs.backbones.timm import TimmBackbone
from detrs.boxes import offset_from_point
from detrs.config.conditional_detr import ConditionalDETRConfig
from detrs.criterion.training_objective import set_objective
from detrs.layers.conditional_attention import (
    ConditionalCrossAttention,
    ConditionalLayer,
    ConditionalSelfAttention,
    FirstCrossAttention,
    NoTransform,
)
from detrs.layers.decoder import Decoder, keep
from detrs.layers.heads import DetectionHead, box_mlp, class_layer, zero_box_layer
from detrs.layers.initialization import ExactLinear, xavier_linear
from detrs.models.detector import Detector
from detrs.models.single_scale import feedforward, global_encoder, sine_neck
from detrs.structures import Pyramid, Queries


class PointQueries(nn.Module):
    """Learned position embeddings, each of which predicts its reference point; contents start at zero (3.1)."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_queries, dim)
        point = ExactLinear(dim, 2)
        nn.init.xavier_uniform_(point.weight)
        self.reference = nn.Sequential(xavier_linear(dim, dim), nn.ReLU(inplace=True), point)

    def forward(self, memory: Pyramid) -> tuple[Queries, None]:
        position = self.embedding.weight[None].expand(memory.tokens.shape[0], -1, -1)
        return Queries(torch.zeros_like(position), position, self.reference(position).sigmoid()), None


def build(config: ConditionalDETRConfig, pretrained: bool = False) -> Detector:
    """The variant that ``config`` describes."""
    backbone = TimmBackbone(config.backbone, pretrained)
    return Detector(
        backbone=backbone,
        neck=sine_neck(backbone.channels, config.dim),
        encoder=global_encoder(config),
        queries=PointQueries(config.num_queries, config.dim),
        decoder=decoder(config),
        classification=config.classification,
        objective=partial(set_objective, learned=partial(PointQueries, dim=config.dim)),
    )


def decoder(config: ConditionalDETRConfig) -> Decoder:
    """Layers, and one head for all of them, which starts with the decoder's final normalization."""
    dim, sizes = config.dim, (config.dim, config.num_heads, config.dropout)
    transform = nn.Sequential(xavier_linear(dim, dim), nn.ReLU(inplace=True), xavier_linear(dim, dim))
    later = [(transform, ConditionalCrossAttention(*sizes)) for _ in range(config.decoder_layers - 1)]
    layers = [
        ConditionalLayer(scale, ConditionalSelfAttention(*sizes), cross, feedforward(config), dim, config.dropout)
        for scale, cross in [(NoTransform(), FirstCrossAttention(*sizes)), *later]
    ]
    classes = class_layer(dim, config.num_classes, config.classification)
    head = DetectionHead(classes, box_mlp(zero_box_layer(dim)), offset_from_point, norm=nn.LayerNorm(dim))
    return Decoder(layers, [head] * config.decoder_layers, keep)
