"""Sparse R-CNN: end-to-end object detection with learnable proposals (Sun et al. 2021, arXiv 2011.12450).

Idea: a small set of learned boxes replaces thousands of candidates. Each box has a feature vector that predicts the
filters with which its pooled region is read; six stages refine boxes and features. No query attends to the whole image.

=========================================  ================================================
paper                                      here
=========================================  ================================================
learnable proposal boxes (3.2)             ``Queries.reference``, ``queries.embedding``
learnable proposal features (3.2)          ``Queries.content``, ``queries.embedding``
RoIAlign on FPN (3.1)                      ``layers.roi_align``, ``layers.fpn``
self-attention of objects (3.2)            ``ContentSelfAttention``
dynamic instance interaction (3.2)         ``layers.dynamic_interaction``
iteration structure (3.2)                  ``Decoder`` with ``refine``
classification and regression (3.2)        ``TowerHead``
set prediction loss (3.3)                  ``criterion``, L1 of corners (``box_coordinates``)
=========================================  ================================================

Deviations from the authors' code: images are not padded to a multiple of 32, and FPN upsamples to the size of the finer
map; only the class bias has the prior of focal loss (their code sets every parameter whose last dimension is the number
of classes). As in their code, FPN and RoIs reach into the padding of a batch; ``padding="excluded"`` excludes it.
"""

from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.backbones.timm import TimmBackbone
from detrs.config.backbone import BackboneConfig
from detrs.config.sparse_rcnn import SparseRCNNConfig
from detrs.criterion.training_objective import set_objective
from detrs.layers.attention import MultiHeadAttention
from detrs.layers.decoder import Decoder, DecoderLayer, refine
from detrs.layers.dynamic_interaction import DynamicInteraction
from detrs.layers.encoder import Encoder
from detrs.layers.feedforward import FeedForward
from detrs.layers.fpn import FPN, smoothing
from detrs.layers.heads import TowerHead, class_layer
from detrs.layers.initialization import XAVIER, ExactLinear
from detrs.layers.neck import PyramidNeck, valid_inputs, whole_map
from detrs.layers.queries import LearnedBoxes
from detrs.layers.roi_align import RoIAlign, valid_levels, whole_levels
from detrs.models.detector import Detector
from detrs.structures import Queries


class NoPosition(nn.Module):
    """Empty position embedding of tokens: nothing attends to them."""

    def forward(self, padding: Bool[Tensor, "B H W"]) -> Float[Tensor, "B H W 0"]:
        return torch.empty(*padding.shape, 0, device=padding.device)


class ProposalEmbedding(LearnedBoxes):
    """Learned boxes and features (3.2), without positions."""

    def of_boxes(self, boxes: Float[Tensor, "B Q 4"]) -> tuple[Float[Tensor, "B Q C"], Float[Tensor, "B Q 0"]]:
        """Zero, and no position."""
        content, _ = super().of_boxes(boxes)
        return content, content[..., :0]


class ContentSelfAttention(nn.Module):
    """Self-attention of queries without position embeddings."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout, XAVIER)

    def forward(self, queries: Queries) -> Float[Tensor, "B Q C"]:
        return self.attention(queries.content, queries.content, queries.content, queries.attention_mask)


def build(config: SparseRCNNConfig, pretrained: bool = False) -> Detector:
    """The variant that ``config`` describes."""
    backbone = TimmBackbone(config.backbone, pretrained)
    apply = valid_inputs if config.padding == "excluded" else whole_map
    fpn = FPN(backbone.channels, config.dim, len(backbone.channels), smoothing, apply)
    count = config.decoder_layers
    return Detector(
        backbone=backbone,
        neck=PyramidNeck(fpn, NoPosition()),
        encoder=Encoder([]),
        queries=ProposalEmbedding(config.num_queries, config.dim),
        decoder=Decoder((stage(config) for _ in range(count)), (head(config) for _ in range(count)), refine),
        classification=config.classification,
        objective=partial(set_objective, learned=partial(ProposalEmbedding, dim=config.dim)),
    )


def stage(config: SparseRCNNConfig) -> DecoderLayer:
    """Self-attention, dynamic interaction in the place of cross-attention, feed-forward network."""
    self_attention = ContentSelfAttention(config.dim, config.num_heads, config.dropout)
    extents = valid_levels if config.padding == "excluded" else whole_levels
    pooling = RoIAlign(strides(config.backbone), extents, canonical_size=config.canonical_size)
    interaction = DynamicInteraction(config.dim, config.dynamic_dim, pooling)
    feedforward = FeedForward(config.dim, config.ffn_dim, config.dropout, XAVIER)
    return DecoderLayer(self_attention, interaction, feedforward, config.dim, config.dropout)


def strides(backbone: BackboneConfig) -> tuple[int, ...]:
    """Pixels per cell of each level."""
    return tuple(16 if backbone.dilated and stage == 5 else 2**stage for stage in backbone.stages)


def head(config: SparseRCNNConfig) -> TowerHead:
    """The head of a stage; every matrix is Xavier-uniform."""
    classes = class_layer(config.dim, config.num_classes, config.classification)
    box = ExactLinear(config.dim, 4)
    for layer in (classes, box):
        nn.init.xavier_uniform_(layer.weight)
    return TowerHead(tower(config.dim, config.class_tower), classes, tower(config.dim, config.box_tower), box)


def tower(dim: int, layers: int) -> nn.Sequential:
    """Linear layers without bias, each with LayerNorm and ReLU."""
    blocks: list[nn.Module] = []
    for _ in range(layers):
        linear = nn.Linear(dim, dim, bias=False)
        nn.init.xavier_uniform_(linear.weight)
        blocks += [linear, nn.LayerNorm(dim), nn.ReLU(inplace=True)]
    return nn.Sequential(*blocks)
