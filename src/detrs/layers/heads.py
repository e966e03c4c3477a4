"""Heads: from what a query is to a class and a box."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from detrs.layers.initialization import ExactLinear, prior_bias
from detrs.structures import Prediction

BoxCoder = Callable[[Tensor, Tensor], Tensor]
"""The head's raw output (B, Q, 4) and references (B, Q, 2 or 4) to boxes; see ``detrs.boxes``."""


class DetectionHead(nn.Module):
    """One logit per class, and a box relative to the query's reference; both in full precision under autocast too.

    Args:
        dim: width of the queries.
        num_classes: K.
        box_coder: ``offset_from_point`` or ``offset_from_box``.
        size_bias: initial raw width and height; -2 starts with boxes of sigmoid(-2) = 0.12 of the image.
    """

    def __init__(self, dim: int, num_classes: int, box_coder: BoxCoder, size_bias: float) -> None:
        super().__init__()
        self.box_coder = box_coder
        self.classes = ExactLinear(dim, num_classes)
        nn.init.constant_(self.classes.bias, prior_bias(0.01))
        raw = ExactLinear(dim, 4)
        nn.init.zeros_(raw.weight)
        nn.init.zeros_(raw.bias)
        nn.init.constant_(raw.bias[2:], size_bias)
        self.box = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, dim), nn.ReLU(inplace=True), raw
        )

    def forward(self, content: Float[Tensor, "B Q C"], reference: Float[Tensor, "B Q R"]) -> Prediction:
        return Prediction(self.classes(content), self.box_coder(self.box(content), reference))
