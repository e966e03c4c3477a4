import itertools

import numpy as np
import pytest
import torch

from detrs.classification import Focal, class_logits
from detrs.criterion.matching import DENSE, Costs, assign, block, match, pairwise_cost

COSTS = Costs(class_logits(Focal(weight=2.0)), box_weight=5.0, giou_weight=2.0)


def test_class_cost_of_the_official_matcher() -> None:
    """p = 0.3, unit weight: 0.1234111067 in the authors' code."""
    logits = torch.logit(torch.full((1, 1, 2), 0.3))
    box = torch.tensor([0.5, 0.5, 0.2, 0.4])
    costs = Costs(class_logits(Focal(weight=1.0)), 0.0, 0.0)
    cost = pairwise_cost(logits, box.expand(1, 1, 4), torch.tensor([1]), box.expand(1, 4), costs)
    assert cost.item() == pytest.approx(0.1234111067, abs=1e-6)


def test_cost_is_the_weighted_sum_of_class_distance_and_overlap() -> None:
    boxes, target = torch.tensor([0.25, 0.5, 0.5, 1.0]), torch.tensor([0.5, 0.5, 1.0, 1.0])
    cost = pairwise_cost(torch.zeros(1, 1, 3), boxes.expand(1, 1, 4), torch.tensor([2]), target.expand(1, 4), COSTS)
    classes = 0.25 * 0.25 * -np.log(0.5) - 0.75 * 0.25 * -np.log(0.5)
    assert cost.item() == pytest.approx(2 * classes + 5 * (0.25 + 0.5) - 2 * 0.5, abs=1e-5)


@pytest.mark.parametrize(("queries", "objects"), [(5, 3), (3, 5), (4, 4), (4, 0)])
def test_assignment_is_the_cheapest_of_all(queries: int, objects: int) -> None:
    cost = torch.randn(3, 2, queries, objects, generator=torch.Generator().manual_seed(objects))
    (pairs,) = match([list(cost)])
    for layer in range(2):
        for image in range(3):
            block = cost[image, layer].numpy()
            matched = (pairs.layer == layer) & (pairs.image == image)
            assert matched.sum() == min(queries, objects)
            total = block[pairs.query[matched], pairs.target[matched]].sum()
            if objects <= queries:
                every = [
                    sum(block[q, t] for t, q in enumerate(p)) for p in itertools.permutations(range(queries), objects)
                ]
            else:
                every = [
                    sum(block[q, t] for q, t in enumerate(p)) for p in itertools.permutations(range(objects), queries)
                ]
            assert total == pytest.approx(min(every), abs=1e-5)


def test_several_groups_and_images_without_objects() -> None:
    generator = torch.Generator().manual_seed(0)
    decoder = [torch.randn(3, 7, n, generator=generator) for n in (0, 4)]
    proposals = [torch.randn(1, 13, n, generator=generator) for n in (0, 4)]
    first, second = match([decoder, proposals])
    assert first.image.unique().tolist() == [1]
    assert torch.bincount(first.layer).tolist() == [4, 4, 4]
    assert second.layer.unique().tolist() == [0]
    (alone,) = match([proposals])
    assert torch.equal(torch.stack(alone), torch.stack(second))


def test_costs_that_are_not_finite_do_not_stop_the_matching() -> None:
    cost = torch.tensor([[[torch.nan, 1.0], [0.0, torch.inf], [5.0, torch.nan]]])
    (pairs,) = match([[cost]])
    assert sorted(zip(pairs.query.tolist(), pairs.target.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_a_cost_of_minus_infinity_is_not_preferred() -> None:
    (pairs,) = match([[torch.tensor([[[-torch.inf, 3.0], [7.0, -torch.inf], [9.0, 9.0]]])]])
    assert sorted(zip(pairs.query.tolist(), pairs.target.tolist(), strict=True)) == [(0, 1), (1, 0)]


def dense(layers: int, objects: int, seed: int, num_queries: int = 2003) -> torch.Tensor:
    """Costs of many queries, of which the same few are the cheapest of all objects, as near a crowd."""
    cost = torch.rand(layers, num_queries, objects, generator=torch.Generator().manual_seed(seed))
    cost[:, 100 : 100 + 2 * objects] -= 1.0
    return cost


@pytest.mark.parametrize("objects", [0, 1, 2, 7, 44, 45])
def test_part_of_many_queries_gives_the_same_assignment(objects: int) -> None:
    """45 objects have more than 2003 pairs of object and candidate, so all queries are used."""
    costs = [dense(2, objects, seed) for seed in range(3)]
    (pairs,) = match([iter(costs)])
    for image, cost in enumerate(costs):
        part = block(cost)
        assert part.cost.shape == (2, objects**2 if objects < 45 else 2003, objects)
        for layer in range(2):
            query, target = assign(cost[layer].numpy(), None)
            mine = (pairs.image == image) & (pairs.layer == layer)
            found = zip(pairs.query[mine].tolist(), pairs.target[mine].tolist(), strict=True)
            assert sorted(found) == sorted(zip(query.tolist(), target.tolist(), strict=True))


def test_few_queries_are_all_used() -> None:
    cost = dense(1, 2, 0, num_queries=DENSE)
    assert block(cost).query is None and block(cost).cost is cost


def test_costs_that_are_not_finite_are_not_among_the_cheapest_of_many() -> None:
    cost = torch.rand(1, 2003, 2, generator=torch.Generator().manual_seed(0))
    cost[0, 100, 0] = cost[0, 200, 1] = -1.0  # each is the cheapest of one object only
    cost[0, 500:800] = torch.tensor([-torch.inf, torch.nan])
    cost[0, 800:900] = torch.tensor([torch.nan, -torch.inf])
    (pairs,) = match([[cost]])
    assert sorted(zip(pairs.query.tolist(), pairs.target.tolist(), strict=True)) == [(100, 0), (200, 1)]


def test_groups_with_and_without_all_queries() -> None:
    """The rows of one group are not those of another."""
    groups = [[torch.rand(3, 7, 2), torch.rand(3, 7, 4)], [dense(2, 2, 1), dense(2, 4, 2)], [dense(1, 3, 3)]]
    together = match(groups)
    for group, pairs in zip(groups, together, strict=True):
        assert torch.equal(torch.stack(match([group])[0]), torch.stack(pairs))
