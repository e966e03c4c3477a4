"""COCO's class tables, and matching of class names."""

import pytest

from detrs.checkpoints.classes import COCO, coco_classes, is_unused, match
from detrs.errors import UserError


def test_rows_of_91_are_category_ids() -> None:
    classes = coco_classes(91)
    assert classes.category_ids == tuple(range(91))
    unused = [i for i, name in zip(classes.category_ids, classes.names, strict=True) if is_unused(name)]
    assert unused == [0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert (classes.names[1], classes.names[44], classes.names[90]) == ("person", "bottle", "toothbrush")
    assert len(set(classes.names)) == 91


def test_rows_of_90_have_no_id_0() -> None:
    full, classes = coco_classes(91), coco_classes(90)
    assert classes.names == full.names[1:] and classes.category_ids == full.category_ids[1:]


def test_80_rows_are_contiguous() -> None:
    classes = coco_classes(80)
    assert classes.names == tuple(COCO.values()) and classes.category_ids == tuple(COCO)
    assert len(set(classes.names)) == 80 and not any(map(is_unused, classes.names))
    assert list(classes.category_ids) == sorted(classes.category_ids)


@pytest.mark.parametrize("num_rows", (1, 79, 92))
def test_other_numbers_are_numbered(num_rows: int) -> None:
    classes = coco_classes(num_rows)
    assert classes.names == tuple(f"class {i}" for i in range(num_rows))
    assert classes.category_ids == tuple(range(num_rows))


def test_names_match_in_any_spelling_and_order() -> None:
    assert match(["traffic light", "Car", "dog"], ["DOG ", "bus", "traffic_light", "car"]) == [2, None, 0, 1]
    assert match(["traffic light"], ["Traffic-Light"]) == [0]
    assert match(["caf\u00e9"], ["cafe\u0301"]) == [0]  # composed and decomposed


def test_equal_names_come_first() -> None:
    assert match(["car", "Car"], ["Car", "car"]) == [1, 0]
    assert match(["car"], ["Car", "car"]) == [None, 0]


def test_unused_names_never_match() -> None:
    assert match(["N/A 12", "N/A", "cat"], ["N/A 12", "N/A", "cat"]) == [None, None, 2]


def test_ambiguous_names_are_rejected() -> None:
    with pytest.raises(UserError, match="'CAR' matches several classes: 'car' and 'Car'"):
        match(["car", "Car"], ["CAR"])
    with pytest.raises(UserError, match="'Car' and 'CAR' both match the class 'car'"):
        match(["car"], ["Car", "CAR"])
