"""Row-column decoupled attention: over rows and columns instead of all cells (Anchor DETR, 3.4).

A query attends to the W columns, whose keys are means over their cells, and to the H rows likewise. The weight of a
cell is the product of the two: W + H logits instead of W * H.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.layers.attention import attention_weights, join_heads, split_heads
from detrs.layers.initialization import Initialization
from detrs.ops.dropout import attention
from detrs.structures import Pyramid, Queries

KeyMean = Callable[[Tensor, Tensor, int], Tensor]
"""Keys (B, H, W, C), padding (B, H, W) and the axis to average, 1 or 2, to one key per column or row."""


def mean_of_all(keys: Float[Tensor, "B H W C"], padding: Bool[Tensor, "B H W"], axis: int) -> Float[Tensor, "B _ C"]:
    """The mean of all cells, padding included, as in the authors' code."""
    return keys.mean(axis)


def mean_of_valid(keys: Float[Tensor, "B H W C"], padding: Bool[Tensor, "B H W"], axis: int) -> Float[Tensor, "B _ C"]:
    """The mean of the cells that are not padding; 0 where all are (and masked)."""
    total = keys.masked_fill(padding[..., None], 0.0).sum(axis)
    return total / (~padding).sum(axis).clamp(min=1)[..., None].to(keys.dtype)


class AxisAttention(NamedTuple):
    """Queries and keys of the attention along one axis of the map."""

    query: Float[Tensor, "B M Q D"]
    key: Float[Tensor, "B M N D"]
    """One for each of the N columns or rows."""
    mask: Bool[Tensor, "B 1 1 N"]
    """True for columns or rows that are not padding."""


class RowColumnInputs(NamedTuple):
    """The arguments of ``RowColumnAttention``."""

    query_x: Float[Tensor, "B Q C"]
    query_y: Float[Tensor, "B Q C"]
    key_x: Float[Tensor, "B H W C"]
    key_y: Float[Tensor, "B H W C"]
    value: Float[Tensor, "B H W C"]
    padding: Bool[Tensor, "B H W"]


class RowColumnAttention(nn.Module):
    """Multi-head attention whose weight at a cell is the weight of its column times the weight of its row.

    Args:
        dim: C, embedding dimension of queries and cells; ``dim / num_heads`` channels per head.
        num_heads: M.
        dropout: on the weights of columns and on those of rows, each by itself, in training.
        initialization: of the five input projections and the output projection.
        key_mean: ``mean_of_all`` or ``mean_of_valid``.
    """

    def __init__(
        self, dim: int, num_heads: int, dropout: float, initialization: Initialization, key_mean: KeyMean
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.key_mean = key_mean
        self.query_x_proj = initialization.attention(dim, dim)
        self.query_y_proj = initialization.attention(dim, dim)
        self.key_x_proj = initialization.attention(dim, dim)
        self.key_y_proj = initialization.attention(dim, dim)
        self.value_proj = initialization.attention(dim, dim)
        self.output_proj = initialization.output(dim, dim)

    def forward(
        self,
        query_x: Float[Tensor, "B Q C"],
        query_y: Float[Tensor, "B Q C"],
        key_x: Float[Tensor, "B H W C"],
        key_y: Float[Tensor, "B H W C"],
        value: Float[Tensor, "B H W C"],
        padding: Bool[Tensor, "B H W"],
    ) -> Float[Tensor, "B Q C"]:
        """Attend to the map: ``query_x`` with ``key_x`` to columns, ``query_y`` with ``key_y`` to rows.

        Padding is right and bottom only: padded columns are those of the first row, padded rows those of the first
        column.
        """
        columns, rows = self.axes(query_x, query_y, key_x, key_y, padding)
        values = self.value_proj(value).unflatten(3, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)  # (B, M, H, W, D)
        dropout = self.dropout if self.training else 0.0
        return self.output_proj(join_heads(attend(columns, rows, values, dropout)))

    def axes(
        self,
        query_x: Float[Tensor, "B Q C"],
        query_y: Float[Tensor, "B Q C"],
        key_x: Float[Tensor, "B H W C"],
        key_y: Float[Tensor, "B H W C"],
        padding: Bool[Tensor, "B H W"],
    ) -> tuple[AxisAttention, AxisAttention]:
        """Projected queries and keys of columns and of rows; the arguments are those of ``forward``."""
        columns = AxisAttention(
            split_heads(self.query_x_proj(query_x), self.num_heads),
            split_heads(self.key_mean(self.key_x_proj(key_x), padding, 1), self.num_heads),
            ~padding[:, None, None, 0, :],
        )
        rows = AxisAttention(
            split_heads(self.query_y_proj(query_y), self.num_heads),
            split_heads(self.key_mean(self.key_y_proj(key_y), padding, 2), self.num_heads),
            ~padding[:, None, None, :, 0],
        )
        return columns, rows


def attend(
    columns: AxisAttention, rows: AxisAttention, values: Float[Tensor, "B M H W D"], dropout: float
) -> Float[Tensor, "B M Q D"]:
    """sum_y A_y sum_x A_x v, summed along the longer axis first: the intermediate result has Q * min(H, W) * C numbers.

    An exported program is for maps of any shape and sums along x first.
    """
    height, width = values.shape[2:4]
    along_x_first = torch.compiler.is_exporting() or height < width
    first, second, values = (
        (columns, rows, values.transpose(2, 3)) if along_x_first else (rows, columns, values)
    )  # (B, M, longer, shorter, D)
    lines = attention(  # all cells across the longer axis are one value
        first.query, first.key, values.flatten(3), first.mask, dropout
    ).unflatten(3, values.shape[3:])  # (B, M, Q, shorter, D)
    weights = attention_weights(second.query, second.key, second.mask)  # (B, M, Q, shorter)
    # each query has its own values here: one product each, not attention to shared values
    return (F.dropout(weights, dropout)[..., None, :].to(lines.dtype) @ lines).squeeze(3)


def as_map(x: Tensor, memory: Pyramid) -> Tensor:
    """(B, S, ...) of a pyramid of one level as (B, H, W, ...)."""
    (shape,) = memory.shapes
    return x.unflatten(1, shape)


class RowColumnSelfAttention(nn.Module):
    """Self-attention of tokens along rows and columns, as in the encoder of Anchor DETR.

    The position of a token is that of its column, then that of its row, C channels each.
    """

    def __init__(
        self, dim: int, num_heads: int, dropout: float, initialization: Initialization, key_mean: KeyMean
    ) -> None:
        super().__init__()
        self.attention = RowColumnAttention(dim, num_heads, dropout, initialization, key_mean)

    def forward(self, memory: Pyramid) -> Float[Tensor, "B S C"]:
        return self.attention(*self.inputs(memory))

    def inputs(self, memory: Pyramid) -> RowColumnInputs:
        x, y = memory.position.chunk(2, dim=-1)
        with_x, with_y = memory.tokens + x, memory.tokens + y
        maps = (as_map(t, memory) for t in (with_x, with_y, memory.tokens, memory.padding))
        return RowColumnInputs(with_x, with_y, *maps)


class RowColumnCrossAttention(nn.Module):
    """Cross-attention along rows and columns, as in the decoder of Anchor DETR.

    The position of a query is that of its point, of the point's column and of its row, C channels each.
    """

    def __init__(
        self, dim: int, num_heads: int, dropout: float, initialization: Initialization, key_mean: KeyMean
    ) -> None:
        super().__init__()
        self.attention = RowColumnAttention(dim, num_heads, dropout, initialization, key_mean)

    def forward(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q C"]:
        return self.attention(*self.inputs(queries, memory))

    def inputs(self, queries: Queries, memory: Pyramid) -> RowColumnInputs:
        _, query_x, query_y = queries.position.chunk(3, dim=-1)
        x, y = memory.position.chunk(2, dim=-1)
        return RowColumnInputs(
            queries.content + query_x,
            queries.content + query_y,
            as_map(memory.tokens + x, memory),
            as_map(memory.tokens + y, memory),
            as_map(memory.tokens, memory),
            as_map(memory.padding, memory),
        )
