"""The parts of a transformer layer without attention."""

from jaxtyping import Float
from torch import Tensor, nn

from detrs.layers.initialization import Initialization


class AddNorm(nn.Module):
    """Residual and normalization, post-norm: ``LN(x + dropout(update))``."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "B T C"], update: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return self.norm(x + self.dropout(update))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, dim: int, hidden: int, dropout: float, initialization: Initialization) -> None:
        super().__init__()
        self.expand = initialization.feedforward(dim, hidden)
        self.activation = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.contract = initialization.feedforward(hidden, dim)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return self.contract(self.dropout(self.activation(self.expand(x))))
