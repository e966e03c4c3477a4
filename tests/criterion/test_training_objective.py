"""Options of training that do not change the detector: one-to-many queries and look forward twice."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from detrs.config import validate
from detrs.config.classification import Focal
from detrs.config.criterion import ContrastiveDenoising, CriterionConfig, GroupDenoising, OneToMany
from detrs.criterion.further_queries import Groups, with_groups
from detrs.criterion.objective import SetObjective
from detrs.criterion.set_criterion import SetCriterion
from detrs.errors import UserError
from detrs.models import build
from detrs.presets import preset
from detrs.structures import Batch, Prediction, Predictions, Queries, Target, Totals

SIZE = 64, 96
BOXES = torch.tensor([[0.3, 0.4, 0.25, 0.3], [0.7, 0.55, 0.4, 0.5]])
SET_DETECTORS = [
    "detr-tiny",
    "conditional-detr-tiny",
    "deformable-detr-tiny",
    "efficient-detr-tiny",
    "dynamic-detr-tiny",
    "sparse-rcnn-tiny",
    "dab-detr-tiny",
    "dn-deformable-detr-tiny",
    "dino-tiny",
]
MANY = OneToMany(groups=2, queries=9, repeats=3)


def objective(name: str, criterion: CriterionConfig, **model: Any) -> Any:
    torch.manual_seed(0)
    config = preset(name).model
    detector = build(replace(config, num_classes=7, dropout=0.0, num_queries=20, decoder_layers=3, **model)).train()
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return detector.objective(criterion)


def batch(count: int = 2) -> Batch:
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    target = Target(BOXES[:count], torch.tensor([2, 5])[:count], 1, SIZE)
    return Batch(images, torch.zeros(1, *SIZE, dtype=torch.bool), (target,))


@pytest.mark.parametrize("name", SET_DETECTORS)
def test_further_queries_do_not_change_the_others(name: str) -> None:
    """Losses of the detector's own queries are those without the option; every parameter has a gradient."""
    plain = objective(name, CriterionConfig())
    many = objective(name, CriterionConfig(assignment=MANY))
    assert isinstance(plain, SetObjective) or name == "efficient-detr-tiny"
    found, own = many(batch(), Totals(1, 2)), plain(batch(), Totals(1, 2))
    for term, value in own.terms.items():
        torch.testing.assert_close(found.terms[term], value, rtol=1e-4, atol=1e-5)
    added = {term for term in found.terms if "one_to_many" in term}
    assert set(found.terms) == set(own.terms) | added
    assert {"class_one_to_many", "box_one_to_many_0", "giou_one_to_many"} <= added
    assert set(many.detector.state_dict()) == set(plain.detector.state_dict())
    empty = many(batch(0), Totals(1, 0))
    assert list(empty.terms) == list(found.terms)
    (found.total + empty.total).backward()
    assert [key for key, p in many.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("name", ["dino-tiny", "deformable-detr-tiny"])
def test_options_together(name: str) -> None:
    criterion = CriterionConfig(
        assignment=MANY, denoising=ContrastiveDenoising(pairs=4, hide_padding=True), quality="matchability",
        look_forward="twice",
    )  # fmt: skip
    trained = objective(name, criterion)
    losses = trained(batch(), Totals(1, 2))
    assert losses.total.isfinite() and {"class_denoising", "class_one_to_many"} <= set(losses.terms)
    losses.total.backward()
    assert [key for key, p in trained.named_parameters() if p.requires_grad and p.grad is None] == []


def test_objects_are_matched_with_as_many_queries_as_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = objective("deformable-detr-tiny", CriterionConfig(assignment=MANY))
    seen = []
    score = trained.criterion.score

    def record(group: Any, labels: Any, boxes: Any, pairs: Any, totals: Any) -> Any:
        seen.append(
            (group.logits.shape[2], torch.bincount(pairs.query[pairs.layer == 0]).max().item(), len(pairs.query))
        )
        return score(group, labels, boxes, pairs, totals)

    monkeypatch.setattr(trained.criterion, "score", record)
    trained(batch(), Totals(1, 2))
    layers = 3
    assert seen[0] == (20, 1, 2 * layers)
    assert seen[-2:] == [(9, 1, 2 * 3 * layers)] * 2  # two groups of nine queries, two objects three times


def test_the_loss_does_not_grow_with_groups_and_repeats() -> None:
    """With every query twice and every object twice, in two equal groups, all terms are those of one-to-one."""
    torch.manual_seed(0)
    logits, boxes = torch.randn(1, 6, 7), 0.1 + 0.5 * torch.rand(1, 6, 4)
    targets, totals = batch().targets, Totals(1, 2)
    criterion = SetCriterion(CriterionConfig(), Focal())
    layers = tuple(Prediction(logits + shift, boxes) for shift in (0.0, 0.5))
    alone = criterion(Predictions(layers, None), targets, totals)
    copies = tuple(Prediction(*(each.repeat_interleave(4, dim=1) for each in layer)) for layer in layers)
    many = Groups(OneToMany(groups=2, queries=12, repeats=2, weight=0.5)).losses(criterion, copies, targets, totals)
    torch.testing.assert_close(many.total, 0.5 * alone.total)
    assert {name.replace("_one_to_many", "") for name in many.terms} == set(alone.terms)
    for name, value in many.terms.items():
        torch.testing.assert_close(value, alone.terms[name.replace("_one_to_many", "")])


def test_who_attends_to_whom() -> None:
    def made(count: int) -> Queries:
        return Queries(torch.rand(1, count, 4), torch.rand(1, count, 4), torch.rand(1, count, 2))

    first = torch.tensor([[True, False], [True, True]])
    mask = with_groups(replace(made(2), attention_mask=first), made(4), 2).attention_mask
    assert mask is not None
    assert torch.equal(mask[:2, :2], first)
    assert not mask[:2, 2:].any() and not mask[2:, :2].any()
    assert mask[2:, 2:].int().tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]


def test_further_proposals_are_the_next_best() -> None:
    trained = objective("deformable-detr-tiny", CriterionConfig(assignment=MANY)).eval()
    with torch.no_grad():
        detector, data = trained.detector, batch()
        memory = detector.encoder(detector.neck(detector.backbone(data.images), data.padding))
        own, further, _ = trained.queries(memory)
        alone, _ = detector.queries(memory)
        every, _ = detector.queries(memory, further=18)
    assert torch.equal(own.reference, alone.reference) and further.reference.shape[1] == 18
    assert torch.equal(torch.cat([own.reference, further.reference], 1), every.reference)


@pytest.mark.parametrize("name", ["deformable-detr-tiny", "sparse-rcnn-tiny", "efficient-detr-tiny"])
def test_look_forward_twice_changes_gradients_only(name: str) -> None:
    once, twice = (objective(name, CriterionConfig(look_forward=each)) for each in ("once", "twice"))
    first, second = once(batch(), Totals(1, 2)), twice(batch(), Totals(1, 2))
    torch.testing.assert_close(first.total, second.total)
    first.total.backward()
    second.total.backward()
    changed = {
        key
        for (key, a), (_, b) in zip(once.named_parameters(), twice.named_parameters(), strict=True)
        if a.grad is not None and not torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-7)
    }
    assert any(".box." in key for key in changed)
    if name != "efficient-detr-tiny":  # which has one head
        assert not any("heads.2" in key for key in changed)


@pytest.mark.parametrize("name", ["deformable-detr-tiny", "sparse-rcnn-tiny", "dab-deformable-detr-tiny"])
def test_the_loss_of_a_layer_trains_the_refinement_before_it_and_no_earlier_one(name: str) -> None:
    for look_forward in ("once", "twice"):
        detector = objective(name, CriterionConfig(look_forward=look_forward)).detector
        data = batch()
        memory = detector.encoder(detector.neck(detector.backbone(data.images), data.padding))
        layers, _ = detector.decoder(detector.queries(memory)[0], memory, look_forward)
        layers[2].boxes.sum().backward()
        trained = [any(p.grad is not None for p in head.box.parameters()) for head in detector.decoder.heads]
        assert trained == [False, look_forward == "twice", True]


@pytest.mark.parametrize(
    ("name", "criterion", "message"),
    [
        ("detr-tiny", CriterionConfig(look_forward="twice"), r"criterion\.look_forward 'twice' needs a detector that"),
        ("anchor-detr-tiny", CriterionConfig(assignment=OneToMany()), r"criterion\.assignment OneToMany needs"),
        ("faster-rcnn-tiny", CriterionConfig(assignment=OneToMany()), r"criterion\.assignment OneToMany needs"),
        (
            "conditional-detr-tiny",
            CriterionConfig(denoising=GroupDenoising()),
            r"criterion\.denoising needs a detector",
        ),
        ("faster-rcnn-tiny", CriterionConfig(auxiliary=False), r"box_coordinates and criterion\.auxiliary need a det"),
        ("faster-rcnn-tiny", CriterionConfig(box_coordinates="xyxy"), r"box_coordinates and criterion\.auxiliary need"),
        ("faster-rcnn-tiny", CriterionConfig(quality="varifocal"), r"criterion\.quality 'varifocal' needs a detector"),
    ],
)
def test_detectors_without_the_option(name: str, criterion: CriterionConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(replace(preset(name), criterion=criterion))
