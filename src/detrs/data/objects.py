"""The objects of an annotation file as columns: about 60 bytes per object while the file is read and after it."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsIndex, overload

from numpy.typing import NDArray

from detrs.data.findings import Findings

MAX_COORDINATE = 1e9
"""Limit of coordinates in pixels, itself excluded. Infinity and integers that overflow a float are above it."""
NO_ID = -(2**63)
"""Stored for an annotation without an id, or with one that does not fit in 64 bits."""

ROTATED = (
    "rotated box (rotated boxes are not supported: export the upright box [x, y, width, height] around the object, "
    "without rotation)"
)

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

    image_ids: list[int]
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
            self.image_ids[self.image[index]],
            self.category_ids[self.label[index]],
            (x, y, width, height),
            float(self.area[index]),
            bool(self.crowd[index]),
            bool(self.trainable[index]),
        )


class Columns:
    """Receives the annotations of a file one by one, and checks what a single annotation shows.

    Args:
        errors: Receives malformed annotations, which are not stored.
    """

    def __init__(self, errors: Findings) -> None:
        self.errors = errors
        self.clear()

    def clear(self) -> None:
        self.num_items = 0
        """Annotations in the file."""
        self.number = array("q")
        """Position in the file."""
        self.id = array("q")
        self.image_id: list[int] = []
        self.category_id: list[int] = []
        self.boxes = array("d")
        """x, y, width and height of all boxes."""
        self.area = array("d")
        self.kind = array("b")
        """``REGULAR``, ``CROWD`` or ``IGNORED``."""
        self._interned: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.number)

    def place(self, row: SupportsIndex) -> str:
        """The name of a stored annotation in messages."""
        return f"annotations[{self.number[row]}]" if self.id[row] == NO_ID else f"annotation {self.id[row]}"

    def append(self, entry: Any) -> None:
        number = self.num_items
        self.num_items += 1
        if not isinstance(entry, dict):
            self.errors.add("annotation that is not an object", f"annotations[{number}]")
            return
        place = f"annotation {entry['id']!r:.40}" if "id" in entry else f"annotations[{number}]"
        id_, image_id, category_id = (integer(entry.get(key)) for key in ("id", "image_id", "category_id"))
        if id_ is None and entry.get("id") is not None:
            self.errors.add("annotation id that is not an integer", place)
        fault, value = _fault(entry)
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
            self.image_id.append(self._interned.setdefault(image_id, image_id))
            self.category_id.append(self._interned.setdefault(category_id, category_id))
            self.boxes.extend((x, y, width, height))
            self.area.append(float(area) if is_known else width * height)  # type: ignore[arg-type]
            self.kind.append(CROWD if entry.get("iscrowd") else IGNORED if entry.get("ignore") else REGULAR)


def integer(value: Any) -> int | None:
    """``value`` as an integer, or ``None``. Integral floats are accepted, since some programs write 1.0 for 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _fault(entry: dict[str, Any]) -> tuple[str, Any]:
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
    if any(map(_is_rotated, rotations)):
        return ROTATED, next(filter(_is_rotated, rotations))
    if not isinstance(bbox, list) or len(bbox) != 4 or not {*map(type, bbox)} <= {int, float}:
        return "bbox that is not [x, y, width, height]", bbox
    if not all(-MAX_COORDINATE < value < MAX_COORDINATE for value in bbox):
        return "box with NaN, infinite or very large coordinates", bbox
    if min(bbox[2:]) < 0:
        return "box with negative width or height (expected [x, y, width, height], not [x1, y1, x2, y2])", bbox
    return "", None


def _is_rotated(degrees: Any) -> bool:
    """Whether a box is not upright. CVAT writes a rotation of 0 for upright boxes."""
    return isinstance(degrees, int | float) and degrees % 180 != 0
