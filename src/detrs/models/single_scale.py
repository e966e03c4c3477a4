"""Shared by detectors with one feature map: DETR's neck and encoder, and the check of their settings."""

from typing import Any

from detrs.layers.attention import GlobalSelfAttention
from detrs.layers.encoder import Encoder, EncoderLayer
from detrs.layers.feedforward import FeedForward
from detrs.layers.initialization import XAVIER
from detrs.layers.neck import ChannelMapper, PyramidNeck, plain_projection
from detrs.layers.position import SinePosition


def sine_neck(channels: tuple[int, ...], dim: int) -> PyramidNeck:
    """One convolution, and sine position embeddings counted from one (DETR, A.4)."""
    return PyramidNeck(ChannelMapper(channels, dim, 1, plain_projection), SinePosition(dim, shift=0.0))


def global_encoder(config: Any) -> Encoder:
    """Layers with self-attention of all tokens (DETR, 3.2)."""

    def layer() -> EncoderLayer:
        attention = GlobalSelfAttention(config.dim, config.num_heads, config.dropout, XAVIER)
        return EncoderLayer(attention, feedforward(config), config.dim, config.dropout)

    return Encoder(layer() for _ in range(config.encoder_layers))


def feedforward(config: Any) -> FeedForward:
    """The feed-forward network of a layer, of the encoder or of the decoder."""
    return FeedForward(config.dim, config.ffn_dim, config.dropout, XAVIER)
