"""Row-column decoupled attention: along a row and along a column instead of at every cell (Anchor DETR, 3.4).

A query attends to the W columns by what stands in them on average, to the H rows likewise, and reads the map by the
product of the two: W + H logits instead of W * H.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrs.layers.attention import join_heads, split_heads
from detrs.layers.initialization import Initialization
from detrs.structures import Pyramid, Queries

KeyMean = Callable[[Tensor, Tensor, int], Tensor]
"""Keys (B, H, W, C), padding (B, H, W) and an axis, 1 or 2, to one key for each line across that axis."""


def mean_of_all(keys: Float[Tensor, "B H W C"], padding: Bool[Tensor, "B H W"], axis: int) -> Float[Tensor, "B _ C"]:
    """The mean of all cells, padding included, as in the authors' code."""
    return keys.mean(axis)


def mean_of_valid(keys: Float[Tensor, "B H W C"], padding: Bool[Tensor, "B H W"], axis: int) -> Float[Tensor, "B _ C"]:
    """The mean of the cells that are image; 0 where there are none, and nobody looks."""
    total = keys.masked_fill(padding[..., None], 0.0).sum(axis)
    return total / (~padding).sum(axis).clamp(min=1)[..., None].to(keys.dtype)


class Along(NamedTuple):
    """Who looks at what along one axis of the map."""

    query: Float[Tensor, "B M Q D"]
    key: Float[Tensor, "B M N D"]
    """One for each of the N lines across the axis."""
    visible: Bool[Tensor, "B 1 1 N"]


class RowColumnAttention(nn.Module):
    """Multi-head attention whose weight at a cell is the weight of its column times the weight of its row.

    Args:
        dim: C, width of queries and cells; ``dim / num_heads`` channels per head.
        num_heads: M.
        dropout: on the weights of columns and on those of rows, each by itself, in training.
        initialization: of the five projections that come in and of the one that goes out.
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
        """Read the map; ``query_x`` chooses columns by ``key_x``, ``query_y`` rows by ``key_y``.

        Padding is right and bottom only: padded columns are those of the first row, padded rows those of the first
        column.
        """
        columns = Along(
            split_heads(self.query_x_proj(query_x), self.num_heads),
            split_heads(self.key_mean(self.key_x_proj(key_x), padding, 1), self.num_heads),
            ~padding[:, None, None, 0, :],
        )
        rows = Along(
            split_heads(self.query_y_proj(query_y), self.num_heads),
            split_heads(self.key_mean(self.key_y_proj(key_y), padding, 2), self.num_heads),
            ~padding[:, None, None, :, 0],
        )
        values = self.value_proj(value).unflatten(3, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)  # (B, M, H, W, D)
        dropout = self.dropout if self.training else 0.0
        return self.output_proj(join_heads(read(columns, rows, values, dropout)))


def read(columns: Along, rows: Along, values: Float[Tensor, "B M H W D"], dropout: float) -> Float[Tensor, "B M Q D"]:
    """sum_y A_y sum_x A_x v, the sum along the longer axis first: less is left in between, Q * min(H, W) * C.

    An exported program is for maps of any shape and sums along x first.
    """
    height, width = values.shape[2:4]
    along_x_first = torch.compiler.is_exporting() or height < width
    first, second, values = (
        (columns, rows, values.transpose(2, 3)) if along_x_first else (rows, columns, values)
    )  # (B, M, longer, shorter, D)
    lines = F.scaled_dot_product_attention(  # all that stands across the longer axis is one value
        first.query, first.key, values.flatten(3), attn_mask=first.visible, dropout_p=dropout
    ).unflatten(3, values.shape[3:])  # (B, M, Q, shorter, D)
    logits = second.query * second.query.shape[3] ** -0.5 @ second.key.mT
    weights = logits.masked_fill(~second.visible, -torch.inf).softmax(-1)  # (B, M, Q, shorter)
    # each query has values of its own here: a product for each, not attention to values that all share
    return (F.dropout(weights, dropout)[..., None, :].to(lines.dtype) @ lines).squeeze(3)


def as_map(x: Tensor, memory: Pyramid) -> Tensor:
    """(B, S, ...) of a pyramid of one level as (B, H, W, ...)."""
    (shape,) = memory.shapes
    return x.unflatten(1, shape)


class RowColumnSelfAttention(nn.Module):
    """Tokens look along rows and columns; what encoder layers of Anchor DETR do.

    The position of a token is that of its column, then that of its row, C channels each.
    """

    def __init__(
        self, dim: int, num_heads: int, dropout: float, initialization: Initialization, key_mean: KeyMean
    ) -> None:
        super().__init__()
        self.attention = RowColumnAttention(dim, num_heads, dropout, initialization, key_mean)

    def forward(self, memory: Pyramid) -> Float[Tensor, "B S C"]:
        x, y = memory.position.chunk(2, dim=-1)
        in_column, in_row = memory.tokens + x, memory.tokens + y
        key_x, key_y, value, padding = (as_map(t, memory) for t in (in_column, in_row, memory.tokens, memory.padding))
        return self.attention(in_column, in_row, key_x, key_y, value, padding)


class RowColumnLook(nn.Module):
    """Queries look along rows and columns; what decoder layers of Anchor DETR do.

    The position of a query is that of its point, of the point's column and of its row, C channels each.
    """

    def __init__(
        self, dim: int, num_heads: int, dropout: float, initialization: Initialization, key_mean: KeyMean
    ) -> None:
        super().__init__()
        self.attention = RowColumnAttention(dim, num_heads, dropout, initialization, key_mean)

    def forward(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q C"]:
        _, query_x, query_y = queries.position.chunk(3, dim=-1)
        x, y = memory.position.chunk(2, dim=-1)
        return self.attention(
            queries.content + query_x,
            queries.content + query_y,
            as_map(memory.tokens + x, memory),
            as_map(memory.tokens + y, memory),
            as_map(memory.tokens, memory),
            as_map(memory.padding, memory),
        )
