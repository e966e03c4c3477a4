"""DAB-Deformable-DETR: Deformable DETR whose queries are learned boxes (Liu et al. 2022, arXiv 2201.12329, appendix C).

With ``indicator`` and denoising in training, DN-Deformable-DETR (Li et al. 2022, arXiv 2203.01305): boxes of objects
with noise are further queries, whose objects are known, so that boxes are learned before matching is stable.

==============================================  =============================================================
paper                                           here
==============================================  =============================================================
A_q, dynamic anchor boxes (DAB, 3.2)            ``Queries.reference``, ``AnchorQueries``
P_q = MLP(PE(A_q)) (DAB, Eq. 2)                 ``BoxPosition``
factor of P_q from the content                  ``ScaledBoxPosition``, from the second layer on
unknown class, indicator (DN, 4.3)              ``LearnedContent``
denoising groups, noise (DN, 4.2)               ``criterion.denoising``, ``criterion/denoising.py``
==============================================  =============================================================

As in the authors' code: sides that the first head predicts start at 0.14 times the odds of the reference's.
"""

from dataclasses import replace
from functools import partial

from detrs.backbones.timm import TimmBackbone
from detrs.config.dab_deformable_detr import DABDeformableDETRConfig
from detrs.criterion.training_objective import set_objective
from detrs.layers.anchors import (
    FRAMES,
    AnchoredLayer,
    AnchorQueries,
    BoxPosition,
    LearnedContent,
    ScaledBoxPosition,
    offset_from_anchor,
    scale_mlp,
)
from detrs.layers.autocast import tokens_for_linear_layers
from detrs.layers.decoder import Decoder, refine
from detrs.layers.encoder import Encoder
from detrs.layers.heads import DetectionHead, box_mlp, class_layer, zero_box_layer
from detrs.layers.neck import APPLICATIONS, ChannelMapper, LevelEmbedding, PyramidNeck, normalized_projection
from detrs.layers.position import SinePosition
from detrs.models.deformable_layers import decoder_layer, encoder_layer
from detrs.models.detector import Detector


def build(config: DABDeformableDETRConfig, pretrained: bool = False) -> Detector:
    """The variant that ``config`` describes."""
    backbone = TimmBackbone(config.backbone, pretrained)
    apply = APPLICATIONS[config.neck_norm]
    return Detector(
        backbone=backbone,
        neck=PyramidNeck(
            ChannelMapper(backbone.channels, config.dim, config.num_levels, normalized_projection, apply),
            SinePosition(config.dim, shift=-0.5),
            LevelEmbedding(config.num_levels, config.dim),
        ),
        encoder=Encoder(encoder_layer(config) for _ in range(config.encoder_layers)),
        queries=queries(config),
        decoder=decoder(config),
        classification=config.classification,
        objective=partial(set_objective, learned=partial(further_queries, config)),
    )


def queries(config: DABDeformableDETRConfig) -> AnchorQueries:
    """Learned boxes and contents."""
    learned = config.dim - 1 if config.indicator else config.dim
    content = LearnedContent(config.num_queries, 1, learned, indicator=config.indicator)
    return AnchorQueries(config.num_queries, 1, content)


def further_queries(config: DABDeformableDETRConfig, count: int) -> AnchorQueries:
    """``count`` more queries for training."""
    return queries(replace(config, num_queries=count))


def decoder(config: DABDeformableDETRConfig) -> Decoder:
    """Layers with heads of their own; position embeddings and their scale are one module for all."""
    position, scale = BoxPosition(config.dim, FRAMES[config.position_frame]), scale_mlp(config.dim)
    count = config.decoder_layers
    positions = [position, *(ScaledBoxPosition(position, scale) for _ in range(count - 1))]
    layers = [AnchoredLayer(each, decoder_layer(config)) for each in positions]
    heads = [head(config, size_bias) for size_bias in [-2.0] + [0.0] * (count - 1)]
    return Decoder(layers, heads, refine, tokens_for_linear_layers)


def head(config: DABDeformableDETRConfig, size_bias: float) -> DetectionHead:
    classes = class_layer(config.dim, config.num_classes, config.classification)
    return DetectionHead(classes, box_mlp(zero_box_layer(config.dim, size_bias)), offset_from_anchor)
