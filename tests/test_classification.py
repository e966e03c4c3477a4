import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detrs.classification import Focal, FocalLogits, Softmax, SoftmaxLogits, class_logits

CLASSES, QUERIES = 5, 11


def test_softmax_loss_is_the_weighted_mean_of_cross_entropy() -> None:
    """PyTorch divides by the sum of the weights of all targets, which the normalizer computes from counts only."""
    torch.manual_seed(0)
    logits = torch.randn(2, 3, QUERIES, CLASSES + 1)
    layer, image, query = (
        torch.tensor([0, 0, 0, 1, 1, 1]),
        torch.tensor([0, 0, 2] * 2),
        torch.tensor([3, 7, 1, 0, 2, 9]),
    )
    labels = torch.tensor([4, 0, 2, 4, 0, 2])
    softmax = SoftmaxLogits(Softmax(no_object_weight=0.3))
    found = softmax.loss(logits, (layer, image, query), labels) / softmax.normalizer(3, 3 * QUERIES)
    weight = torch.tensor([1.0] * CLASSES + [0.3])
    for k in range(2):
        target = torch.full((3, QUERIES), CLASSES)
        target[image[layer == k], query[layer == k]] = labels[layer == k]
        torch.testing.assert_close(found[k], F.cross_entropy(logits[k].flatten(0, 1), target.flatten(), weight))


def test_softmax_cost_is_minus_the_probability() -> None:
    logits = torch.randn(2, QUERIES, CLASSES + 1)
    cost = SoftmaxLogits(Softmax()).cost(logits, torch.tensor([4, 1]))
    torch.testing.assert_close(cost, -torch.stack([logits.softmax(-1)[..., 4], logits.softmax(-1)[..., 1]], dim=-1))


def test_softmax_returns_each_query_once_with_its_best_class_other_than_no_object() -> None:
    probabilities = torch.tensor([[[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.25, 0.5, 0.25]]])
    softmax = SoftmaxLogits(Softmax())
    best = softmax.best(probabilities.log(), 2)
    assert best.queries.tolist() == [[1, 2]] and best.labels.tolist() == [[0, 1]]
    torch.testing.assert_close(best.scores, torch.tensor([[0.6, 0.5]]))
    assert softmax.best(probabilities.log(), 100).labels.tolist() == [[0, 1, 1]]


def test_focal_ranks_pairs_of_query_and_class() -> None:
    best = FocalLogits(Focal()).best(torch.tensor([[[3.0, 2.0], [1.0, -1.0]]]), 3)
    assert best.queries.tolist() == [[0, 0, 1]] and best.labels.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("classification", "objects", "expected"),
    [(Focal(), 0, 1), (Focal(), 7, 7), (Softmax(no_object_weight=0.1), 0, 3.3)],
)
def test_normalizers(classification: Focal | Softmax, objects: int, expected: float) -> None:
    assert class_logits(classification).normalizer(objects, 33) == pytest.approx(expected)


def test_size_and_initialization_of_the_class_head() -> None:
    focal, softmax = class_logits(Focal(gamma=1.0)), class_logits(Softmax(no_object_weight=0.2))
    assert (focal.num_logits(5), softmax.num_logits(5)) == (5, 6)
    linear = nn.Linear(3, 5)
    before = linear.bias.clone()
    softmax.initialize(linear)
    assert torch.equal(linear.bias, before)
    focal.initialize(linear)
    torch.testing.assert_close(linear.bias.sigmoid(), torch.full((5,), 0.01))


def test_default_weights_are_those_of_the_papers() -> None:
    assert (Focal().weight, Focal().alpha, Focal().gamma) == (2.0, 0.25, 2.0)
    assert (Softmax().weight, Softmax().no_object_weight) == (1.0, 0.1)
