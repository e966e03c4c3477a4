from dataclasses import replace

import pytest
import torch
from torch import nn

from detrs.classification import ProposalLabels
from detrs.layers.heads import DetectionHead
from detrs.layers.queries import (
    PROPOSAL_SCORES,
    ProposalQueries,
    all_tokens,
    offset_from_logits,
    proposal_anchors,
    usable_first,
)
from detrs.structures import Pyramid


def memory() -> Pyramid:
    """Two images of 3 x 5 tokens."""
    y, x = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(5) + 0.5) / 5, indexing="ij")
    points = torch.stack([x, y], dim=-1).flatten(0, 1).expand(2, -1, -1)
    tokens, padding = torch.randn(2, 15, 8), torch.zeros(2, 15, dtype=torch.bool)
    return Pyramid(tokens, tokens, points, padding, ((3, 5),), torch.ones(2, 1, 2), torch.tensor([[24, 40], [24, 40]]))


@pytest.mark.parametrize(("labels", "classes"), [("objectness", [0]), ("classes", [0, 1, 2])])
@torch.no_grad()
def test_proposals_are_ranked_by_objectness_or_by_their_largest_logit(
    labels: ProposalLabels, classes: list[int]
) -> None:
    torch.manual_seed(0)
    head = DetectionHead(nn.Linear(8, 3), nn.Linear(8, 4), offset_from_logits)
    queries, proposals = ProposalQueries(4, 8, head, labels)(memory())
    scores = proposals.logits[..., classes].amax(-1)
    best = scores.argsort(dim=1, descending=True)[:, :4]
    expected = proposals.boxes.gather(1, best[..., None].expand(-1, -1, 4))
    assert torch.equal(queries.reference, expected)
    (other,) = (score(proposals.logits).topk(4).indices for kind, score in PROPOSAL_SCORES.items() if kind != labels)
    assert not torch.equal(best, other)


@torch.no_grad()
def test_padding_becomes_a_query_only_without_usable_tokens() -> None:
    """The score of zeroed tokens is the largest here; their box is (1, 1, 1, 1)."""
    torch.manual_seed(0)
    head = DetectionHead(nn.Linear(8, 3), nn.Linear(8, 4), offset_from_logits)
    padded = memory()
    padding = padded.padding.clone()
    padding[1, 4:] = True
    padded = replace(padded, padding=padding)
    _, usable = proposal_anchors(padded)
    assert usable[..., 0].sum(1).tolist() == [15, 4]
    counts, sign = {}, head.classes.weight[0].sign()
    for candidates in (all_tokens, usable_first):
        queries = ProposalQueries(6, 8, head, "objectness", candidates)
        nn.init.zeros_(queries.token_norm.weight)  # every token has the same logits, but for the next line
        nn.init.zeros_(queries.token_norm.bias)
        queries.token_norm.register_forward_hook(lambda module, inputs, output: output - 9 * usable * sign)
        reference = queries(padded)[0].reference
        assert reference.shape == (2, 6, 4)
        counts[candidates] = (reference == 1).all(-1).sum(1).tolist()
    assert counts == {all_tokens: [0, 6], usable_first: [0, 2]}


def test_scores_of_proposals() -> None:
    logits = torch.tensor([[[1.0, -2.0, 3.0], [2.0, 0.0, -1.0]]])
    assert PROPOSAL_SCORES["objectness"](logits).tolist() == [[1.0, 2.0]]
    assert PROPOSAL_SCORES["classes"](logits).tolist() == [[3.0, 2.0]]
