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
        """The prediction of each layer, and the final queries.

        ``look_forward``: ``twice`` changes gradients only: each box starts from the box that the layer before
        predicted, not detached, so that the loss of a layer also trains that (DINO, 3.4). For ``refine``.
        """
        predictions, attended = [], self.memory_of_layers(memory)
        start = queries.reference
        for layer, head in zip(self.layers, self.heads, strict=True):
            queries = layer(queries, attended)
            predictions.append(head(queries.with_reference(start), memory))
            queries = self.next_reference(queries, predictions[-1].boxes)
            start = predictions[-1].boxes if look_forward == "twice" else queries.reference
        return tuple(predictions), queries


class LookForwardTwice(Decoder):
    """A decoder whose heads refine boxes twice: with the head of its layer, and with that of the next (DINO, 3.4).

    A prediction starts from the box that the layer before refined, with its gradient, so the loss of a layer also
    trains the refinement before it. References of layers are detached by ``next_reference``. Both boxes of a head
    differ if it has a normalization, which is applied for the prediction only, as in the authors' code.
    """

    def forward(
        self, queries: Queries, memory: Pyramid, look_forward: LookForward = "twice"
    ) -> tuple[tuple[Prediction, ...], Queries]:
        predictions: list[Prediction] = []
        attended, start = self.memory_of_layers(memory), queries.reference
        for index, (layer, head) in enumerate(zip(self.layers, self.heads, strict=True)):
            if index > 0:
                start = self.heads[index - 1].refined(queries)  # type: ignore[operator]
                queries = self.next_reference(queries, start)
            queries = layer(queries, attended)
            predictions.append(head(queries.with_reference(start), memory))
        return tuple(predictions), self.next_reference(queries, predictions[-1].boxes)
