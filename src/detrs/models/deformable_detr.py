"""Deformable DETR: deformable transformers for end-to-end object detection (Zhu et al. 2020, arXiv 2010.04159).

Idea: a query samples a few learned points around a reference instead of all pixels, so several large feature maps are
affordable, and training takes a tenth of DETR's epochs.

================================  ==========================================
paper                             here
================================  ==========================================
z_q, content of a query           ``Queries.content``
p_q, reference point              ``Queries.reference``
x^l, feature map of level l       ``Pyramid.tokens`` (all levels, flattened)
Delta p_mlqk, A_mlqk              ``sampling_offsets``, ``attention_weights``
W'_m, W_m                         ``value_proj``, ``output_proj``
M, K, L                           ``num_heads``, ``num_points``, ``num_levels``
iterative bounding box refinement ``reference="refine"``
two-stage                         ``queries="proposals"``
FPNs (Table 2)                    ``neck="fpn"``, ``neck="bifpn"``
multi-scale attention (Table 2)   ``encoder_attention``
================================  ==========================================

Deviation from the paper, as in the authors' code: refinement starts from points, not from boxes of 0.1. Deviation from
the code: with fewer tokens than queries, every token becomes a query instead of raising an error.

Options that are not in the paper: in the authors' code, tokens that are padding (or whose anchor is not inside the
image) are blanked, but can still become queries, and GroupNorm of the neck includes padding.
``proposals="usable"`` and ``neck_norm="group-masked"`` exclude both; the presets of our own design use them.

Not published for the ablation (Table 2), and chosen here: how FPN and BiFPN are connected (``neck``), the size of BiFPN
(``bifpn_layers``), and what "without multi-scale attention" means for a decoder whose queries have no level
(``encoder_attention="own-level"``: the decoder attends to all levels).
"""

from functools import partial

from detrs.backbones.timm import TimmBackbone
from detrs.boxes import offset_from_box, offset_from_point
from detrs.classification import ProposalLabels
from detrs.config.deformable_detr import DeformableDETRConfig
from detrs.criterion.training_objective import set_objective
from detrs.layers.autocast import tokens_for_linear_layers
from detrs.layers.decoder import Decoder, keep, refine
from detrs.layers.deformable_attention import OwnLevelSelfAttention
from detrs.layers.encoder import Encoder
from detrs.layers.fpn import FPN, BiFPN, BiFPNLayer, normalized_smoothing
from detrs.layers.heads import BoxCoder, DetectionHead, box_mlp, class_layer, zero_box_layer
from detrs.layers.neck import (
    APPLICATIONS,
    ChannelMapper,
    LevelEmbedding,
    PyramidNeck,
    normalized_projection,
)
from detrs.layers.position import SinePosition
from detrs.layers.queries import CANDIDATES, LearnedQueries, ProposalQueries, offset_from_logits
from detrs.models.deformable_layers import decoder_layer, encoder_layer
from detrs.models.detector import Detector

PROPOSALS: ProposalLabels = "objectness"


def build(config: DeformableDETRConfig, pretrained: bool = False) -> Detector:
    """The variant that ``config`` describes."""
    backbone = TimmBackbone(config.backbone, pretrained)
    return Detector(
        backbone=backbone,
        neck=PyramidNeck(
            mapper(config, backbone.channels),
            SinePosition(config.dim, shift=-0.5),
            LevelEmbedding(config.num_levels, config.dim),
        ),
        encoder=encoder(config),
        queries=queries(config),
        decoder=decoder(config),
        classification=config.classification,
        objective=partial(
            set_objective,
            proposals=PROPOSALS,
            learned=None if config.queries == "proposals" else partial(LearnedQueries, dim=config.dim),
        ),
    )


def mapper(config: DeformableDETRConfig, channels: tuple[int, ...]) -> ChannelMapper | FPN | BiFPN:
    """Maps of the backbone to one map per level."""
    sizes, apply = (channels, config.dim, config.num_levels), APPLICATIONS[config.neck_norm]
    if config.neck == "fpn":
        return FPN(*sizes, normalized_smoothing, apply)
    projections = ChannelMapper(*sizes, normalized_projection, apply)
    if config.neck == "projection":
        return projections
    return BiFPN(projections, (BiFPNLayer(config.num_levels, config.dim, apply) for _ in range(config.bifpn_layers)))


def queries(config: DeformableDETRConfig) -> LearnedQueries | ProposalQueries:
    """Learned, or from proposals, which have a separate head."""
    if config.queries == "learned":
        return LearnedQueries(config.num_queries, config.dim)
    proposal_head = head(config, offset_from_logits, size_bias=0.0)
    return ProposalQueries(config.num_queries, config.dim, proposal_head, PROPOSALS, CANDIDATES[config.proposals])


def decoder(config: DeformableDETRConfig) -> Decoder:
    """Layers and heads: learned queries start from points, proposals from boxes; refinement continues with boxes."""
    count = config.decoder_layers
    layers = [decoder_layer(config) for _ in range(count)]
    if config.reference == "keep":
        shared = head(config, offset_from_point, size_bias=-2.0)
        return Decoder(layers, [shared] * count, keep, tokens_for_linear_layers)
    first = (offset_from_point, -2.0) if config.queries == "learned" else (offset_from_box, 0.0)
    coders = [first[0]] + [offset_from_box] * (count - 1)
    biases = [first[1]] + [0.0] * (count - 1)
    heads = [head(config, coder, bias) for coder, bias in zip(coders, biases, strict=True)]
    return Decoder(layers, heads, refine, tokens_for_linear_layers)


def head(config: DeformableDETRConfig, box_coder: BoxCoder, size_bias: float) -> DetectionHead:
    classes = class_layer(config.dim, config.num_classes, config.classification)
    return DetectionHead(classes, box_mlp(zero_box_layer(config.dim, size_bias)), box_coder)


def encoder(config: DeformableDETRConfig) -> Encoder:
    """Layers whose tokens attend to all levels, or to their own."""
    if config.encoder_attention == "multi-scale":
        return Encoder(encoder_layer(config) for _ in range(config.encoder_layers))
    sizes = config.dim, config.num_heads, config.num_points
    return Encoder(encoder_layer(config, OwnLevelSelfAttention(*sizes)) for _ in range(config.encoder_layers))
