from collections.abc import Callable

import pytest
import torch

from detrs.structures import Classes, Detections, Pyramid, Queries

CLASSES = Classes(("ape", "bee", "cat"), (7, 3, 90))


def found() -> Detections:
    return Detections(
        boxes_xyxy=torch.tensor([[1.0, 2.0, 31.5, 42.25], [5.125, 6.0, 7.0, 9.0]]),
        scores=torch.tensor([0.9, 0.25]),
        labels=torch.tensor([2, 0]),
        classes=CLASSES,
        image_size=(97, 131),
        source="a.jpg",
    )


def test_filter_keeps_scores_of_at_least_the_threshold() -> None:
    assert len(found().filter(0.25)) == 2
    assert found().filter(0.2500001).names == ["cat"]
    assert len(found().filter(1.0)) == 0


def test_coco_results_have_the_category_ids_of_the_data_set_and_full_precision() -> None:
    first, second = found().to_coco(image_id=12)
    assert first == {"image_id": 12, "category_id": 90, "bbox": [1.0, 2.0, 30.5, 40.25], "score": first["score"]}
    assert first["score"] == torch.tensor(0.9).item()
    assert second["category_id"] == 7


def test_json_has_names_and_category_ids() -> None:
    assert found().to_json() == {
        "source": "a.jpg",
        "image_size": [97, 131],
        "detections": [
            {"box_xyxy": [1.0, 2.0, 31.5, 42.25], "score": 0.9, "name": "cat", "category_id": 90},
            {"box_xyxy": [5.12, 6.0, 7.0, 9.0], "score": 0.25, "name": "ape", "category_id": 7},
        ],
    }


def pyramid() -> Pyramid:
    """Two images; levels of 5 x 7, 3 x 4 and 2 x 1 cells."""
    tokens, position, reference_points = torch.randn(2, 49, 6), torch.randn(2, 49, 6), torch.rand(2, 49, 2)
    padding = torch.zeros(2, 49, dtype=torch.bool)
    shapes, ratio = ((5, 7), (3, 4), (2, 1)), torch.ones(2, 3, 2)
    return Pyramid(tokens, position, reference_points, padding, shapes, ratio, torch.tensor([[40, 53], [33, 50]]))


def test_with_maps_is_the_inverse_of_maps() -> None:
    before = pyramid()
    assert [level.shape for level in before.maps()] == [(2, 6, 5, 7), (2, 6, 3, 4), (2, 6, 2, 1)]
    after = before.with_maps([2 * level for level in before.maps()])
    assert torch.equal(after.tokens, 2 * before.tokens)
    assert (after.position is before.position) and (after.image_sizes is before.image_sizes)
    other = [torch.randn_like(level) for level in before.maps()]
    assert all(torch.equal(a, b) for a, b in zip(before.with_maps(other).maps(), other, strict=True))


def test_maps_of_other_sizes_are_refused() -> None:
    with pytest.raises(AssertionError):
        pyramid().with_maps([level.transpose(2, 3) for level in pyramid().maps()])


def queries() -> Queries:
    return Queries(torch.randn(2, 3, 6), torch.randn(2, 3, 6), torch.rand(2, 3, 2), torch.ones(3, 3, dtype=torch.bool))


@pytest.mark.parametrize("make", [found, pyramid, queries])
def test_comparison_is_by_identity(make: Callable[[], object]) -> None:
    """The equality of tensors has no single truth value; comparing fields would raise."""
    one, other = make(), make()
    assert one == one and one != other and one in [other, one] and len({one, other}) == 2
