"""Which module has which view: one literal table."""

from torch import nn

from detrs.explanation.attention_views import conditional_view, global_view, row_column_view
from detrs.explanation.recording import Builder
from detrs.explanation.sampling_views import deformable_view, own_level_view
from detrs.layers.attention import GlobalCrossAttention, GlobalSelfAttention
from detrs.layers.deformable_attention import (
    DeformableCrossAttention,
    DeformableSelfAttention,
    OwnLevelSelfAttention,
)
from detrs.layers.row_column_attention import RowColumnCrossAttention, RowColumnSelfAttention
from detrs.models.conditional_detr import ConditionalCrossAttention, FirstCrossAttention

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
}
"""Class of a module -> view of one call of it. Modules of other classes have no view."""
