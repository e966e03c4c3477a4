"""The decoder: queries look at each other, look at the image, think, and say where their box is."""

from collections.abc import Callable, Iterable

from jaxtyping import Float
from torch import Tensor, nn

from detrs.layers.feedforward import AddNorm, FeedForward
from detrs.structures import Prediction, Pyramid, Queries

NextReference = Callable[[Queries, Tensor], Queries]


def keep(queries: Queries, boxes: Float[Tensor, "B Q 4"]) -> Queries:
    """Every layer refers to the same point."""
    return queries


def refine(queries: Queries, boxes: Float[Tensor, "B Q 4"]) -> Queries:
    """The next layer refers to the box just predicted; gradients stop there (Deformable DETR, A.2)."""
    return queries.with_reference(boxes.detach())


class DecoderLayer(nn.Module):
    """``q <- LN(q + SelfAttention(q)); q <- LN(q + Look(q, memory)); q <- LN(q + FFN(q))``."""

    def __init__(
        self, self_attention: nn.Module, look: nn.Module, feedforward: FeedForward, dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_norm = AddNorm(dim, dropout)
        self.look = look
        self.look_norm = AddNorm(dim, dropout)
        self.feedforward = feedforward
        self.feedforward_norm = AddNorm(dim, dropout)

    def forward(self, queries: Queries, memory: Pyramid) -> Queries:
        queries = queries.with_content(self.self_attention_norm(queries.content, self.self_attention(queries)))
        queries = queries.with_content(self.look_norm(queries.content, self.look(queries, memory)))
        return queries.with_content(self.feedforward_norm(queries.content, self.feedforward(queries.content)))


class Decoder(nn.Module):
    """Layers and the head that reads each; ``next_reference`` is ``keep`` or ``refine``."""

    def __init__(self, layers: Iterable[nn.Module], heads: Iterable[nn.Module], next_reference: NextReference) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.heads = nn.ModuleList(heads)
        self.next_reference = next_reference

    def forward(self, queries: Queries, memory: Pyramid) -> tuple[Prediction, ...]:
        predictions = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            queries = layer(queries, memory)
            predictions.append(head(queries.content, queries.reference))
            queries = self.next_reference(queries, predictions[-1].boxes)
        return tuple(predictions)
