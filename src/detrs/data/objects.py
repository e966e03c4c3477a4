"""The objects of a split as columns: about 60 bytes per object while files are read and after it."""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from detrs.data.id_column import IdColumn

MAX_COORDINATE = 1e9
"""Limit of coordinates in pixels, itself excluded. Infinity and integers that overflow a float are above it."""

NO_ID = -(2**63)
"""Stored for an annotation without an id, or with one that does not fit in 64 bits."""

ROTATED = (
    "rotated box (rotated boxes are not supported: export the upright box [x, y, width, height] around the object, "
    "without rotation)"
)

ENCLOSED = "polygon or other shape, of which the enclosing upright box is used"

REGULAR, CROWD, IGNORED = range(3)


class ObjectEntry(NamedTuple):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    """(x, y, width, height) in pixels, as in the file."""
    area: float
    crowd: bool
    """A crowd region, or an object with ``"ignore": 1``."""
    trainable: bool
    """Not crowd, not a duplicate, and with an area inside the image."""


@dataclass(frozen=True)
class Objects(Sequence[ObjectEntry]):
    """The objects of a valid annotation file, in the order of the file; N objects."""

    image_ids: NDArray[Any]
    """Id of each image, in the order of the file."""
    category_ids: tuple[int, ...]
    image: NDArray[Any]
    """(N,) int32, index in ``image_ids``."""
    label: NDArray[Any]
    """(N,) int32, index in ``category_ids``."""
    boxes: NDArray[Any]
    """(N, 4) float64, (x, y, width, height) in pixels, as in the file."""
    area: NDArray[Any]
    """(N,) float64, in square pixels."""
    crowd: NDArray[Any]
    """(N,) bool."""
    trainable: NDArray[Any]
    """(N,) bool."""

    def __len__(self) -> int:
        return len(self.image)

    def select(self, rows: NDArray[Any]) -> "Objects":
        """The objects of some rows."""
        columns = self.image, self.label, self.boxes, self.area, self.crowd, self.trainable
        return Objects(self.image_ids, self.category_ids, *(column[rows] for column in columns))

    @overload
    def __getitem__(self, index: int) -> ObjectEntry: ...

    @overload
    def __getitem__(self, index: slice) -> list[ObjectEntry]: ...

    def __getitem__(self, index: int | slice) -> ObjectEntry | list[ObjectEntry]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        x, y, width, height = self.boxes[index].tolist()
        return ObjectEntry(
            int(self.image_ids[self.image[index]]),
            self.category_ids[self.label[index]],
            (x, y, width, height),
            float(self.area[index]),
            bool(self.crowd[index]),
            bool(self.trainable[index]),
        )


class Columns(ABC):
    """The objects of a split one by one, as arrays of their values."""

    normalized = False
    """Whether boxes are fractions of the width and height of their image, not pixels."""
    ignored = 'annotation with "ignore": 1'
    """What an object of the kind ``IGNORED`` is in this format, for messages."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.num_items = 0
        """Annotations in the files, including malformed ones."""
        self.id = array("q")
        """Ids of all objects, which must be unique, or ``NO_ID``; empty if the format has no ids."""
        self.image_id, self.category_id = IdColumn(), IdColumn()
        self.boxes = array("d")
        """x, y, width and height of all boxes."""
        self.area = array("d")
        """In the square of the unit of the boxes."""
        self.kind = array("b")
        """``REGULAR``, ``CROWD`` or ``IGNORED``."""

    def __len__(self) -> int:
        return len(self.kind)

    @abstractmethod
    def place(self, row: SupportsIndex) -> str:
        """Where a stored object is annotated, for messages."""

    def add(
        self,
        image_id: int,
        category_id: int,
        box: tuple[float, float, float, float],
        *,
        area: float | None = None,
        kind: int = REGULAR,
    ) -> None:
        """Stores a well-formed object.

        Args:
            image_id: Id of its image.
            category_id: Id of its class.
            box: (x, y, width, height), without a fault (see ``box_fault``).
            area: By default, that of the box.
            kind: ``REGULAR``, ``CROWD`` or ``IGNORED``.
        """
        self.image_id.append(image_id)
        self.category_id.append(category_id)
        self.boxes.extend(box)
        self.area.append(box[2] * box[3] if area is None else area)
        self.kind.append(kind)

    def add_many(
        self,
        image_ids: Sequence[int],
        category_ids: Sequence[int],
        boxes: NDArray[Any],
        areas: NDArray[Any],
        kinds: NDArray[Any],
    ) -> None:
        """Stores N well-formed objects; see ``add``. ``boxes`` is (N, 4), ``areas`` and ``kinds`` are (N,)."""
        self.image_id.extend(image_ids)
        self.category_id.extend(category_ids)
        for column, values in ((self.boxes, boxes), (self.area, areas), (self.kind, kinds)):
            append_array(column, values)


class PlacedColumns(Columns):
    """Objects that are named by their file and line in messages.

    Args:
        normalized: Boxes are fractions of the width and height of their image, not pixels.
    """

    def __init__(self, *, normalized: bool = False) -> None:
        super().__init__()
        self.normalized = normalized

    def clear(self) -> None:
        super().clear()
        self._files: list[str] = []
        self._file = array("l")
        self._line = array("l")

    def place(self, row: SupportsIndex) -> str:
        line = self._line[row]
        return f"{self._files[self._file[row]]}:{line}" if line else self._files[self._file[row]]

    def add_at(
        self,
        file: str,
        line: int,
        image_id: int,
        category_id: int,
        box: tuple[float, float, float, float],
        *,
        area: float | None = None,
        kind: int = REGULAR,
    ) -> None:
        """Stores a well-formed object.

        Args:
            file: Its file, relative to the dataset. Objects of a file are added one after another.
            line: Its line in the file, from 1; 0 if ``file`` alone names it.
            image_id: Id of its image.
            category_id: Id of its class.
            box: (x, y, width, height), without a fault.
            area: By default, that of the box.
            kind: ``REGULAR``, ``CROWD`` or ``IGNORED``.
        """
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        self._file.append(len(self._files) - 1)
        self._line.append(line)
        self.add(image_id, category_id, box, area=area, kind=kind)


def append_array(column: "array[Any]", values: NDArray[Any]) -> None:
    """Appends all values of a NumPy array."""
    column.frombytes(np.ascontiguousarray(values, dtype=column.typecode).tobytes())


def integer(value: Any) -> int | None:
    """``value`` as an integer, or ``None``. Integral floats are accepted, since some programs write 1.0 for 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def box_fault(box: Sequence[int | float]) -> str:
    """The kind of fault of a box (x, y, width, height) of numbers; an empty string if it has none."""
    if not all(-MAX_COORDINATE < value < MAX_COORDINATE for value in box):
        return "box with NaN, infinite or very large coordinates"
    if min(box[2:]) < 0:
        return "box with negative width or height (expected [x, y, width, height], not [x1, y1, x2, y2])"
    return ""


def is_rotated(degrees: Any) -> bool:
    """Whether a box is not upright. CVAT writes a rotation of 0 for upright boxes."""
    return isinstance(degrees, int | float) and degrees % 180 != 0
