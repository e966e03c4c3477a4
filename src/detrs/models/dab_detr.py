"""DAB-DETR: dynamic anchor boxes are better queries for DETR (Liu et al. 2022, arXiv 2201.12329).

Idea: a query is a box (x, y, w, h). Its position embedding is made from the box in every layer, attention around it is
stretched by its width and height, and every layer moves it.

With ``content="unknown"`` and denoising in training, DN-DETR (Li et al. 2022, arXiv 2203.01305): boxes of objects with
noise are further queries, whose objects are known, so that boxes are learned before matching is stable.

==============================================  =============================================================
paper                                           here
==============================================  =============================================================
A_q = (x_q, y_q, w_q, h_q) (3.2)                ``Queries.reference``, ``AnchorQueries``
P_q = MLP(PE(A_q)) (Eq. 2, 3)                   ``BoxPosition``
MLP^(csq), content to a scale (3.3)             ``transform``
w_q,ref, h_q,ref, modulated attention (Eq. 6)   ``SizeModulatedLayer``
T, temperature (3.5)                            ``temperature``
anchor update (3.2)                             ``LookForwardTwice``
unknown class, indicator (DN, 4.3)              ``LearnedContent``
denoising groups, noise (DN, 4.2)               ``criterion.denoising``, ``criterion/denoising.py``
==============================================  =============================================================

Not in the paper, but in the authors' code: the position embeddings of the encoder are scaled by its tokens,
feed-forward networks have a PReLU, the head is applied to normalized contents for the prediction and to plain ones for
the next box, and the loss of a layer also trains the box before it.
"""

from dataclasses import replace
from functools import partial

from torch import nn

from detrs.backbones.timm import TimmBackbone
from detrs.config.dab_detr import DABDETRConfig
from detrs.criterion.training_objective import set_objective
from detrs.layers.anchors import (
    AnchoredLayer,
    AnchorQueries,
    BoxPosition,
    LearnedContent,
    RescaledSelfAttention,
    SizeModulatedLayer,
    ZeroContent,
    offset_from_anchor,
    scale_mlp,
    size_mlp,
)
from detrs.layers.attention import GlobalSelfAttention
from detrs.layers.conditional_attention import (
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    FirstCrossAttention,
    NoTransform,
)
from detrs.layers.decoder import LookForwardTwice, refine
from detrs.layers.encoder import Encoder, EncoderLayer
from detrs.layers.feedforward import PReLUFeedForward
from detrs.layers.heads import DetectionHead, box_mlp, class_layer, zero_box_layer
from detrs.layers.initialization import XAVIER
from detrs.layers.neck import ChannelMapper, PyramidNeck, plain_projection
from detrs.layers.position import SinePosition
from detrs.models.detector import Detector


def build(config: DABDETRConfig, pretrained: bool = False) -> Detector:
    """The variant that ``config`` describes."""
    backbone = TimmBackbone(config.backbone, pretrained)
    return Detector(
        backbone=backbone,
        neck=PyramidNeck(
            ChannelMapper(backbone.channels, config.dim, 1, plain_projection),
            SinePosition(config.dim, shift=0.0, temperature=config.temperature),
        ),
        encoder=encoder(config),
        queries=queries(config),
        decoder=decoder(config),
        classification=config.classification,
        objective=partial(set_objective, learned=partial(further_queries, config)),
    )


def queries(config: DABDETRConfig) -> AnchorQueries:
    """Learned boxes, each with the contents of all patterns."""
    return AnchorQueries(num_anchors(config), max(config.num_patterns, 1), content(config))


def further_queries(config: DABDETRConfig, count: int) -> AnchorQueries:
    """``count`` more queries for training, without patterns."""
    return queries(replace(config, num_queries=count, num_patterns=0))


def num_anchors(config: DABDETRConfig) -> int:
    """Number of learned boxes."""
    return config.num_queries // max(config.num_patterns, 1)


def content(config: DABDETRConfig) -> ZeroContent | LearnedContent:
    """Contents of queries before the first layer."""
    if config.num_patterns:
        return LearnedContent(config.num_patterns, num_anchors(config), config.dim)
    if config.content == "unknown":
        return LearnedContent(1, config.num_queries, config.dim - 1, indicator=True)
    return ZeroContent(config.num_queries, config.dim)


def encoder(config: DABDETRConfig) -> Encoder:
    """Layers with self-attention of all tokens, whose positions have one module for their scale."""
    scale, sizes = scale_mlp(config.dim), (config.dim, config.num_heads, config.dropout, XAVIER)
    attentions = [RescaledSelfAttention(scale, GlobalSelfAttention(*sizes)) for _ in range(config.encoder_layers)]
    return Encoder(EncoderLayer(each, feedforward(config), config.dim, config.dropout) for each in attentions)


def decoder(config: DABDETRConfig) -> LookForwardTwice:
    """Layers and one head; position embeddings, their scale and the predicted size are one module each for all."""
    dim, dropout, sizes = config.dim, config.dropout, (config.dim, config.num_heads, config.dropout)
    position, scale, size = BoxPosition(dim), scale_mlp(dim), size_mlp(dim)
    later = [(scale, ConditionalCrossAttention(*sizes)) for _ in range(config.decoder_layers - 1)]
    layers = []
    for transform, cross in [(NoTransform(), FirstCrossAttention(*sizes)), *later]:
        parts = ConditionalSelfAttention(*sizes), cross, feedforward(config), dim, dropout
        layers.append(AnchoredLayer(position, SizeModulatedLayer(size, transform, *parts)))
    classes = class_layer(dim, config.num_classes, config.classification)
    head = DetectionHead(classes, box_mlp(zero_box_layer(dim)), offset_from_anchor, nn.LayerNorm(dim))
    return LookForwardTwice(layers, [head] * config.decoder_layers, refine)


def feedforward(config: DABDETRConfig) -> PReLUFeedForward:
    return PReLUFeedForward(config.dim, config.ffn_dim, config.dropout, XAVIER)
