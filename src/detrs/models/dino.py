"""DINO: DETR with improved denoising anchor boxes (Zhang et al. 2022, arXiv 2203.03605).

Idea: a query is a box. It starts from a proposal of the encoder, with a learned content; every layer refines it, and
the loss of a layer also trains the refinement before it. In training, boxes of objects with noise are further queries,
whose objects are known: the decoder learns to denoise them before matching is stable, and that boxes that are too far
from an object are none. 12 epochs are enough.

===================================================  =========================================================
paper                                                here
===================================================  =========================================================
dynamic anchor boxes (from DAB-DETR)                 ``Queries.reference``, ``BoxPosition``
mixed query selection (3.3)                          ``MixedQueries``
look forward twice (3.4), Eq. 1                      ``LookForwardTwice``
contrastive denoising (3.2)                          ``criterion.denoising``, ``criterion/denoising.py``
lambda_1, lambda_2                                   noise of positives, of negatives: below 0.5, 0.5 to 1 sides
===================================================  =========================================================

Deviations from the paper, all as in the authors' code: one head for all decoder layers; it is applied to normalized
contents for the prediction and to plain ones for the next reference; the noise of boxes is 1.0, not 0.4. Deviations
from the code: with fewer tokens than queries, every token becomes a query instead of raising an error; fewer pairs than
50 are divided by the number of objects, too.

Options that are not in the paper: positions of queries relative to the image (``position_frame="image"``),
``proposals="usable"`` and ``neck_norm="group-masked"``, with which nothing depends on padding if the sides of the
batch are multiples of the largest stride (docs/models/deformable_detr.md, Padding); the presets of our own design use
them.
"""

from functools import partial

from torch import nn

from detrs.backbones.timm import TimmBackbone
from detrs.classification import ProposalLabels
from detrs.config.dino import DINOConfig
from detrs.criterion.training_objective import set_objective
from detrs.layers.anchors import FRAMES, AnchoredLayer, BoxPosition, offset_from_anchor
from detrs.layers.autocast import tokens_for_linear_layers
from detrs.layers.decoder import LookForwardTwice, refine
from detrs.layers.encoder import Encoder
from detrs.layers.heads import DetectionHead, box_mlp, class_layer, zero_box_layer
from detrs.layers.neck import APPLICATIONS, ChannelMapper, LevelEmbedding, PyramidNeck, normalized_projection
from detrs.layers.position import SinePosition
from detrs.layers.queries import CANDIDATES, MixedQueries, offset_from_logits
from detrs.models.deformable_layers import decoder_layer, encoder_layer
from detrs.models.detector import Detector

PROPOSALS: ProposalLabels = "classes"


def build(config: DINOConfig, pretrained: bool = False) -> Detector:
    """The variant that ``config`` describes."""
    backbone = TimmBackbone(config.backbone, pretrained)
    mapper = ChannelMapper(
        backbone.channels, config.dim, config.num_levels, normalized_projection, APPLICATIONS[config.neck_norm]
    )
    return Detector(
        backbone=backbone,
        neck=PyramidNeck(
            mapper,
            SinePosition(config.dim, shift=0.0, temperature=config.temperature),
            LevelEmbedding(config.num_levels, config.dim),
        ),
        encoder=Encoder(encoder_layer(config) for _ in range(config.encoder_layers)),
        queries=queries(config),
        decoder=decoder(config),
        classification=config.classification,
        objective=partial(set_objective, proposals=PROPOSALS),
    )


def queries(config: DINOConfig) -> MixedQueries:
    """From proposals, which have a head of their own."""
    classes = class_layer(config.dim, config.num_classes, config.classification)
    head = DetectionHead(classes, box_mlp(zero_box_layer(config.dim)), offset_from_logits)
    return MixedQueries(config.num_queries, config.dim, head, CANDIDATES[config.proposals])


def decoder(config: DINOConfig) -> LookForwardTwice:
    """Layers, one module for their position embeddings, and one head with the final normalization."""
    position = BoxPosition(config.dim, FRAMES[config.position_frame])
    classes = class_layer(config.dim, config.num_classes, config.classification)
    norm = nn.LayerNorm(config.dim)
    head = DetectionHead(classes, box_mlp(zero_box_layer(config.dim)), offset_from_anchor, norm)
    count = config.decoder_layers
    layers = [AnchoredLayer(position, decoder_layer(config)) for _ in range(count)]
    return LookForwardTwice(layers, [head] * count, refine, tokens_for_linear_layers)
