"""Shared by detectors with multi-scale deformable attention: the layers of Deformable DETR."""

from typing import Any

from torch import nn

from detrs.layers.attention import SelfAttention
from detrs.layers.decoder import DecoderLayer
from detrs.layers.deformable_attention import DeformableCrossAttention, DeformableSelfAttention
from detrs.layers.encoder import EncoderLayer
from detrs.layers.feedforward import FeedForward
from detrs.layers.initialization import XAVIER


def encoder_layer(config: Any, attention: nn.Module | None = None) -> EncoderLayer:
    """Deformable self-attention of all levels, or another ``attention``, and a feed-forward network."""
    if attention is None:
        attention = DeformableSelfAttention(config.dim, config.num_heads, config.num_levels, config.num_points)
    return EncoderLayer(attention, feedforward(config), config.dim, config.dropout)


def decoder_layer(config: Any) -> DecoderLayer:
    """Self-attention of queries, deformable cross-attention and a feed-forward network."""
    self_attention = SelfAttention(config.dim, config.num_heads, config.dropout, XAVIER)
    cross_attention = DeformableCrossAttention(config.dim, config.num_heads, config.num_levels, config.num_points)
    return DecoderLayer(self_attention, cross_attention, feedforward(config), config.dim, config.dropout)


def feedforward(config: Any) -> FeedForward:
    """The feed-forward network of a layer."""
    return FeedForward(config.dim, config.ffn_dim, config.dropout, XAVIER)
