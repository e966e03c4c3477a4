"""Dynamic instance interaction: cross-attention of a query to the region of its own box (Sparse R-CNN, 3.2)."""

from jaxtyping import Float
from torch import Tensor, nn

from detrs.layers.initialization import xavier_linear
from detrs.layers.roi_align import RoIAlign
from detrs.structures import Pyramid, Queries


class DynamicInteraction(nn.Module):
    """Two 1x1 convolutions of the features in the query's box, with filters that the query predicts.

    Args:
        dim: embedding dimension of queries and tokens.
        dynamic_dim: channels between the two convolutions.
        pooling: features in the reference box of each query.
    """

    def __init__(self, dim: int, dynamic_dim: int, pooling: RoIAlign) -> None:
        super().__init__()
        self.dynamic_dim = dynamic_dim
        self.pooling = pooling
        self.filters = xavier_linear(dim, 2 * dim * dynamic_dim)
        self.inner_norm = nn.LayerNorm(dynamic_dim)
        self.outer_norm = nn.LayerNorm(dim)
        self.output_proj = xavier_linear(pooling.size**2 * dim, dim)
        self.output_norm = nn.LayerNorm(dim)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q C"]:
        x = self.responses(queries, memory)
        return self.activation(self.output_norm(self.output_proj(x.flatten(2))))

    def responses(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q _ C"]:
        """The filtered features of each cell of the query's box, row by row."""
        x = self.pooling(queries.reference, memory)  # (B, Q, S * S, C)
        inner, outer = self.filters(queries.content).chunk(2, dim=-1)
        x = self.activation(self.inner_norm(x @ inner.unflatten(2, (-1, self.dynamic_dim))))
        return self.activation(self.outer_norm(x @ outer.unflatten(2, (self.dynamic_dim, -1))))
