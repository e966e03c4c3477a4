"""Dynamic DETR: end-to-end object detection with dynamic attention (Dai et al. 2021, ICCV).

Idea: attention is approximated by convolutions whose sampling points, scales and activations depend on the image
(encoder), and by filters that each query predicts for the region of its own box (decoder).

=========================================  ===========================================================
paper                                      here
=========================================  ===========================================================
P_i, five scales                           ``FeaturePyramid``, P2 ... P6
P_i^+, deformable convolutions, s_i        ``DynamicEncoderLayer``: ``finer``, ``same``, ``coarser``, ``offsets``
w_i = SE(P_i^+)                            ``SqueezeExcitation``
DyReLU                                     ``DynamicReLU``
Q, B, learned queries and box encodings    ``LearnedBoxes``, ``BoxEncoding``
F = RoIPool(P, B, r)                       ``layers.roi_align``
W_Q = FC(Q*), Q^F = Conv1x1(F, W_Q)        ``DepthwiseFilter`` or another ``interaction``
=========================================  ===========================================================

The authors released no code. Choices that the paper leaves open are settings. By default, the filters are those with
the fewest parameters that keep positions in a box: 61 M in total, 58 M in the paper. Deviation: the coarser level is
upsampled before its convolution, not after, so that offsets belong to the cells they are used for. Padding is excluded
everywhere.
"""

from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from detrs.backbones.timm import TimmBackbone
from detrs.config.dynamic_detr import DynamicDETRConfig
from detrs.criterion.training_objective import set_objective
from detrs.layers.attention import SelfAttention
from detrs.layers.decoder import Decoder, DecoderLayer, refine
from detrs.layers.dynamic_encoder import DynamicEncoderLayer, NormalizedLevels
from detrs.layers.dynamic_interaction import DynamicInteraction
from detrs.layers.encoder import Encoder
from detrs.layers.feedforward import FeedForward
from detrs.layers.fpn import FeaturePyramid
from detrs.layers.heads import TowerHead, class_layer, zero_box_layer
from detrs.layers.initialization import XAVIER, ExactLinear, xavier_linear
from detrs.layers.neck import PyramidNeck
from detrs.layers.position import SinePosition
from detrs.layers.queries import LearnedBoxes
from detrs.layers.roi_align import RoIAlign, valid_levels
from detrs.models.detector import Detector
from detrs.structures import Pyramid, Queries


class BoxEncoding(nn.Module):
    """Self-attention of queries whose position embedding is a linear function of their box."""

    def __init__(self, attention: SelfAttention, dim: int) -> None:
        super().__init__()
        self.attention = attention
        self.box_proj = nn.Linear(4, dim)

    def forward(self, queries: Queries) -> Float[Tensor, "B Q C"]:
        position = self.box_proj(queries.reference.to(self.box_proj.weight.dtype))
        embedded = Queries(queries.content, position, queries.reference, queries.attention_mask)
        attended: Tensor = self.attention(embedded)
        return attended


class DepthwiseFilter(nn.Module):
    """A depthwise 1x1 convolution of the features in the query's box, then a linear layer of the whole region.

    Args:
        dim: C.
        pooling: features in the reference box of each query.
    """

    def __init__(self, dim: int, pooling: RoIAlign) -> None:
        super().__init__()
        self.generator = xavier_linear(dim, dim)
        self.pooling = pooling
        self.norm = nn.LayerNorm(dim)
        self.output_proj = xavier_linear(pooling.size**2 * dim, dim)
        self.output_norm = nn.LayerNorm(dim)

    def forward(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q C"]:
        return self.output_norm(self.output_proj(self.responses(queries, memory).flatten(2))).relu()

    def responses(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q _ C"]:
        """The filtered features of each cell of the query's box, row by row."""
        features = self.pooling(queries.reference, memory)  # (B, Q, S * S, C)
        return self.norm(features * self.generator(queries.content)[:, :, None]).relu()


class SharedFilter(nn.Module):
    """A 1x1 convolution of the features in the query's box with a C x C filter from the query, then their mean.

    Args:
        generator: contents of queries to C x C numbers, the same in all layers.
        dim: C.
        pooling: features in the reference box of each query.
    """

    def __init__(self, generator: nn.Linear, dim: int, pooling: RoIAlign) -> None:
        super().__init__()
        self.generator = generator
        self.pooling = pooling
        self.norm = nn.LayerNorm(dim)
        self.output_proj = xavier_linear(dim, dim)

    def forward(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q C"]:
        return self.output_proj(self.responses(queries, memory).mean(2))

    def responses(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q _ C"]:
        """The filtered features of each cell of the query's box, row by row."""
        features = self.pooling(queries.reference, memory)  # (B, Q, S * S, C)
        filters = self.generator(queries.content).unflatten(2, (features.shape[3], -1))  # (B, Q, C, C)
        return self.norm(features @ filters).relu()


def head(config: DynamicDETRConfig) -> TowerHead:
    """The head of a decoder layer, with one hidden layer each for the classes and the box."""
    class_tower, classes = hidden(config.dim), class_layer(config.dim, config.num_classes, config.classification)
    return TowerHead(class_tower, classes, hidden(config.dim), zero_box_layer(config.dim))


def hidden(dim: int) -> nn.Sequential:
    """ReLU(LN(FC(x))), in full precision."""
    layer = ExactLinear(dim, dim)
    nn.init.xavier_uniform_(layer.weight)
    return nn.Sequential(layer, nn.LayerNorm(dim), nn.ReLU(inplace=True))


def build(config: DynamicDETRConfig, pretrained: bool = False) -> Detector:
    """The variant that ``config`` describes."""
    backbone = TimmBackbone(config.backbone, pretrained)
    strides = tuple(2**stage for stage in config.backbone.stages)
    pyramid = FeaturePyramid(backbone.channels, strides, config.dim, config.num_levels)
    mapper = NormalizedLevels(pyramid, config.dim) if config.neck_norm == "group" else pyramid
    encoder = (
        DynamicEncoderLayer(config.dim, config.se_reduction, config.relu_reduction, config.fusion, config.residual)
        for _ in range(config.encoder_layers)
    )
    count = config.decoder_layers
    layers = (decoder_layer(config, cross_attention) for cross_attention in interactions(config, strides))
    return Detector(
        backbone=backbone,
        neck=PyramidNeck(mapper, SinePosition(config.dim, shift=-0.5)),
        encoder=Encoder(encoder),
        queries=LearnedBoxes(config.num_queries, config.dim),
        decoder=Decoder(layers, (head(config) for _ in range(count)), refine),
        classification=config.classification,
        objective=partial(set_objective, learned=partial(LearnedBoxes, dim=config.dim)),
    )


def interactions(config: DynamicDETRConfig, strides: tuple[int, ...]) -> list[nn.Module]:
    """The dynamic filters of each decoder layer, in the place of cross-attention."""
    pooling = RoIAlign(strides, valid_levels, canonical_size=config.canonical_size)
    layers = range(config.decoder_layers)
    if config.interaction == "shared":
        generator = xavier_linear(config.dim, config.dim**2)
        return [SharedFilter(generator, config.dim, pooling) for _ in layers]
    if config.interaction == "bottleneck":
        return [DynamicInteraction(config.dim, config.dynamic_dim, pooling) for _ in layers]
    return [DepthwiseFilter(config.dim, pooling) for _ in layers]


def decoder_layer(config: DynamicDETRConfig, cross_attention: nn.Module) -> DecoderLayer:
    """Self-attention with box encodings, dynamic filters, feed-forward network."""
    attention = SelfAttention(config.dim, config.num_heads, config.dropout, XAVIER)
    return DecoderLayer(
        BoxEncoding(attention, config.dim) if config.box_encoding else attention,
        cross_attention,
        FeedForward(config.dim, config.ffn_dim, config.dropout, XAVIER),
        config.dim,
        config.dropout,
    )
