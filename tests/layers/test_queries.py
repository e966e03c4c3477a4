import pytest
import torch
from torch import nn

from detrs.classification import ProposalLabels
from detrs.layers.heads import DetectionHead
from detrs.layers.queries import PROPOSAL_SCORES, ProposalQueries, offset_from_logits
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


def test_scores_of_proposals() -> None:
    logits = torch.tensor([[[1.0, -2.0, 3.0], [2.0, 0.0, -1.0]]])
    assert PROPOSAL_SCORES["objectness"](logits).tolist() == [[1.0, 2.0]]
    assert PROPOSAL_SCORES["classes"](logits).tolist() == [[3.0, 2.0]]
