"""Object queries: learned, or from the encoder's proposals."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detrs.classification import ProposalLabels
from detrs.layers.heads import DetectionHead
from detrs.layers.initialization import ExactLinear, xavier_linear
from detrs.layers.position import sine_features
from detrs.structures import Prediction, Pyramid, Queries


class StartsFromBoxes:
    """Queries that are boxes from the start: what ``criterion/denoising.py`` needs of them."""

    label_channels: int
    """Channels of a content that the embedding of a label takes; one more is the indicator."""
    has_unknown = False
    """Whether the content is the embedding of the label "unknown"."""

    def of_boxes(self, boxes: Float[Tensor, "B Q 4"]) -> tuple[Float[Tensor, "B Q C"], Float[Tensor, "B Q _"]]:
        """Content and position of queries that start at ``boxes``; zero where contents are learned, and positions are
        computed by layers."""
        zero = boxes.new_zeros(*boxes.shape[:2], self.label_channels)
        return zero, zero


class LearnedBoxes(StartsFromBoxes, nn.Module):
    """Learned boxes and contents, the same for every image; boxes are the whole image at first.

    ``embedding`` contains each query's box (cxcywh in [0, 1], without limits), then its content.
    """

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.label_channels = dim
        self.embedding = nn.Embedding(num_queries, 4 + dim)
        with torch.no_grad():
            self.embedding.weight[:, :2] = 0.5
            self.embedding.weight[:, 2:4] = 1.0

    def forward(self, memory: Pyramid) -> tuple[Queries, None]:
        weight = self.embedding.weight[None].expand(memory.tokens.shape[0], -1, -1)
        content, reference = weight[..., 4:], weight[..., :4]
        return Queries(content, self.of_boxes(reference)[1].to(content.dtype), reference), None


class LearnedQueries(nn.Module):
    """One-stage: content and position are parameters, the reference point is predicted from the position."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_queries, 2 * dim)  # position, then content, as in official checkpoints
        self.reference_points = ExactLinear(dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Pyramid) -> tuple[Queries, None]:
        weight = self.embedding.weight[None].expand(memory.tokens.shape[0], -1, -1)
        position, content = weight.chunk(2, dim=-1)
        return Queries(content, position, self.reference_points(position).sigmoid()), None


Candidates = Callable[[Tensor, Tensor], Tensor]
"""Scores of all tokens (B, S) and which of them are usable (B, S) to the scores that decide which become queries."""


def all_tokens(scores: Float[Tensor, "B S"], usable: Bool[Tensor, "B S"]) -> Float[Tensor, "B S"]:
    """Every token can become a query, zeroed ones too, as in the authors' code."""
    return scores


def usable_first(scores: Float[Tensor, "B S"], usable: Bool[Tensor, "B S"]) -> Float[Tensor, "B S"]:
    """Zeroed tokens become queries only if there are fewer usable ones than queries."""
    return scores.masked_fill(~usable, -torch.inf)


CANDIDATES: dict[Literal["all", "usable"], Candidates] = {"all": all_tokens, "usable": usable_first}


class TokenProposals(StartsFromBoxes, nn.Module):
    """Every token proposes a box; those with the best scores become queries (Deformable DETR, 4.2, A.4).

    A token's anchor is centered on it, ``0.05 * 2**l`` of the image wide and high. Tokens that are padding, or whose
    anchor is not inside (0.01, 0.99), are zeroed and propose the box (1, 1, 1, 1) (an anchor logit of +inf).

    Args:
        num_queries: number of proposals that become queries; all tokens where there are fewer.
        dim: embedding dimension of tokens and queries.
        head: predicts class and box of each token; separate from the heads of the decoder.
        labels: what proposals are trained with, and so which score ranks them.
        candidates: ``all_tokens`` or ``usable_first``.
    """

    def __init__(
        self,
        num_queries: int,
        dim: int,
        head: DetectionHead,
        labels: ProposalLabels,
        candidates: Candidates = all_tokens,
    ) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.dim = self.label_channels = dim
        self.score = PROPOSAL_SCORES[labels]
        self.candidates = candidates
        self.token_proj = xavier_linear(dim, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.head = head

    def count(self) -> int:
        """Queries of an image with enough tokens."""
        return self.num_queries

    def propose(self, memory: Pyramid, further: int = 0) -> tuple[Prediction, Int[Tensor, "B Q"]]:
        """The proposals of all tokens, and the tokens that become queries (``further`` more), best first."""
        anchors, usable = proposal_anchors(memory)
        tokens = self.token_norm(self.token_proj(memory.tokens.masked_fill(~usable, 0.0)))
        proposals = self.head(Queries(tokens, memory.position, anchors), memory)
        scores = self.candidates(self.score(proposals.logits), usable[..., 0])
        return proposals, scores.topk(min(self.num_queries + further, tokens.shape[1]), dim=1).indices


class ProposalQueries(TokenProposals):
    """Two-stage: contents and positions of queries are computed from their proposals, which become references."""

    def __init__(
        self,
        num_queries: int,
        dim: int,
        head: DetectionHead,
        labels: ProposalLabels,
        candidates: Candidates = all_tokens,
    ) -> None:
        super().__init__(num_queries, dim, head, labels, candidates)
        self.box_proj = xavier_linear(2 * dim, 2 * dim)
        self.box_norm = nn.LayerNorm(2 * dim)

    def forward(self, memory: Pyramid, further: int = 0) -> tuple[Queries, Prediction]:
        proposals, best = self.propose(memory, further)
        reference = chosen(proposals.boxes, best).detach()
        content, position = self.of_boxes(reference)
        return Queries(content, position, reference), proposals

    def of_boxes(self, boxes: Float[Tensor, "B Q 4"]) -> tuple[Float[Tensor, "B Q C"], Float[Tensor, "B Q C"]]:
        """Content and position of queries that start at ``boxes``."""
        features = sine_features(boxes * 2 * math.pi, self.dim // 2).flatten(2)  # (B, Q, 2C)
        position, content = self.box_norm(self.box_proj(features.to(self.box_proj.weight.dtype))).chunk(2, dim=-1)
        return content, position


class MixedQueries(TokenProposals):
    """Mixed query selection (DINO, 3.3): references from the best proposals, contents learned.

    The best proposal has the first content, and so on. Only proposals that become queries are returned, and trained.
    Layers compute position embeddings.
    """

    def __init__(
        self,
        num_queries: int,
        dim: int,
        head: DetectionHead,
        candidates: Candidates = all_tokens,
    ) -> None:
        super().__init__(num_queries, dim, head, "classes", candidates)
        self.content = nn.Embedding(num_queries, dim)
        nn.init.xavier_uniform_(self.content.weight)

    def forward(self, memory: Pyramid, further: int = 0) -> tuple[Queries, Prediction]:
        proposals, best = self.propose(memory, further)
        selected = Prediction(chosen(proposals.logits, best), chosen(proposals.boxes, best))
        weight = self.content.weight
        if further:  # their contents are those of the first queries, again
            weight = weight.repeat(1 + further // self.num_queries + 1, 1)
        content = weight[None, : best.shape[1]].expand(best.shape[0], -1, -1)
        queries = Queries(content, torch.zeros_like(content), selected.boxes.detach())
        return queries, selected.part(slice(self.num_queries))


def chosen(rows: Float[Tensor, "B S N"], index: Int[Tensor, "B Q"]) -> Float[Tensor, "B Q N"]:
    """The rows of ``index``."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))


def objectness(logits: Float[Tensor, "B S K"]) -> Float[Tensor, "B S"]:
    """The logit of class 0, trained as "any object" (Deformable DETR)."""
    return logits[..., 0]


def best_class(logits: Float[Tensor, "B S K"]) -> Float[Tensor, "B S"]:
    """The largest logit, for proposals trained with the classes of objects (Efficient DETR, DINO)."""
    return logits.amax(-1)


PROPOSAL_SCORES = {"objectness": objectness, "classes": best_class}


def proposal_anchors(memory: Pyramid) -> tuple[Float[Tensor, "B S 4"], Tensor]:
    """The anchor of each token as logits (+inf where zeroed), and which tokens are usable (B, S, 1)."""
    sizes = torch.cat(
        [memory.reference_points.new_full((h * w,), 0.05 * 2**level) for level, (h, w) in enumerate(memory.shapes)]
    )
    boxes = torch.cat([memory.reference_points, sizes[None, :, None].expand(memory.reference_points.shape)], dim=-1)
    usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True) & ~memory.padding[..., None]
    return torch.log(boxes / (1 - boxes)).masked_fill(~usable, torch.inf), usable


def offset_from_logits(raw: Float[Tensor, "B S 4"], anchor_logits: Float[Tensor, "B S 4"]) -> Float[Tensor, "B S 4"]:
    """Box coder of the proposal head: anchors are logits already, unclamped, +inf where zeroed."""
    return (raw + anchor_logits).sigmoid()
