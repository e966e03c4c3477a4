"""Views of attention to a whole feature map: weights of each query and head."""

from torch import Tensor

from detrs.explanation.recording import Call, Selection
from detrs.explanation.tokens import grid_tokens
from detrs.explanation.views import AttentionView
from detrs.layers.attention import attention_weights, not_padding
from detrs.structures import Pyramid, Shapes


def global_view(call: Call, selection: Selection) -> AttentionView:
    """Of ``GlobalSelfAttention`` (encoder) or ``GlobalCrossAttention`` (decoder)."""
    query, key, _, mask = call.module.inputs(*call.arguments)  # type: ignore[operator]
    queries, keys = call.module.attention.queries_and_keys(query, key)  # type: ignore[union-attr,operator]
    chosen, grids = tokens_or_queries(call, selection)
    weights = attention_weights(queries[:, :, chosen.to(queries.device)], keys, mask)
    return view(call, chosen, grids, weights.unflatten(3, shape_of(call)))


def conditional_view(call: Call, selection: Selection) -> AttentionView:
    """Of ``ConditionalCrossAttention`` or ``FirstCrossAttention``."""
    queries, keys = call.module.queries_and_keys(*call.arguments)  # type: ignore[operator]
    chosen, grids = tokens_or_queries(call, selection)
    weights = attention_weights(queries[:, :, chosen.to(queries.device)], keys, not_padding(call.arguments[-1]))
    return view(call, chosen, grids, weights.unflatten(3, shape_of(call)))


def row_column_view(call: Call, selection: Selection) -> AttentionView:
    """Of ``RowColumnSelfAttention`` or ``RowColumnCrossAttention``: weights of columns times weights of rows."""
    query_x, query_y, key_x, key_y, _, padding = call.module.inputs(*call.arguments)  # type: ignore[operator]
    columns, rows = call.module.attention.axes(query_x, query_y, key_x, key_y, padding)  # type: ignore[union-attr,operator]
    chosen, grids = tokens_or_queries(call, selection)
    x, y = (
        attention_weights(axis.query[:, :, chosen.to(padding.device)], axis.key, axis.mask) for axis in (columns, rows)
    )  # (1, M, Q, W), (1, M, Q, H)
    return view(call, chosen, grids, y[..., None] * x[..., None, :])


def tokens_or_queries(call: Call, selection: Selection) -> tuple[Tensor, Shapes]:
    """Indices of what attends, and, in the encoder, the grid that the tokens form."""
    if call.stage != "encoder":
        return selection.queries, ()
    return grid_tokens((shape_of(call),), selection.max_tokens)


def shape_of(call: Call) -> tuple[int, int]:
    """(height, width) of the feature map, the only level of the last argument."""
    memory: Pyramid = call.arguments[-1]
    (shape,) = memory.shapes
    return shape


def view(call: Call, chosen: Tensor, grids: Shapes, weights: Tensor) -> AttentionView:
    """From weights (1, M, Q, h, w)."""
    maps = weights[0].transpose(0, 1).contiguous().cpu()
    return AttentionView(stage=call.stage, layer=call.layer, name=call.name, queries=chosen, grids=grids, weights=maps)
