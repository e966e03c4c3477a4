"""The decoder: self-attention, cross-attention, feed-forward network and a head per layer."""

from collections.abc import Callable, Iterable
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from detrs.layers.autocast import unchanged
from detrs.layers.feedforward import AddNorm, FeedForward
from detrs.structures import Prediction, Pyramid, Queries

NextReference = Callable[[Queries, Tensor], Queries]
LookForward = Literal["once", "twice"]
MemoryOfLayers = Callable[[Pyramid], Pyramid]


def keep(queries: Queries, boxes: Float[Tensor, "B Q 4"]) -> Queries:
    """Every layer has the same reference."""
    return queries


def refine(queries: Queries, boxes: Float[Tensor, "B Q 4"]) -> Queries:
    """The reference of the next layer is the predicted box, detached (Deformable DETR, A.2)."""
    return queries.with_reference(boxes.detach())


class DecoderLayer(nn.Module):
    """``q <- LN(q + SelfAttention(q)); q <- LN(q + CrossAttention(q, memory)); q <- LN(q + FFN(q))``."""

    def __init__(
        self, self_attention: nn.Module, cross_attention: nn.Module, feedforward: FeedForward, dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_norm = AddNorm(dim, dropout)
        self.cross_attention = cross_attention
        self.cross_attention_norm = AddNorm(dim, dropout)
        self.feedforward = feedforward
        self.feedforward_norm = AddNorm(dim, dropout)

    def forward(self, queries: Queries, memory: Pyramid) -> Queries:
        queries = queries.with_content(self.self_attention_norm(queries.content, self.self_attention(queries)))
        attended = self.cross_attention(queries, memory)
        queries = queries.with_content(self.cross_attention_norm(queries.content, attended))
        return queries.with_content(self.feedforward_norm(queries.content, self.feedforward(queries.content)))


class Decoder(nn.Module):
    """Decoder layers, each with a head.

    Args:
        layers: ``Queries`` and ``Pyramid`` to ``Queries``.
        heads: one per layer, ``Queries`` and ``Pyramid`` to ``Prediction``; one head may appear several times.
        next_reference: ``keep`` or ``refine``.
        memory_of_layers: the memory as all layers take it: ``unchanged`` or ``tokens_for_linear_layers``. Heads have it
            unchanged.
    """

    def __init__(
        self,
        layers: Iterable[nn.Module],
        heads: Iterable[nn.Module],
        next_reference: NextReference,
        memory_of_layers: MemoryOfLayers = unchanged,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.heads = nn.ModuleList(heads)
        self.next_reference = next_reference
        self.memory_of_layers = memory_of_layers

    def forward(
        self, queries: Queries, memory: Pyramid, look_forward: LookForward = "once"
    ) -> tuple[tuple[Prediction, ...], Queries]:
        """The prediction of each layer, and the final queries; ``look_forward`` changes gradients only."""
        if look_forward == "twice":
            return self.forward_twice(queries, memory)
        predictions, attended = [], self.memory_of_layers(memory)
        for layer, head in zip(self.layers, self.heads, strict=True):
            queries = layer(queries, attended)
            predictions.append(head(queries, memory))
            queries = self.next_reference(queries, predictions[-1].boxes)
        return tuple(predictions), queries

    def forward_twice(self, queries: Queries, memory: Pyramid) -> tuple[tuple[Prediction, ...], Queries]:
        """The same, but a prediction starts from the box that the layer before refined, with its gradient.

        So the loss of a layer also trains the refinement before it, and no earlier one: that started from a detached
        reference (DINO, 3.4). For ``refine``.
        """
        predictions: list[Prediction] = []
        attended, start = self.memory_of_layers(memory), queries.reference
        for index, (layer, head) in enumerate(zip(self.layers, self.heads, strict=True)):
            if index > 0:
                start = self.refined(self.heads[index - 1], queries, memory)
                queries = self.next_reference(queries, start)
            queries = layer(queries, attended)
            predictions.append(head(queries.with_reference(start), memory))
        return tuple(predictions), self.next_reference(queries, predictions[-1].boxes)

    def refined(self, head: nn.Module, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q 4"]:
        """The box that a layer passes on, from its detached reference."""
        boxes: Tensor = head(queries, memory).boxes
        return boxes


class LookForwardTwice(Decoder):
    """A decoder whose predictions always start from the refined box of the layer before (DAB-DETR, DINO).

    The box that a layer passes on differs from its prediction if its head has a normalization, which is applied for the
    prediction only, as in the authors' code.
    """

    def forward(
        self, queries: Queries, memory: Pyramid, look_forward: LookForward = "twice"
    ) -> tuple[tuple[Prediction, ...], Queries]:
        return self.forward_twice(queries, memory)

    def refined(self, head: nn.Module, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q 4"]:
        boxes: Tensor = head.refined(queries)  # type: ignore[operator]
        return boxes
