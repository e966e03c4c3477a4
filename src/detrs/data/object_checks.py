"""Checks of objects with their images: sizes, duplicates, conventions of the file."""

from array import array
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detrs.data.findings import Findings, add_items
from detrs.data.image_table import Images
from detrs.data.objects import CROWD, IGNORED, NO_ID, Columns, Objects

ROUNDING_TOLERANCE = 2.0
"""Pixels by which a box may exceed its image without a note."""
MIN_SIDE = 0.01
"""Minimum width and height in pixels of the part of a box inside its image; less may have no area in float32."""
MIN_BOXES = 5
"""Minimum number of boxes to detect corners instead of sizes."""
MAX_CROWDS = 0.1
"""Fraction of crowd regions without a note; COCO has 1 %."""

BLOCK = 2**16
"""Boxes that are checked at a time."""
HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""An odd number without a pattern: 2^64 divided by the golden ratio."""

UNKNOWN_IMAGE, SKIPPED_IMAGE = -2, -1


def check_objects(
    columns: Columns,
    images: Images,
    listed: Iterable[int | None],
    category_ids: tuple[int, ...],
    errors: Findings,
    notes: Findings,
) -> Objects:
    """Checks the objects of a file; those of unknown and of skipped images are dropped.

    Args:
        columns: All well-formed annotations.
        images: The usable images.
        listed: Ids of all images in the file, including those that are skipped.
        category_ids: Ids of the classes.
        errors: Receives faults that would make results wrong.
        notes: Receives faults of single objects that are skipped or repaired.
    """
    positions: dict[int | None, int] = dict.fromkeys(listed, SKIPPED_IMAGE)
    positions |= {id_: position for position, id_ in enumerate(images.ids.tolist())}
    labels = {id_: label for label, id_ in enumerate(category_ids)}
    image = columns.image_id.mapped(lambda id_: positions.get(id_, UNKNOWN_IMAGE))
    label = columns.category_id.mapped(lambda id_: labels.get(id_, -1))
    boxes = _values(columns.boxes).reshape(-1, 4)  # (N, 4)
    kind = _values(columns.kind)

    unknown = [f"{columns.place(row)}: {columns.image_id[row]}" for row in np.flatnonzero(image == UNKNOWN_IMAGE)]
    what = "annotation with unknown image_id, skipped"
    add_items(
        what, f"annotation (of {columns.num_items}) with unknown image_id", unknown, columns.num_items, errors, notes
    )
    rows = np.flatnonzero((label < 0) & (image != UNKNOWN_IMAGE))
    places = (f"{columns.place(row)}: {columns.category_id[row]}" for row in rows)
    errors.add_many("unknown category_id", len(rows), places)
    if columns.id:
        _check_ids(columns, boxes, errors)

    rows = np.flatnonzero((image >= 0) & (label >= 0))
    area = _values(columns.area)
    if len(rows) < len(image):
        image, label, boxes, kind, area = image[rows], label[rows], boxes[rows], kind[rows], area[rows]
    extents = images.sizes.astype(np.float64)[image]  # (N, 2) height, width
    if columns.normalized:
        boxes = boxes * np.tile(extents[:, ::-1], 2)
        area = area * extents.prod(1)
    check, exceeding = _Check(columns, rows, errors, notes), excess(boxes, extents) > ROUNDING_TOLERANCE
    trainable = check.usable(boxes, extents, kind == 0, exceeding)
    trainable = check.unique(image, label, boxes, trainable)
    check.conventions(boxes, extents, kind, exceeding)
    return Objects(images.ids, category_ids, image, label, boxes, area, kind != 0, trainable)


def _values(column: "array[Any]") -> NDArray[Any]:
    """(N,) the values of a column, which shares its memory."""
    return np.frombuffer(column, dtype=column.typecode) if len(column) else np.zeros(0, dtype=column.typecode)


def _check_ids(columns: Columns, boxes: NDArray[Any], errors: Findings) -> None:
    """Reports ids that several objects share. An annotation that occurs twice is a duplicate box."""
    ids = _values(columns.id)
    if len(ids) < 2 or (ids[1:] > ids[:-1]).all():
        return
    order = np.argsort(ids, kind="stable")
    first, second = order[:-1], order[1:]
    same = (ids[first] == ids[second]) & (ids[first] != NO_ID)
    first, second = first[same], second[same]
    other_image = np.array([columns.image_id[a] != columns.image_id[b] for a, b in zip(first, second, strict=True)])
    other_image = other_image.astype(bool)
    other_box = (boxes[first] != boxes[second]).any(1) & ~other_image
    for kind, rows in (("in several images", second[other_image]), ("with different boxes", second[other_box])):
        errors.add_many(f"duplicate annotation id {kind}", len(rows), map(columns.place, sorted(rows)))


class _Check:
    """Reports objects by their rows.

    Args:
        columns: All well-formed annotations.
        rows: The rows that are checked; masks are relative to these.
        errors: Receives errors.
        notes: Receives notes.
    """

    def __init__(self, columns: Columns, rows: NDArray[Any], errors: Findings, notes: Findings) -> None:
        self.columns, self.rows, self.errors, self.notes = columns, rows, errors, notes

    def note(self, kind: str, mask: NDArray[Any]) -> None:
        found = self.rows[mask]
        self.notes.add_many(kind, len(found), map(self.columns.place, found))

    def skip(self, kind: str, mask: NDArray[Any]) -> None:
        """Reports boxes that are ignored in training: a note if they are few, else an error."""
        places = [self.columns.place(row) for row in self.rows[mask]]
        kinds = f"box {kind}, ignored in training", f"box (of {len(self.rows)}) {kind}"
        add_items(*kinds, places, len(self.rows), self.errors, self.notes)

    def usable(
        self, boxes: NDArray[Any], extents: NDArray[Any], regular: NDArray[Any], exceeding: NDArray[Any]
    ) -> NDArray[Any]:
        """(N,) bool: whether a box can be trained on."""
        inside = _in_blocks(_side_inside, boxes, extents)
        empty = regular & (boxes[:, 2:] == 0).any(1)
        outside = regular & ~empty & (inside < MIN_SIDE)
        usable = regular & ~empty & ~outside
        self.skip("without area", empty)
        self.skip("outside its image", outside)
        self.note("box that exceeds its image, clipped in training", usable & exceeding)
        self.note("box less than one pixel wide or high", usable & (boxes[:, 2:] < 1).any(1))
        return usable

    def unique(
        self, image: NDArray[Any], label: NDArray[Any], boxes: NDArray[Any], trainable: NDArray[Any]
    ) -> NDArray[Any]:
        """``trainable`` without boxes that occur before in the file with the same class."""
        rows = _rows(trainable)
        repeated = np.zeros(len(image), dtype=bool)
        repeated[rows] = repeats((image[rows], *boxes[rows].T, label[rows]))
        self.note("duplicate box, ignored in training", repeated)
        rows = _rows(trainable & ~repeated)
        several = np.zeros(len(image), dtype=bool)
        several[rows] = repeats((image[rows], *boxes[rows].T))
        self.note("box with several classes", several)
        return trainable & ~repeated

    def conventions(
        self, boxes: NDArray[Any], extents: NDArray[Any], kind: NDArray[Any], exceeding: NDArray[Any]
    ) -> None:
        """Detects normalized boxes, corners instead of sizes, and masks exported as crowd regions."""
        regular = kind == 0
        large = regular & (boxes[:, 2:] > 0).all(1) & (extents > 2).all(1)
        if large.any() and not (large & (boxes > 1).any(1)).any():
            place = f"the first is {boxes[large][0].tolist()}"
            self.errors.add("file with all boxes in [0, 1] (expected pixels)", place)
        num_exceeding = int((exceeding & regular).sum())
        if num_exceeding >= MIN_BOXES and num_exceeding > regular.sum() / 2:
            hint = "they may be [x1, y1, x2, y2] instead of [x, y, width, height]"
            place = f"{num_exceeding} of {regular.sum()} boxes"
            self.errors.add(f"file with most boxes outside their images ({hint})", place)
        if (kind == CROWD).sum() > MAX_CROWDS * len(kind):
            self.note(
                f"crowd region (of {len(kind)} annotations), not a training target (some tools export masks with "
                'iscrowd 1: if these are single objects, export them with "iscrowd": 0)',
                kind == CROWD,
            )
        self.note(f"{self.columns.ignored}, not a target, handled as a crowd region", kind == IGNORED)


def excess(boxes: NDArray[Any], extents: NDArray[Any]) -> NDArray[Any]:
    """(N,) pixels by which [x, y, width, height] boxes exceed their images of (height, width)."""
    return _in_blocks(_excess, boxes, extents)


def _in_blocks(
    function: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]], boxes: NDArray[Any], extents: NDArray[Any]
) -> NDArray[Any]:
    """(N,) values of some boxes at a time, since intermediate results are larger than the boxes."""
    values = np.empty(len(boxes))
    for start in range(0, len(boxes), BLOCK):
        rows = slice(start, start + BLOCK)
        values[rows] = function(boxes[rows], extents[rows])
    return values


def _rows(mask: NDArray[Any]) -> Any:
    """An index of the rows where a mask is True, which selects without a copy if these are all rows."""
    return slice(None) if mask.all() else np.flatnonzero(mask)


def _side_inside(boxes: NDArray[Any], extents: NDArray[Any]) -> NDArray[Any]:
    """(N,) the shorter side of the part of each box that is inside its image, negative if there is none."""
    corners = boxes[:, :2] + boxes[:, 2:]
    inside: NDArray[Any] = (np.minimum(corners, extents[:, ::-1]) - np.maximum(boxes[:, :2], 0)).min(1)
    return inside


def _excess(boxes: NDArray[Any], extents: NDArray[Any]) -> NDArray[Any]:
    corners = boxes[:, :2] + boxes[:, 2:]
    exceeding: NDArray[Any] = np.maximum(-boxes[:, :2], corners - extents[:, ::-1]).max(1)
    return exceeding


def repeats(keys: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    """(N,) bool: whether the same keys occur earlier. Integers must be below 2^53."""
    hashed = np.zeros(len(keys[0]), dtype=np.uint64)
    for key in keys:
        hashed ^= (key + 0.0).view(np.uint64)  # 0.0 and -0.0 are equal
        hashed *= HASH_FACTOR
        hashed ^= hashed >> np.uint64(29)
    ordered = np.sort(hashed)
    several = ordered[1:][ordered[1:] == ordered[:-1]]
    repeated = np.zeros(len(hashed), dtype=bool)
    rows = np.flatnonzero(np.isin(hashed, several)) if len(several) else several.astype(np.int64)
    repeated[rows[_exact_repeats(tuple(key[rows] for key in keys))]] = True
    return repeated


def _exact_repeats(keys: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    """As ``repeats``, for few keys, by sorting all of them."""
    order = np.lexsort(keys)  # stable: equal keys stay in the order of the file
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for key in keys:
        same &= key[order[1:]] == key[order[:-1]]
    repeated = np.zeros(len(order), dtype=bool)
    repeated[order[1:][same]] = True
    return repeated
