from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from torchvision.ops import sigmoid_focal_loss

from detrs.classification import Classification, Focal, Softmax, class_logits
from detrs.criterion import set_criterion
from detrs.criterion.losses import box_losses
from detrs.criterion.matching import pairwise_cost
from detrs.criterion.set_criterion import CriterionConfig, ProposalLabels, SetCriterion
from detrs.structures import Prediction, Predictions, Target, Totals

CLASSES, QUERIES = 5, 11
EITHER = pytest.mark.parametrize("classification", [Focal(), Softmax()], ids=["focal", "softmax"])


def predictions(
    seed: int = 0,
    images: int = 3,
    layers: int = 2,
    proposals: bool = False,
    classification: Classification = Focal(),  # noqa: B008 (frozen)
) -> Predictions:
    generator = torch.Generator().manual_seed(seed)

    def one(queries: int) -> Prediction:
        logits = torch.randn(images, queries, class_logits(classification).num_logits(CLASSES), generator=generator)
        boxes = torch.rand(images, queries, 4, generator=generator) * 0.4 + 0.2
        return Prediction(logits.requires_grad_(), boxes.requires_grad_())

    return Predictions(tuple(one(QUERIES) for _ in range(layers)), one(23) if proposals else None)


def target(*labels: int, seed: int = 0) -> Target:
    boxes = torch.rand(len(labels), 4, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.2
    return Target(boxes, torch.tensor(labels, dtype=torch.long), seed, (97, 131))


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_focal_loss_agrees_with_torchvision(gamma: float) -> None:
    logits = (10 * torch.randn(2, 3, 7, CLASSES, dtype=torch.float64)).requires_grad_()
    matched, labels = torch.tensor([[0, 0, 1, 1], [0, 2, 1, 2], [3, 6, 0, 3]]), torch.tensor([0, 1, 2, 2])
    onehot = torch.zeros_like(logits)
    onehot[(*matched, labels)] = 1.0
    expected = sigmoid_focal_loss(logits, onehot, alpha=0.25, gamma=gamma).sum((1, 2, 3))
    loss = class_logits(Focal(alpha=0.25, gamma=gamma)).loss(logits, tuple(matched), labels)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss @ loss.new_tensor([1.0, 3.0]), logits)
    (expected_gradient,) = torch.autograd.grad(expected @ loss.new_tensor([1.0, 3.0]), logits)
    torch.testing.assert_close(gradient, expected_gradient)


def test_box_losses_of_equal_boxes_are_zero() -> None:
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.1]])
    distance, overlap = box_losses(boxes, boxes)
    torch.testing.assert_close(torch.stack([distance, overlap]), torch.zeros(2, 1), atol=1e-6, rtol=0)


@EITHER
def test_total_is_the_weighted_sum_of_all_terms(classification: Classification) -> None:
    config, targets = CriterionConfig(box_weight=3.0, giou_weight=0.7), (target(1, 2), target(4))
    classification, focal = replace(classification, weight=1.5), isinstance(classification, Focal)
    made = predictions(images=2, proposals=focal, classification=classification)
    losses = SetCriterion(config, classification)(made, targets, Totals.of(targets))
    weights = {"class": 1.5, "box": 3.0, "giou": 0.7}
    expected = sum(weights[name.split("_")[0]] * term.item() for name, term in losses.terms.items())
    assert losses.total.item() == pytest.approx(expected, rel=1e-5)
    suffixes = ("", "_0", "_proposals") if focal else ("", "_0")
    assert set(losses.terms) == {f"{name}{suffix}" for name in weights for suffix in suffixes}


@EITHER
def test_order_of_targets_does_not_matter(classification: Classification) -> None:
    here, made = target(0, 1, 2, 3), predictions(images=1, classification=classification)
    there = here._replace(boxes=here.boxes.flip(0), labels=here.labels.flip(0))
    criterion = SetCriterion(CriterionConfig(), classification)
    one, other = (criterion(made, (t,), Totals.of((t,))).total for t in (here, there))
    torch.testing.assert_close(one, other)


@EITHER
def test_order_of_queries_does_not_matter(classification: Classification) -> None:
    made, targets = predictions(images=2, classification=classification), (target(1, 3), target(2, seed=5))
    shuffled = Predictions(tuple(Prediction(p.logits.flip(1), p.boxes.flip(1)) for p in made.layers), None)
    criterion = SetCriterion(CriterionConfig(), classification)
    one, other = (criterion(p, targets, Totals.of(targets)).total for p in (made, shuffled))
    torch.testing.assert_close(one, other)


def test_images_without_objects_lower_all_scores() -> None:
    made, targets = predictions(images=2), (target(), target())
    losses = SetCriterion(CriterionConfig(), Focal())(made, targets, Totals.of(targets))
    losses.total.backward()
    assert losses.terms["box"] == losses.terms["giou"] == 0
    assert all((layer.logits.grad > 0).all() for layer in made.layers)
    logits = made.last.logits.detach()
    expected = sigmoid_focal_loss(logits, torch.zeros_like(logits), 0.25, 2.0).sum()
    torch.testing.assert_close(losses.terms["class"], expected)


def test_images_without_objects_raise_no_object() -> None:
    made, targets = predictions(images=2, classification=Softmax()), (target(), target())
    losses = SetCriterion(CriterionConfig(), Softmax())(made, targets, Totals.of(targets))
    losses.total.backward()
    assert losses.terms["box"] == losses.terms["giou"] == 0
    assert all((layer.logits.grad[..., :-1] > 0).all() for layer in made.layers)
    assert all((layer.logits.grad[..., -1] < 0).all() for layer in made.layers)
    no_object = torch.full((2 * QUERIES,), CLASSES)
    expected = cross_entropy(made.last.logits.flatten(0, 1), no_object)
    torch.testing.assert_close(losses.terms["class"], expected.detach())


@pytest.mark.parametrize(("labels", "expected"), [("objectness", [0, 0]), ("classes", [3, 4])])
def test_proposals_are_trained_with_any_object_as_class_zero_or_with_classes(
    labels: ProposalLabels, expected: list[int]
) -> None:
    made, targets = predictions(images=1, proposals=True), (target(3, 4),)
    SetCriterion(CriterionConfig(), Focal(), labels)(made, targets, Totals.of(targets)).total.backward()
    assert made.proposals is not None
    raised = (made.proposals.logits.grad[0] < 0).nonzero()  # the logits that a step raises
    assert len(raised) == 2
    assert sorted(raised[:, 1].tolist()) == expected
    assert sorted((made.last.logits.grad[0] < 0).nonzero()[:, 1].tolist()) == [3, 4]


@EITHER
def test_only_matched_boxes_get_gradients(classification: Classification) -> None:
    made, targets = predictions(images=1, layers=1, classification=classification), (target(0, 2, 4),)
    SetCriterion(CriterionConfig(), classification)(made, targets, Totals.of(targets)).total.backward()
    assert (made.last.boxes.grad[0].abs().sum(-1) > 0).sum() == 3


def test_without_auxiliary_losses_only_the_last_layer_has_gradients() -> None:
    made, targets = predictions(images=1, layers=3), (target(1),)
    SetCriterion(CriterionConfig(auxiliary=False), Focal())(made, targets, Totals.of(targets)).total.backward()
    assert [layer.logits.grad is not None for layer in made.layers] == [False, False, True]


@EITHER
def test_a_batch_can_be_divided_among_micro_batches_and_processes(classification: Classification) -> None:
    """Sums of micro-batches, and means over processes, are the loss of the whole batch."""
    made = predictions(images=3, classification=classification)
    targets = target(1), target(0, 1, 2, 3, 4, 0, seed=3), target()
    parts = [
        Predictions(tuple(Prediction(p.logits[i : i + 1], p.boxes[i : i + 1]) for p in made.layers), None)
        for i in range(3)
    ]
    criterion, totals = SetCriterion(CriterionConfig(), classification), Totals.of(targets)
    assert totals == (3, 7, 1)
    together = criterion(made, targets, totals)
    alone = [criterion(part, (target,), totals) for part, target in zip(parts, targets, strict=True)]
    averaged = [
        criterion(part, (target,), totals._replace(processes=3)) for part, target in zip(parts, targets, strict=True)
    ]
    torch.testing.assert_close(together.total, torch.stack([losses.total for losses in alone]).sum())
    torch.testing.assert_close(together.total, torch.stack([losses.total for losses in averaged]).mean())
    for name, term in together.terms.items():
        torch.testing.assert_close(term, torch.stack([losses.terms[name] for losses in alone]).sum())


@EITHER
def test_half_precision_predictions_are_scored_in_float32(classification: Classification) -> None:
    made, targets = predictions(images=1, classification=classification), (target(1, 2),)
    half = Predictions(tuple(Prediction(p.logits.bfloat16(), p.boxes.bfloat16()) for p in made.layers), None)
    losses = SetCriterion(CriterionConfig(), classification)(half, targets, Totals.of(targets))
    assert losses.total.dtype == torch.float32


@pytest.mark.parametrize("totals", [Totals(0, 1), Totals(1, 0), Totals(1, 1, 0)])
def test_totals_below_the_counts_of_the_targets_are_refused(totals: Totals) -> None:
    with pytest.raises(ValueError, match="Expected totals of at least"):
        SetCriterion(CriterionConfig(), Focal())(predictions(images=1), (target(1),), totals)


def test_cost_matrices_contain_the_objects_of_one_image_only(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def recorded(logits, boxes, labels, target_boxes, costs):  # type: ignore[no-untyped-def]
        sizes.append((len(logits), logits.shape[1], len(labels)))
        return pairwise_cost(logits, boxes, labels, target_boxes, costs)

    monkeypatch.setattr(set_criterion, "pairwise_cost", recorded)
    targets = (target(1), target(), target(2, 3, 4))
    SetCriterion(CriterionConfig(), Focal())(predictions(proposals=True), targets, Totals.of(targets))
    assert sizes == [(2, QUERIES, 1), (2, QUERIES, 0), (2, QUERIES, 3), (1, 23, 1), (1, 23, 0), (1, 23, 3)]


@EITHER
def test_weight_of_the_class_term_is_that_of_the_classification(classification: Classification) -> None:
    """The papers' weights are the defaults: 2 for focal, 1 for softmax."""
    made, targets = predictions(images=1, classification=classification), (target(1),)
    weight = {Focal: 2.0, Softmax: 1.0}[type(classification)]
    default, explicit, other = (
        SetCriterion(CriterionConfig(), given)(made, targets, Totals.of(targets)).total
        for given in (
            classification, replace(classification, weight=weight), replace(classification, weight=3 * weight)
        )
    )  # fmt: skip
    assert default == explicit != other
