"""Quality-aware classification against the losses of transformers' RT-DETR and DEIMv2."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detrs.boxes import cxcywh_to_xyxy, iou
from detrs.config import validate
from detrs.config.criterion import CriterionConfig, Quality
from detrs.criterion.quality import QUALITY
from detrs.criterion.set_criterion import SetCriterion
from detrs.errors import UserError
from detrs.presets import preset
from detrs.structures import Prediction, Predictions, Target, Totals

CLASSES, QUERIES = 5, 7


def theirs(quality: Quality) -> Any:
    if quality == "varifocal":
        from transformers.loss.loss_rt_detr import RTDetrLoss

        loss, name = RTDetrLoss.loss_labels_vfl, "loss_vfl"
        settings = {"alpha": 0.75, "gamma": 2.0}
    else:
        from transformers.loss import loss_deimv2

        (kind,) = (k for k in vars(loss_deimv2).values() if hasattr(k, "loss_labels_mal"))
        loss, name = kind.loss_labels_mal, "loss_mal"
        settings = {"mal_alpha": None, "gamma": 1.5}

    def permutation(indices: Any) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.cat([torch.full_like(source, i) for i, (source, _) in enumerate(indices)])
        return image, torch.cat([source for source, _ in indices])

    owner = SimpleNamespace(num_classes=CLASSES, _get_source_permutation_idx=permutation, **settings)
    return lambda *arguments: loss(owner, *arguments)[name]


@pytest.mark.parametrize("quality", ["varifocal", "matchability"])
def test_value_and_gradient(quality: Quality) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, QUERIES, CLASSES, dtype=torch.float64)
    boxes = torch.rand(2, QUERIES, 4, dtype=torch.float64) * 0.3 + 0.3
    targets = [
        {"class_labels": torch.tensor([1, 4]), "boxes": boxes[0, [2, 5]] + 0.05},
        {"class_labels": torch.tensor([0]), "boxes": boxes[1, [3]] * 0.9},
    ]
    indices = [(torch.tensor([2, 5]), torch.tensor([0, 1])), (torch.tensor([3]), torch.tensor([0]))]
    image, query = torch.tensor([0, 0, 1]), torch.tensor([2, 5, 3])
    first, second = (logits.clone().requires_grad_() for _ in range(2))
    expected = theirs(quality)({"logits": first, "pred_boxes": boxes}, targets, indices, 3)
    loss = QUALITY[quality]
    assert loss is not None
    wanted = torch.cat([target["boxes"] for target in targets])
    overlap = iou(cxcywh_to_xyxy(boxes[image, query]), cxcywh_to_xyxy(wanted))
    found = loss(second[None], (torch.zeros(3, dtype=torch.long), image, query), torch.tensor([1, 4, 0]), overlap)
    torch.testing.assert_close(found.sum() / 3, expected)
    (found.sum() / 3).backward()
    expected.backward()
    torch.testing.assert_close(second.grad, first.grad)


@pytest.mark.parametrize("quality", ["varifocal", "matchability"])
def test_criterion_trains_scores_to_the_quality_of_boxes(quality: Quality) -> None:
    """The gradient of a matched logit vanishes where its score is the target, and boxes get none from it."""
    config = CriterionConfig(quality=quality, box_weight=0.0, giou_weight=0.0)
    criterion = SetCriterion(config, preset("dino-tiny").model.classification)  # type: ignore[union-attr]
    box = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]], requires_grad=True)
    goal = torch.tensor(1 / 3 if quality == "varifocal" else (1 / 3) ** 1.5)
    logits = torch.logit(goal).reshape(1, 1, 1).requires_grad_()
    target = Target(torch.tensor([[0.6, 0.5, 0.2, 0.2]]), torch.tensor([0]), 1, (9, 9))
    criterion(Predictions((Prediction(logits, box),), None), (target,), Totals(1, 1)).total.backward()
    assert logits.grad is not None and abs(logits.grad.item()) < 1e-6
    assert box.grad is None or not box.grad.any()


def test_only_with_the_focal_loss() -> None:
    experiment = replace(preset("detr-tiny"), criterion=CriterionConfig(quality="varifocal"))
    with pytest.raises(UserError, match=r"criterion\.quality 'varifocal' needs a detector with the focal loss"):
        validate(experiment)
