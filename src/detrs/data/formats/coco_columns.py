"""Checks the annotations of a COCO file: many at once as columns, or one by one if some of them are unusual."""

from array import array
from itertools import chain
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from detrs.data.findings import Findings
from detrs.data.objects import (
    CROWD,
    IGNORED,
    MAX_COORDINATE,
    NO_ID,
    REGULAR,
    ROTATED,
    Columns,
    box_fault,
    integer,
    is_rotated,
)

MAX_SINGLE = 32
"""Annotations that are checked one by one if one of them is unusual."""
MAX_EXACT = 2.0**53
"""Areas below this are compared as floats, with the same result as integers."""

_FLAGS = frozenset({None, 0, 1})
_NUMBERS = frozenset({int, float})
_NUMBERS_OR_NONE = frozenset({int, float, type(None)})


class CocoColumns(Columns):
    """Receives the annotations of a file, and checks what a single annotation shows.

    Args:
        errors: Receives malformed annotations, which are not stored.
    """

    def __init__(self, errors: Findings) -> None:
        super().__init__()
        self.errors = errors

    def clear(self) -> None:
        super().clear()
        self.number = array("q")
        """Position in the file."""

    def place(self, row: SupportsIndex) -> str:
        return f"annotations[{self.number[row]}]" if self.id[row] == NO_ID else f"annotation {self.id[row]}"

    def extend(self, entries: list[Any], /) -> None:
        """Stores annotations, all at once if none of them is unusual."""
        try:
            values = regular_values(entries)
        except (AttributeError, OverflowError, TypeError):  # not objects, or values that are not numbers
            values = None
        if values is not None:
            self.number.extend(range(self.num_items, self.num_items + len(entries)))
            self.num_items += len(entries)
            self.id.extend(values.ids)
            self.add_many(values.image_ids, values.category_ids, values.boxes, values.areas, values.kinds)
        elif len(entries) > MAX_SINGLE:
            half = len(entries) // 2
            self.extend(entries[:half])
            self.extend(entries[half:])
        else:
            for entry in entries:
                self._append(entry)

    def _append(self, entry: Any) -> None:
        number = self.num_items
        self.num_items += 1
        if not isinstance(entry, dict):
            self.errors.add("annotation that is not an object", f"annotations[{number}]")
            return
        place = f"annotation {entry['id']!r:.40}" if "id" in entry else f"annotations[{number}]"
        id_, image_id, category_id = (integer(entry.get(key)) for key in ("id", "image_id", "category_id"))
        if id_ is None and entry.get("id") is not None:
            self.errors.add("annotation id that is not an integer", place)
        fault, value = annotation_fault(entry)
        if image_id is None:
            self.errors.add("image_id that is not an integer", f"{place}: {entry.get('image_id')!r:.40}")
        elif category_id is None:
            self.errors.add("unknown category_id", f"{place}: {entry.get('category_id')!r:.40}")
        elif fault:
            self.errors.add(fault, f"{place}: {value!r:.80}")
        else:
            area = entry.get("area")
            x, y, width, height = map(float, entry["bbox"])
            is_known = isinstance(area, int | float) and 0 < area < MAX_COORDINATE**2
            self.number.append(number)
            self.id.append(id_ if id_ is not None and NO_ID < id_ < 2**63 else NO_ID)
            self.add(
                image_id,
                category_id,
                (x, y, width, height),
                area=float(area) if is_known else None,  # type: ignore[arg-type]
                kind=CROWD if entry.get("iscrowd") else IGNORED if entry.get("ignore") else REGULAR,
            )


class Values(NamedTuple):
    """The values of N annotations."""

    ids: list[int]
    image_ids: list[int]
    category_ids: list[int]
    boxes: NDArray[Any]
    """(N, 4) float64."""
    areas: NDArray[Any]
    """(N,) float64."""
    kinds: NDArray[Any]
    """(N,) int8."""


def regular_values(entries: list[dict[str, Any]]) -> Values | None:
    """The values of annotations without faults; ``None`` if one of them may have a fault, or values of unusual types.

    Raises:
        AttributeError, OverflowError, TypeError: There are such annotations.
    """
    columns: tuple[list[Any], ...] = tuple(
        [entry.get(key) for entry in entries]
        for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "rotation", "attributes")
    )
    ids, image_ids, category_ids, bboxes, given_areas, crowd, ignored, rotations, attributes = columns
    nested = [each.get("rotation") for each in attributes if isinstance(each, dict)]
    numbers = list(chain.from_iterable(bboxes))
    if not (
        {*map(type, entries)} == {dict}
        and {*map(type, ids), *map(type, image_ids), *map(type, category_ids)} == {int}
        and {*map(type, bboxes)} == {list}
        and {*map(len, bboxes)} == {4}
        and {*map(type, numbers)} <= _NUMBERS
        and {*map(type, given_areas)} <= _NUMBERS_OR_NONE
        and {*crowd, *ignored} <= _FLAGS
        and not any(map(is_rotated, chain({*rotations}, {*nested})))
        and min(ids) > NO_ID
        and max(ids) < 2**63
    ):
        return None
    boxes = np.array(numbers, dtype=np.float64).reshape(-1, 4)
    areas = np.array(given_areas, dtype=np.float64)  # None becomes NaN
    if not ((np.abs(boxes) < MAX_COORDINATE).all() and boxes[:, 2:].min() >= 0) or (areas > MAX_EXACT).any():
        return None
    areas = np.where(areas > 0, areas, boxes[:, 2] * boxes[:, 3])
    is_crowd, is_ignored = (np.array([*map(bool, flags)]) for flags in (crowd, ignored))
    kinds = np.where(is_crowd, CROWD, np.where(is_ignored, IGNORED, REGULAR))
    return Values(ids, image_ids, category_ids, boxes, areas, kinds)


def annotation_fault(entry: dict[str, Any]) -> tuple[str, Any]:
    """The kind of fault of an annotation and the faulty value; the kind is an empty string if there is none."""
    bbox, attributes = entry.get("bbox"), entry.get("attributes")
    rotations = [entry.get("rotation"), attributes.get("rotation") if isinstance(attributes, dict) else None]
    for flag in ("iscrowd", "ignore"):
        if entry.get(flag) not in (None, 0, 1):
            return f"{flag} that is neither 0 nor 1", entry[flag]
    if bbox is None:
        return "annotation without bbox", None
    if isinstance(bbox, list) and len(bbox) == 5:
        return ROTATED.replace("rotated box", "box with five numbers", 1), bbox
    if any(map(is_rotated, rotations)):
        return ROTATED, next(filter(is_rotated, rotations))
    if not isinstance(bbox, list) or len(bbox) != 4 or not {*map(type, bbox)} <= {int, float}:
        return "bbox that is not [x, y, width, height]", bbox
    return box_fault(bbox), bbox
