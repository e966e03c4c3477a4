import pytest
import torch
from torch import Tensor, nn

from detrs.classification import Focal
from detrs.criterion.objective import SetObjective
from detrs.criterion.set_criterion import CriterionConfig, ProposalLabels, SetCriterion
from detrs.structures import Batch, Prediction, Predictions, Target, Totals

BATCH = Batch(
    torch.randn(2, 3, 11, 13),
    torch.zeros(2, 11, 13, dtype=torch.bool),
    (
        Target(torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.5, 0.2]]), torch.tensor([3, 1]), 1, (11, 13)),
        Target(torch.tensor([[0.5, 0.5, 0.1, 0.3]]), torch.tensor([2]), 2, (11, 13)),
    ),
)


class TwoStage(nn.Module):
    """Constant predictions and proposals of 5 classes, scaled by a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.classification = Focal(weight=1.5, alpha=0.3)
        self.scale = nn.Parameter(torch.ones(()))
        generator = torch.Generator().manual_seed(0)
        self.logits, self.raw = torch.randn(2, 7, 5, generator=generator), torch.randn(2, 7, 4, generator=generator)

    def forward(self, images: Tensor, padding: Tensor) -> Predictions:
        prediction = Prediction(self.scale * self.logits, (self.scale * self.raw).sigmoid())
        proposals = Prediction(prediction.logits.flip(1), prediction.boxes.flip(1))
        return Predictions((prediction,), proposals)


@pytest.mark.parametrize("labels", ["objectness", "classes"])
def test_equals_forward_and_set_criterion(labels: ProposalLabels) -> None:
    detector, config = TwoStage(), CriterionConfig(box_weight=3.0, giou_weight=0.7)
    totals = Totals(images=5, objects=9)
    found = SetObjective(detector, config, labels)(BATCH, totals)
    criterion = SetCriterion(config, detector.classification, labels)
    expected = criterion(detector(BATCH.images, BATCH.padding), BATCH.targets, totals)
    assert torch.equal(found.total, expected.total) and found.terms == expected.terms
    found.total.backward()
    assert detector.scale.grad is not None and detector.scale.grad != 0


def test_labels_of_proposals_change_their_class_term_only() -> None:
    any_object, classes = (
        SetObjective(TwoStage(), CriterionConfig(box_weight=0.0), labels)(BATCH, Totals.of(BATCH.targets)).terms
        for labels in ("objectness", "classes")
    )
    assert any_object["class_proposals"] != classes["class_proposals"]
    assert any_object["class"] == classes["class"]


def test_criterion_is_in_float32_under_autocast() -> None:
    """Products of the criterion, such as weights times terms, would be in bfloat16 otherwise."""
    detector = TwoStage()
    objective, totals = SetObjective(detector, CriterionConfig()), Totals.of(BATCH.targets)
    expected = objective(BATCH, totals)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = objective(BATCH, totals)
    assert found.total.dtype == torch.float32
    assert torch.equal(found.total, expected.total) and found.terms == expected.terms
