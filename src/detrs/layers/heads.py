"""Heads: from what a query is to a class and a box."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from detrs.classification import Classification
from detrs.layers.initialization import ExactLinear
from detrs.structures import Prediction

BoxCoder = Callable[[Tensor, Tensor], Tensor]
"""The head's raw output (B, Q, 4) and references (B, Q, 0, 2 or 4) to boxes; see ``detrs.boxes``."""


class DetectionHead(nn.Module):
    """Logits of classes, and a box relative to the query's reference; both in full precision under autocast too.

    Args:
        classes: queries to logits; see ``class_layer``.
        box: last layer of the box's three, to four raw numbers; see ``zero_box_layer``.
        box_coder: raw numbers and references to boxes: ``absolute``, ``offset_from_point``, ``offset_from_box``.
        norm: what queries pass through before (DETR's final normalisation, one for all layers); by default nothing.
    """

    def __init__(self, classes: nn.Linear, box: nn.Linear, box_coder: BoxCoder, norm: nn.Module | None = None) -> None:
        super().__init__()
        dim = box.in_features
        self.box_coder = box_coder
        self.norm = norm or nn.Identity()
        self.classes = classes
        self.box = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, dim), nn.ReLU(inplace=True), box
        )

    def forward(self, content: Float[Tensor, "B Q C"], reference: Float[Tensor, "B Q R"]) -> Prediction:
        content = self.norm(content)
        return Prediction(self.classes(content), self.box_coder(self.box(content), reference))


def class_layer(dim: int, num_classes: int, classification: Classification) -> ExactLinear:
    """Logits of the ``num_classes`` (and of "no object", if ``classification`` has that), started as it wants."""
    layer = ExactLinear(dim, classification.num_logits(num_classes))
    classification.initialize(layer)
    return layer


def zero_box_layer(dim: int, size_bias: float = 0.0) -> ExactLinear:
    """Every box starts on its reference; a raw width and height of -2 is sigmoid(-2) = 0.12 of the image."""
    layer = ExactLinear(dim, 4)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    nn.init.constant_(layer.bias[2:], size_bias)
    return layer
