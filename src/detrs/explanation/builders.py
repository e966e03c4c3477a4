"""Which module has which view, and which model which trace: two literal tables."""

from torch import nn

from detrs.backbones import dat_attention
from detrs.explanation.attention_views import conditional_view, global_view, row_column_view
from detrs.explanation.recording import Builder
from detrs.explanation.regions import dynamic_filter_view, faster_rcnn_classes, faster_rcnn_trace, proposal_view
from detrs.explanation.sampled_points import dat_view, dynamic_encoder_view
from detrs.explanation.sampling_views import deformable_view, own_level_view
from detrs.explanation.tracing import Tracer, decoder_classes, decoder_trace
from detrs.layers.attention import GlobalCrossAttention, GlobalSelfAttention
from detrs.layers.conditional_attention import ConditionalCrossAttention, FirstCrossAttention
from detrs.layers.deformable_attention import (
    DeformableCrossAttention,
    DeformableSelfAttention,
    OwnLevelSelfAttention,
)
from detrs.layers.dynamic_encoder import DynamicEncoderLayer
from detrs.layers.dynamic_interaction import DynamicInteraction
from detrs.layers.row_column_attention import RowColumnCrossAttention, RowColumnSelfAttention
from detrs.models.detector import Detector
from detrs.models.dynamic_detr import DepthwiseFilter, SharedFilter
from detrs.models.faster_rcnn import FasterRCNN

BUILDERS: dict[type[nn.Module], Builder] = {
    GlobalSelfAttention: global_view,
    GlobalCrossAttention: global_view,
    FirstCrossAttention: conditional_view,
    ConditionalCrossAttention: conditional_view,
    RowColumnSelfAttention: row_column_view,
    RowColumnCrossAttention: row_column_view,
    DeformableSelfAttention: deformable_view,
    DeformableCrossAttention: deformable_view,
    OwnLevelSelfAttention: own_level_view,
    DynamicEncoderLayer: dynamic_encoder_view,
    DynamicInteraction: dynamic_filter_view,
    DepthwiseFilter: dynamic_filter_view,
    SharedFilter: dynamic_filter_view,
    FasterRCNN: proposal_view,
    dat_attention.DeformableAttention: dat_view,
}
"""Class of a module -> view of one call of it. Modules of other classes have no view."""

TRACERS: dict[type[nn.Module], Tracer] = {
    Detector: Tracer(decoder_classes, decoder_trace),
    FasterRCNN: Tracer(faster_rcnn_classes, faster_rcnn_trace),
}
"""Class of a model -> how to trace it."""
