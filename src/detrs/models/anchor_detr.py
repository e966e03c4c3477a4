"""Anchor DETR: query design for transformer-based object detection (Wang et al. 2021, arXiv 2109.07107).

Idea: queries without a fixed location learn slowly. Here each has an anchor point, embedded by the same function as the
positions of tokens; several patterns share a point, so several objects can be detected at it. Attention is decoupled
into rows and columns instead of all cells, which makes a finer feature map affordable in memory.

=====================================  =================================================
paper                                  here
=====================================  =================================================
N_A, anchor points; learned or a grid  ``queries.embedding``, ``anchors``
N_p, patterns; Q_f^init (3.3)          ``num_patterns``, ``queries.patterns``
g, sine features and an MLP (3.3)      ``PositionEmbedding`` of points
g_1D, the same of x or y (3.4)         ``PositionEmbedding`` of coordinates
K_p = g(Pos_k), Q_p = g(Pos_q)         ``Pyramid.position``, ``Queries.position``
RCDA (3.4)                             ``layers.row_column_attention``
standard attention (Table 5)           ``attention="global"``
A_x, A_y (3.4)                         weights of columns and of rows
box as an offset from the anchor       ``offset_from_point``
=====================================  =================================================

Deviations: with ``attention="global"`` the authors' code builds an MLP for single coordinates that is never used; here
it is not built. Several feature levels (no published model has them) are not supported. As in the authors' code, a
column's key is the mean of its cells including padding, and so is GroupNorm of the neck: predictions depend on the
padding of an image. ``attention="decoupled-masked"`` and ``neck_norm="group-masked"`` exclude padding.
"""

import math
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.backbones.timm import TimmBackbone
from detrs.boxes import offset_from_point
from detrs.config.anchor_detr import AnchorDETRConfig, grid_side
from detrs.layers.attention import GlobalCrossAttention, GlobalSelfAttention, MultiHeadAttention, SelfAttention
from detrs.layers.decoder import Decoder, DecoderLayer, keep
from detrs.layers.encoder import Encoder, EncoderLayer
from detrs.layers.feedforward import FeedForward
from detrs.layers.heads import DetectionHead, box_mlp, class_layer, zero_box_layer
from detrs.layers.initialization import Initialization, xavier_linear
from detrs.layers.neck import APPLICATIONS, ChannelMapper, PyramidNeck, normalized_projection
from detrs.layers.position import sine_features
from detrs.layers.row_column_attention import (
    RowColumnCrossAttention,
    RowColumnSelfAttention,
    mean_of_all,
    mean_of_valid,
)
from detrs.models.detector import Detector
from detrs.structures import Pyramid, Queries

KEY_MEANS = {"decoupled": mean_of_all, "decoupled-masked": mean_of_valid}


def zero_bias_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with PyTorch's default weight and a bias of zero."""
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.bias)
    return linear


def packed(matrices: int) -> Initialization:
    """PyTorch's initialization of a packed projection: ``matrices`` (C, C) as one Xavier-uniform matrix."""
    gain = math.sqrt(2 / (matrices + 1))
    return Initialization(
        partial(xavier_linear, gain=gain, zero_bias=True), output=zero_bias_linear, feedforward=nn.Linear
    )


class PositionEmbedding(nn.Module):
    """Embedding of positions in [0, 1]: sine features, then an MLP, shared by tokens and queries (3.3).

    Args:
        dim: C, embedding dimension.
        coordinates: 2: points (x, y), whose features start with y; 1: x or y alone.
    """

    def __init__(self, dim: int, coordinates: int) -> None:
        super().__init__()
        self.features = dim // coordinates
        self.adapt = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, dim))

    def forward(self, position: Float[Tensor, "*some N"]) -> Float[Tensor, "*some C"]:
        features = sine_features(position.flip(-1) * 2 * math.pi, self.features).flatten(-2)
        return self.adapt(features.to(next(self.adapt.parameters()).dtype))


def coordinates(padding: Bool[Tensor, "B H W"]) -> tuple[Float[Tensor, "B W"], Float[Tensor, "B H"]]:
    """x of the columns' and y of the rows' centers, in [0, 1] of the un-padded image; constant within the padding."""
    columns, rows = (~padding[:, 0, :]).float(), (~padding[:, :, 0]).float()
    x, y = ((valid.cumsum(1) - 0.5) / valid.sum(1, keepdim=True) for valid in (columns, rows))
    return x, y


class TokenLines(nn.Module):
    """Position embedding of tokens for row-column attention: that of the column, then that of the row."""

    def __init__(self, coordinate: PositionEmbedding) -> None:
        super().__init__()
        self.coordinate = coordinate

    def forward(self, padding: Bool[Tensor, "B H W"]) -> Float[Tensor, "B H W _"]:
        x, y = coordinates(padding)
        columns, rows = self.coordinate(x[..., None])[:, None], self.coordinate(y[..., None])[:, :, None]
        height, width = padding.shape[1:]
        return torch.cat([columns.expand(-1, height, -1, -1), rows.expand(-1, -1, width, -1)], dim=-1)


class TokenPoints(nn.Module):
    """Position embedding of tokens for global attention: that of the point."""

    def __init__(self, point: PositionEmbedding) -> None:
        super().__init__()
        self.point = point

    def forward(self, padding: Bool[Tensor, "B H W"]) -> Float[Tensor, "B H W C"]:
        x, y = coordinates(padding)
        return self.point(torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), dim=-1))


class QueryLines(nn.Module):
    """Position embedding of queries for row-column attention: that of the point, of its column and of its row."""

    def __init__(self, point: PositionEmbedding, coordinate: PositionEmbedding) -> None:
        super().__init__()
        self.point = point
        self.coordinate = coordinate

    def forward(self, point: Float[Tensor, "A 2"]) -> Float[Tensor, "A _"]:
        return torch.cat([self.point(point), self.coordinate(point[..., None]).flatten(1)], dim=-1)


class PointSelfAttention(nn.Module):
    """Self-attention of queries, with the position embedding of their points only."""

    def __init__(self, dim: int, num_heads: int, dropout: float, initialization: Initialization) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(dim, num_heads, dropout, initialization)

    def forward(self, queries: Queries) -> Float[Tensor, "B Q C"]:
        embedded = queries.content + queries.position.chunk(3, dim=-1)[0]
        return self.attention(embedded, embedded, queries.content, queries.attention_mask)


class Grid(nn.Module):
    """Fixed anchor points: centers of n x n cells, column by column."""

    weight: Tensor

    def __init__(self, side: int) -> None:
        super().__init__()
        centers = (torch.arange(side) + 0.5) / side
        self.register_buffer("weight", torch.cartesian_prod(centers, centers).view(-1, 2))


class AnchorQueries(nn.Module):
    """One query per pattern and anchor point, all points of the first pattern first (3.3).

    Args:
        embedding: its ``weight`` (A, 2) are the points (x, y); learned points are not limited to [0, 1].
        num_patterns: N_p.
        dim: embedding dimension of contents.
        position: points (A, 2) to their position embedding.
    """

    def __init__(self, embedding: nn.Embedding | Grid, num_patterns: int, dim: int, position: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.patterns = nn.Embedding(num_patterns, dim)
        self.position = position

    def forward(self, memory: Pyramid) -> tuple[Queries, None]:
        points, patterns = self.embedding.weight, self.patterns.weight
        images, times = memory.tokens.shape[0], patterns.shape[0]
        content = patterns.repeat_interleave(points.shape[0], dim=0)
        position = self.position(points).to(points.dtype).repeat(times, 1)
        one = (content, position, points.repeat(times, 1))
        return Queries(*(x[None].expand(images, -1, -1) for x in one)), None


def build(config: AnchorDETRConfig, pretrained: bool = False) -> Detector:
    """The variant that ``config`` describes."""
    backbone = TimmBackbone(config.backbone, pretrained)
    of_tokens, of_queries = positions(config)
    apply = APPLICATIONS[config.neck_norm]
    return Detector(
        backbone=backbone,
        neck=PyramidNeck(ChannelMapper(backbone.channels, config.dim, 1, normalized_projection, apply), of_tokens),
        encoder=Encoder(encoder_layer(config) for _ in range(config.encoder_layers)),
        queries=AnchorQueries(anchors(config), config.num_patterns, config.dim, of_queries),
        decoder=decoder(config),
        classification=config.classification,
    )


def positions(config: AnchorDETRConfig) -> tuple[nn.Module, nn.Module]:
    """Position embeddings of tokens and of queries, which share their MLPs."""
    point = PositionEmbedding(config.dim, coordinates=2)
    if config.attention == "global":
        return TokenPoints(point), point
    coordinate = PositionEmbedding(config.dim, coordinates=1)
    return TokenLines(coordinate), QueryLines(point, coordinate)


def anchors(config: AnchorDETRConfig) -> nn.Embedding | Grid:
    """Learned points, initialized uniformly over the image, or a grid."""
    if config.anchors == "grid":
        return Grid(grid_side(config))
    learned = nn.Embedding(config.num_queries // config.num_patterns, 2)
    nn.init.uniform_(learned.weight)
    return learned


def encoder_layer(config: AnchorDETRConfig) -> EncoderLayer:
    sizes = (config.dim, config.num_heads, config.dropout)
    attention: nn.Module
    if config.attention == "global":
        attention = GlobalSelfAttention(*sizes, packed(3))
    else:
        attention = RowColumnSelfAttention(*sizes, packed(5), KEY_MEANS[config.attention])
    return EncoderLayer(attention, feedforward(config), config.dim, config.dropout)


def decoder(config: AnchorDETRConfig) -> Decoder:
    """Layers, and one head for all of them; boxes are offsets from the anchor points, which are kept."""
    classes = class_layer(config.dim, config.num_classes, config.classification)
    head = DetectionHead(classes, box_mlp(zero_box_layer(config.dim, size_bias=-2.0)), offset_from_point)
    count = config.decoder_layers
    return Decoder((decoder_layer(config) for _ in range(count)), [head] * count, keep)


def decoder_layer(config: AnchorDETRConfig) -> DecoderLayer:
    sizes = (config.dim, config.num_heads, config.dropout)
    self_attention: nn.Module
    cross_attention: nn.Module
    if config.attention == "global":
        self_attention, cross_attention = SelfAttention(*sizes, packed(3)), GlobalCrossAttention(*sizes, packed(3))
    else:
        self_attention = PointSelfAttention(*sizes, packed(3))
        cross_attention = RowColumnCrossAttention(*sizes, packed(5), KEY_MEANS[config.attention])
    return DecoderLayer(self_attention, cross_attention, feedforward(config), config.dim, config.dropout)


def feedforward(config: AnchorDETRConfig) -> FeedForward:
    return FeedForward(config.dim, config.ffn_dim, config.dropout, packed(3))
