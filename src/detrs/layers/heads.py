"""Heads: queries to class logits and boxes."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from detrs.boxes import scaled_from_box
from detrs.classification import Classification, class_logits
from detrs.layers.initialization import ExactLinear
from detrs.structures import Prediction, Pyramid, Queries

BoxCoder = Callable[[Tensor, Tensor], Tensor]
"""The head's raw output (B, Q, 4) and references (B, Q, 0, 2 or 4) to boxes; see ``detrs.boxes``."""


class DetectionHead(nn.Module):
    """Class logits, and a box relative to the query's reference.

    Args:
        classes: contents of queries to logits; see ``class_layer``.
        box: contents of queries to four raw numbers; see ``box_mlp``.
        box_coder: raw numbers and references to boxes: ``absolute``, ``offset_from_point``, ``offset_from_box``.
        norm: applied to the contents first (DETR's final normalization); by default the identity.
    """

    def __init__(self, classes: nn.Module, box: nn.Module, box_coder: BoxCoder, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.box_coder = box_coder
        self.norm = norm or nn.Identity()
        self.classes = classes
        self.box = box

    def forward(self, queries: Queries, memory: Pyramid) -> Prediction:
        """One class distribution and one box per query; ``memory`` is for heads that pool features or make masks."""
        content = self.norm(queries.content)
        return Prediction(self.classes(content), self.box_coder(self.box(content), queries.reference))

    def refined(self, queries: Queries) -> Float[Tensor, "B Q 4"]:
        """The reference of the next layer in DAB-DETR and DINO: from contents that are not normalized."""
        return self.box_coder(self.box(queries.content), queries.reference)


class TowerHead(nn.Module):
    """Class logits, and a box relative to the query's box, each after a tower of linear layers.

    Args:
        class_tower: contents of queries to those for the classes.
        classes: these to logits; see ``class_layer``.
        box_tower: contents of queries to those for the box.
        box: these to four raw numbers, for ``scaled_from_box``.
    """

    def __init__(self, class_tower: nn.Module, classes: nn.Module, box_tower: nn.Module, box: nn.Module) -> None:
        super().__init__()
        self.class_tower = class_tower
        self.classes = classes
        self.box_tower = box_tower
        self.box = box

    def forward(self, queries: Queries, memory: Pyramid) -> Prediction:
        """One class distribution and one box per query."""
        raw = self.box(self.box_tower(queries.content))
        return Prediction(self.classes(self.class_tower(queries.content)), scaled_from_box(raw, queries.reference))


def class_layer(dim: int, num_classes: int, classification: Classification) -> ExactLinear:
    """Logits of ``num_classes`` (and "no object", with ``Softmax``), in full precision, with the prior of
    ``classification``."""
    logits = class_logits(classification)
    layer = ExactLinear(dim, logits.num_logits(num_classes))
    logits.initialize(layer)
    return layer


def box_mlp(last: nn.Linear) -> nn.Sequential:
    """The three-layer perceptron that predicts a box; ``last`` is its output layer, for example ``zero_box_layer``."""
    dim = last.in_features
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, dim), nn.ReLU(inplace=True), last)


def zero_box_layer(dim: int, size_bias: float = 0.0) -> ExactLinear:
    """An output layer whose boxes start at their reference; a ``size_bias`` of -2 is sigmoid(-2) = 0.12 of the
    image."""
    layer = ExactLinear(dim, 4)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    nn.init.constant_(layer.bias[2:], size_bias)
    return layer
