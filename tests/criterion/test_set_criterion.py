import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from detrs.criterion import set_criterion
from detrs.criterion.losses import box_losses, focal_loss
from detrs.criterion.matching import pairwise_cost
from detrs.criterion.set_criterion import CriterionConfig, SetCriterion
from detrs.structures import Prediction, Predictions, Target

CLASSES, QUERIES = 5, 11


def predictions(seed: int = 0, images: int = 3, layers: int = 2, proposals: bool = False) -> Predictions:
    generator = torch.Generator().manual_seed(seed)

    def one(queries: int) -> Prediction:
        logits = torch.randn(images, queries, CLASSES, generator=generator)
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


def test_total_is_the_weighted_sum_of_all_terms() -> None:
    config = CriterionConfig(class_weight=1.5, box_weight=3.0, giou_weight=0.7)
    losses = SetCriterion(config)(predictions(proposals=True), (target(1, 2), target(), target(4)), 3.0)
    weights = {"class": 1.5, "box": 3.0, "giou": 0.7}
    expected = sum(weights[name.split("_")[0]] * term.item() for name, term in losses.terms.items())
    assert losses.total.item() == pytest.approx(expected, rel=1e-5)
    assert set(losses.terms) == {f"{name}{suffix}" for name in weights for suffix in ("", "_0", "_proposals")}


def test_order_of_targets_does_not_matter() -> None:
    here = target(0, 1, 2, 3)
    there = here._replace(boxes=here.boxes.flip(0), labels=here.labels.flip(0))
    criterion = SetCriterion(CriterionConfig())
    one = criterion(predictions(images=1), (here,), 4.0).total
    torch.testing.assert_close(criterion(predictions(images=1), (there,), 4.0).total, one)


def test_order_of_queries_does_not_matter() -> None:
    made = predictions(images=2)
    shuffled = Predictions(tuple(Prediction(p.logits.flip(1), p.boxes.flip(1)) for p in made.layers), None)
    criterion, targets = SetCriterion(CriterionConfig()), (target(1, 3), target(2, seed=5))
    torch.testing.assert_close(criterion(made, targets, 3.0).total, criterion(shuffled, targets, 3.0).total)


def test_images_without_objects_push_all_scores_down() -> None:
    made = predictions(images=2)
    losses = SetCriterion(CriterionConfig())(made, (target(), target()), 1.0)
    losses.total.backward()
    assert losses.terms["box"] == losses.terms["giou"] == 0
    assert all((layer.logits.grad > 0).all() for layer in made.layers)
    expected = focal_loss(made.last.logits[None], torch.zeros(1, 2, QUERIES, CLASSES), 0.25, 2.0)
    torch.testing.assert_close(losses.terms["class"], expected[0].detach())


def test_proposals_are_taught_any_object_as_class_zero() -> None:
    made = predictions(images=1, proposals=True)
    SetCriterion(CriterionConfig())(made, (target(3, 4),), 2.0).total.backward()
    assert made.proposals is not None
    pulled_up = (made.proposals.logits.grad[0] < 0).nonzero()
    assert len(pulled_up) == 2
    assert pulled_up[:, 1].tolist() == [0, 0]
    assert sorted((made.last.logits.grad[0] < 0).nonzero()[:, 1].tolist()) == [3, 4]


def test_only_matched_boxes_get_gradients() -> None:
    made = predictions(images=1, layers=1)
    SetCriterion(CriterionConfig())(made, (target(0, 2, 4),), 3.0).total.backward()
    assert (made.last.boxes.grad[0].abs().sum(-1) > 0).sum() == 3


def test_without_auxiliary_losses_only_the_last_layer_learns() -> None:
    made = predictions(images=1, layers=3)
    SetCriterion(CriterionConfig(auxiliary=False))(made, (target(1),), 1.0).total.backward()
    assert [layer.logits.grad is not None for layer in made.layers] == [False, False, True]


def test_an_image_is_scored_alike_whatever_its_neighbours_have() -> None:
    made = predictions(images=2)
    alone = Predictions(tuple(Prediction(p.logits[:1], p.boxes[:1]) for p in made.layers), None)
    rest = Predictions(tuple(Prediction(p.logits[1:], p.boxes[1:]) for p in made.layers), None)
    criterion = SetCriterion(CriterionConfig())
    few, many = target(1), target(0, 1, 2, 3, 4, 0, seed=3)
    together = criterion(made, (few, many), 7.0).total
    torch.testing.assert_close(together, criterion(alone, (few,), 7.0).total + criterion(rest, (many,), 7.0).total)


def test_half_precision_predictions_are_scored_in_float32() -> None:
    made = predictions(images=1)
    half = Predictions(tuple(Prediction(p.logits.bfloat16(), p.boxes.bfloat16()) for p in made.layers), None)
    assert SetCriterion(CriterionConfig())(half, (target(1, 2),), 2.0).total.dtype == torch.float32


def test_the_number_of_boxes_divides_also_below_one() -> None:
    """Two processes and one object make 0.5; the average of their gradients then divides by one."""
    criterion, made = SetCriterion(CriterionConfig()), predictions(images=1)
    half, whole = (criterion(made, (target(1),), number).total for number in (0.5, 1.0))
    torch.testing.assert_close(half, 2 * whole)
    for number in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="num_boxes"):
            criterion(made, (target(1),), number)


def test_memory_of_the_matching_is_that_of_each_image_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def seen(logits, boxes, labels, target_boxes, costs):  # type: ignore[no-untyped-def]
        sizes.append((len(logits), logits.shape[1], len(labels)))
        return pairwise_cost(logits, boxes, labels, target_boxes, costs)

    monkeypatch.setattr(set_criterion, "pairwise_cost", seen)
    SetCriterion(CriterionConfig())(predictions(proposals=True), (target(1), target(), target(2, 3, 4)), 4.0)
    assert sizes == [(2, QUERIES, 1), (2, QUERIES, 0), (2, QUERIES, 3), (1, 23, 1), (1, 23, 0), (1, 23, 3)]
