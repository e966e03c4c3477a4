"""The parts of a transformer layer without attention."""

from jaxtyping import Float
from torch import Tensor, nn

from detrs.layers.initialization import Initialization
from detrs.ops.dropout import add_norm, relu_dropout
from detrs.ops.linear import linear_relu


class AddNorm(nn.Module):
    """Residual and normalization, post-norm: ``LN(x + dropout(update))``."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "B T C"], update: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return add_norm(x, update, self.norm, self.dropout if self.training else 0.0)


class FeedForward(nn.Module):
    """Two linear layers, and between them a ReLU and dropout."""

    def __init__(self, dim: int, hidden: int, dropout: float, initialization: Initialization) -> None:
        super().__init__()
        self.expand = initialization.feedforward(dim, hidden)
        self.dropout = dropout
        self.contract = initialization.feedforward(hidden, dim)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        if self.training and self.dropout > 0:
            return self.contract(relu_dropout(self.expand(x), self.dropout))
        return self.contract(linear_relu(x, self.expand))


class PReLUFeedForward(nn.Module):
    """Two linear layers, and between them a PReLU, whose slope is learned, and dropout (DAB-DETR)."""

    def __init__(self, dim: int, hidden: int, dropout: float, initialization: Initialization) -> None:
        super().__init__()
        self.expand = initialization.feedforward(dim, hidden)
        self.activation = nn.PReLU()
        self.dropout = nn.Dropout(dropout)
        self.contract = initialization.feedforward(hidden, dim)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return self.contract(self.dropout(self.activation(self.expand(x))))
