import pytest
import torch
from torch.nn.functional import cross_entropy
from torchvision.ops import sigmoid_focal_loss

from detrs.classification import Kind, classification_of, focal_loss
from detrs.criterion import set_criterion
from detrs.criterion.losses import box_losses
from detrs.criterion.matching import pairwise_cost
from detrs.criterion.set_criterion import CriterionConfig, SetCriterion, Totals
from detrs.structures import Prediction, Predictions, Target

CLASSES, QUERIES = 5, 11
KINDS = pytest.mark.parametrize("kind", ["focal", "softmax"])


def predictions(
    seed: int = 0, images: int = 3, layers: int = 2, proposals: bool = False, kind: Kind = "focal"
) -> Predictions:
    generator = torch.Generator().manual_seed(seed)

    def one(queries: int) -> Prediction:
        logits = torch.randn(images, queries, classification_of(kind).num_logits(CLASSES), generator=generator)
        boxes = torch.rand(images, queries, 4, generator=generator) * 0.4 + 0.2
        return Prediction(logits.requires_grad_(), boxes.requires_grad_())

    return Predictions(tuple(one(QUERIES) for _ in range(layers)), one(23) if proposals else None)


def target(*labels: int, seed: int = 0) -> Target:
    boxes = torch.rand(len(labels), 4, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.2
    return Target(boxes, torch.tensor(labels, dtype=torch.long), seed, (97, 131))


def test_focal_loss_agrees_with_torchvision() -> None:
    logits = torch.randn(2, 3, 7, CLASSES, dtype=torch.float64)
    onehot = (torch.rand_like(logits) < 0.1).double()
    expected = sigmoid_focal_loss(logits, onehot, alpha=0.25, gamma=2.0).sum((1, 2, 3))
    torch.testing.assert_close(focal_loss(logits, onehot, 0.25, 2.0), expected)


def test_box_losses_of_equal_boxes_are_zero() -> None:
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.1]])
    distance, overlap = box_losses(boxes, boxes)
    torch.testing.assert_close(torch.stack([distance, overlap]), torch.zeros(2, 1), atol=1e-6, rtol=0)


@KINDS
def test_total_is_the_weighted_sum_of_all_terms(kind: Kind) -> None:
    config, targets = CriterionConfig(class_weight=1.5, box_weight=3.0, giou_weight=0.7), (target(1, 2), target(4))
    made = predictions(images=2, proposals=kind == "focal", kind=kind)
    losses = SetCriterion(config, kind)(made, targets, Totals.of(targets))
    weights = {"class": 1.5, "box": 3.0, "giou": 0.7}
    expected = sum(weights[name.split("_")[0]] * term.item() for name, term in losses.terms.items())
    assert losses.total.item() == pytest.approx(expected, rel=1e-5)
    suffixes = ("", "_0", "_proposals") if kind == "focal" else ("", "_0")
    assert set(losses.terms) == {f"{name}{suffix}" for name in weights for suffix in suffixes}


@KINDS
def test_order_of_targets_does_not_matter(kind: Kind) -> None:
    here, made = target(0, 1, 2, 3), predictions(images=1, kind=kind)
    there = here._replace(boxes=here.boxes.flip(0), labels=here.labels.flip(0))
    one, other = (SetCriterion(CriterionConfig(), kind)(made, (t,), Totals.of((t,))).total for t in (here, there))
    torch.testing.assert_close(one, other)


@KINDS
def test_order_of_queries_does_not_matter(kind: Kind) -> None:
    made, targets = predictions(images=2, kind=kind), (target(1, 3), target(2, seed=5))
    shuffled = Predictions(tuple(Prediction(p.logits.flip(1), p.boxes.flip(1)) for p in made.layers), None)
    criterion = SetCriterion(CriterionConfig(), kind)
    one, other = (criterion(p, targets, Totals.of(targets)).total for p in (made, shuffled))
    torch.testing.assert_close(one, other)


def test_images_without_objects_push_all_scores_down() -> None:
    made, targets = predictions(images=2), (target(), target())
    losses = SetCriterion(CriterionConfig(), "focal")(made, targets, Totals.of(targets))
    losses.total.backward()
    assert losses.terms["box"] == losses.terms["giou"] == 0
    assert all((layer.logits.grad > 0).all() for layer in made.layers)
    expected = focal_loss(made.last.logits[None], torch.zeros(1, 2, QUERIES, CLASSES), 0.25, 2.0)
    torch.testing.assert_close(losses.terms["class"], expected[0].detach())


def test_images_without_objects_pull_no_object_up() -> None:
    made, targets = predictions(images=2, kind="softmax"), (target(), target())
    losses = SetCriterion(CriterionConfig(), "softmax")(made, targets, Totals.of(targets))
    losses.total.backward()
    assert losses.terms["box"] == losses.terms["giou"] == 0
    assert all((layer.logits.grad[..., :-1] > 0).all() for layer in made.layers)
    assert all((layer.logits.grad[..., -1] < 0).all() for layer in made.layers)
    wanted = torch.full((2 * QUERIES,), CLASSES)
    torch.testing.assert_close(losses.terms["class"], cross_entropy(made.last.logits.flatten(0, 1), wanted).detach())


def test_proposals_are_taught_any_object_as_class_zero() -> None:
    made, targets = predictions(images=1, proposals=True), (target(3, 4),)
    SetCriterion(CriterionConfig(), "focal")(made, targets, Totals.of(targets)).total.backward()
    assert made.proposals is not None
    pulled_up = (made.proposals.logits.grad[0] < 0).nonzero()
    assert len(pulled_up) == 2
    assert pulled_up[:, 1].tolist() == [0, 0]
    assert sorted((made.last.logits.grad[0] < 0).nonzero()[:, 1].tolist()) == [3, 4]


@KINDS
def test_only_matched_boxes_get_gradients(kind: Kind) -> None:
    made, targets = predictions(images=1, layers=1, kind=kind), (target(0, 2, 4),)
    SetCriterion(CriterionConfig(), kind)(made, targets, Totals.of(targets)).total.backward()
    assert (made.last.boxes.grad[0].abs().sum(-1) > 0).sum() == 3


def test_without_auxiliary_losses_only_the_last_layer_learns() -> None:
    made, targets = predictions(images=1, layers=3), (target(1),)
    SetCriterion(CriterionConfig(auxiliary=False), "focal")(made, targets, Totals.of(targets)).total.backward()
    assert [layer.logits.grad is not None for layer in made.layers] == [False, False, True]


@KINDS
def test_a_batch_may_be_divided_among_micro_batches_and_processes(kind: Kind) -> None:
    """Sums of micro-batches, and means over processes, are the loss of the whole batch."""
    made, targets = predictions(images=3, kind=kind), (target(1), target(0, 1, 2, 3, 4, 0, seed=3), target())
    parts = [
        Predictions(tuple(Prediction(p.logits[i : i + 1], p.boxes[i : i + 1]) for p in made.layers), None)
        for i in range(3)
    ]
    criterion, totals = SetCriterion(CriterionConfig(), kind), Totals.of(targets)
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


@KINDS
def test_half_precision_predictions_are_scored_in_float32(kind: Kind) -> None:
    made, targets = predictions(images=1, kind=kind), (target(1, 2),)
    half = Predictions(tuple(Prediction(p.logits.bfloat16(), p.boxes.bfloat16()) for p in made.layers), None)
    assert SetCriterion(CriterionConfig(), kind)(half, targets, Totals.of(targets)).total.dtype == torch.float32


@pytest.mark.parametrize("totals", [Totals(0, 1), Totals(1, 0), Totals(1, 1, 0)])
def test_totals_of_something_else_are_refused(totals: Totals) -> None:
    with pytest.raises(ValueError, match="cannot be of a batch"):
        SetCriterion(CriterionConfig(), "focal")(predictions(images=1), (target(1),), totals)


def test_memory_of_the_matching_is_that_of_each_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def seen(logits, boxes, labels, target_boxes, costs):  # type: ignore[no-untyped-def]
        sizes.append((len(logits), logits.shape[1], len(labels)))
        return pairwise_cost(logits, boxes, labels, target_boxes, costs)

    monkeypatch.setattr(set_criterion, "pairwise_cost", seen)
    targets = (target(1), target(), target(2, 3, 4))
    SetCriterion(CriterionConfig(), "focal")(predictions(proposals=True), targets, Totals.of(targets))
    assert sizes == [(2, QUERIES, 1), (2, QUERIES, 0), (2, QUERIES, 3), (1, 23, 1), (1, 23, 0), (1, 23, 3)]


@pytest.mark.parametrize(("kind", "weight"), [("focal", 2.0), ("softmax", 1.0)])
def test_classes_weigh_what_they_do_in_the_papers_unless_said_otherwise(kind: Kind, weight: float) -> None:
    made, targets = predictions(images=1, kind=kind), (target(1),)
    silent, said, other = (
        SetCriterion(CriterionConfig(class_weight=given), kind)(made, targets, Totals.of(targets)).total
        for given in (0.0, weight, 3 * weight)
    )
    assert silent == said != other
