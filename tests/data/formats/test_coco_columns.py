"""Annotations that are checked together are stored as those that are checked one by one, with the same findings."""

import random
from typing import Any

import pytest

from detrs.data.findings import Findings
from detrs.data.formats import coco_columns
from detrs.data.formats.coco_columns import CocoColumns, regular_values

UNUSUAL: tuple[Any, ...] = (
    *({"id": None}, {"id": 1.0}, {"id": "a"}, {"id": True}, {"id": 2**63}, {"id": -(2**63)}, {"id": -(2**63) + 1}),
    *({"image_id": None}, {"image_id": 3.0}, {"image_id": 3.5}, {"image_id": 10**30}, {"image_id": True}),
    *({"category_id": "7"}, {"category_id": 7.0}, {"category_id": 2**70}),
    *({"bbox": None}, {"bbox": [1, 2, 3]}, {"bbox": [1, 2, 3, 4, 5]}, {"bbox": "1234"}, {"bbox": [1, 2, True, 4]}),
    *({"bbox": [1, 2, 3, -0.5]}, {"bbox": [1, 2, 3, 10**400]}, {"bbox": [float("nan"), 0, 1, 1]}),
    *({"bbox": [1e9, 0, 1, 1]}, {"bbox": [0, 0, 999999999, 1]}, {"bbox": [0, 0, 0, 0]}, {"bbox": (1, 2, 3, 4)}),
    *({"area": None}, {"area": 0}, {"area": -3.5}, {"area": True}, {"area": "5"}, {"area": 10**18 - 1}, {"area": 1e18}),
    *({"area": float("nan")}, {"area": float("inf")}, {"area": 10**400}, {"area": 2**53 + 1}),
    *({"iscrowd": 1}, {"iscrowd": True}, {"iscrowd": 2}, {"iscrowd": [1]}, {"iscrowd": 1.0}, {"iscrowd": None}),
    *({"ignore": 1}, {"ignore": "no"}, {"ignore": 1, "iscrowd": 1}, {"ignore": 0.0}),
    *({"rotation": 0.0}, {"rotation": 30}, {"rotation": [1]}, {"rotation": "left"}, {"rotation": 360}),
    *({"attributes": {"rotation": 5}}, {"attributes": {"rotation": 180.0}}, {"attributes": [1]}, {"attributes": {}}),
    *(None, 5, "text", [1]),
)


def entries(numbers: random.Random, count: int, share: float) -> list[Any]:
    made: list[Any] = []
    for id_ in range(count):
        box = [numbers.randint(0, 9), numbers.uniform(0, 9), numbers.uniform(0, 9), numbers.randint(0, 9)]
        entry = {"id": id_, "image_id": id_ // 3, "category_id": numbers.randint(1, 5), "bbox": box, "area": 7.5}
        change = numbers.choice(UNUSUAL) if numbers.random() < share else {}
        made.append({**entry, **change} if isinstance(change, dict) else change)
        for key in list(entry) if numbers.random() < share / 4 else ():
            if isinstance(made[-1], dict) and numbers.random() < 0.5:
                made[-1].pop(key)
    return made


def stored(columns: CocoColumns) -> Any:
    ids = [[*column] for column in (columns.image_id, columns.category_id)]
    values = [each.tolist() for each in (columns.id, columns.number, columns.boxes, columns.area, columns.kind)]
    return columns.num_items, ids, repr(values)


@pytest.mark.parametrize("share", [0.0, 0.003, 0.3, 1.0])
def test_together_is_as_one_by_one(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    numbers = random.Random(5)
    parts = [entries(numbers, numbers.randrange(1, 400), share) for _ in range(8)]
    together_errors, single_errors = Findings(), Findings()
    together, single = CocoColumns(together_errors), CocoColumns(single_errors)
    for part in parts:
        together.extend(part)
    monkeypatch.setattr(coco_columns, "regular_values", lambda entries: None)
    for part in parts:
        single.extend(part)
    assert stored(together) == stored(single)
    assert len(together) > (0 if share == 1 else 500)
    assert together_errors.lines() == single_errors.lines()


@pytest.mark.parametrize("change", UNUSUAL)
def test_each_unusual_value(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    part = entries(random.Random(1), 3, 0)
    part[1] = {**part[1], **change} if isinstance(change, dict) else change
    errors = Findings(), Findings()
    together, single = map(CocoColumns, errors)
    together.extend(part)
    monkeypatch.setattr(coco_columns, "regular_values", lambda entries: None)
    single.extend(part)
    assert stored(together) == stored(single)
    assert errors[0].lines() == errors[1].lines()


def test_usual_annotations_are_checked_together() -> None:
    values = regular_values(entries(random.Random(2), 50, 0))
    assert values is not None
    assert values.boxes.shape == (50, 4)
    assert (values.areas == 7.5).all()
