"""Parses the label files of YOLO datasets: one line for each object, in fractions of the width and height.

A line is ``class cx cy w h``, or ``class x1 y1 x2 y2 x3 y3 ...`` for a polygon, of which the enclosing box is used. The
four corners of an oriented box have the form of a polygon with four points and are read as one. Lines of pose datasets
have the values of ``kpt_shape`` after the box, which are ignored.
"""

import math
from collections import Counter, defaultdict

from detrs.data.findings import NUM_PLACES, Findings
from detrs.data.objects import PlacedColumns, box_fault, integer

MAX_BYTES = 2**24
"""Of a label file."""
TOLERANCE = 0.01
"""By which values may be outside of [0, 1], as in Ultralytics."""
NOT_A_LABEL = "label file that is not text"
NOT_A_NUMBER = "value that is not a number"
NOT_A_CLASS = "class that is not an integer (expected its index in the class names)"
NUMBERS = (
    "line with a wrong number of values (expected 5: class, center x, center y, width, height; or the class and x, y "
    "of the points of a polygon)"
)
PIXELS = "value above 1 (expected fractions of the image: divide pixels by its width and height)"
NEGATIVE = "negative value (expected fractions of the image, from 0 to 1)"
KEYPOINTS = "pose label, of which the box is used and the keypoints are ignored"
CORNERS = "polygon with four points, perhaps an oriented box, of which the enclosing upright box is used"
COMMAS = "values separated by commas (expected spaces)"
TRIANGLE, POLYGON = "polygon with three points", "polygon with more points"
_LOW, _HIGH = -TOLERANCE, 1 + TOLERANCE


class Labels:
    """Collects the objects of label files.

    Args:
        names: Class names by index.
        keypoint_values: Numbers after the box in each line; 0 if the dataset has no keypoints.
        errors: Receives malformed lines, which are not stored.
    """

    def __init__(self, names: dict[int, str], keypoint_values: int, errors: Findings) -> None:
        self.columns = PlacedColumns(normalized=True)
        self.names, self.keypoint_values, self.errors = names, keypoint_values, errors
        self._outside = f"class index outside the {len(names)} class names (0 to {max(names, default=-1)})"
        self._classes = {str(index): index for index in names}
        self._counts: Counter[str] = Counter()
        self._places: dict[str, list[str]] = defaultdict(list)

    def add_file(self, image_id: int, file: str, content: bytes) -> None:
        """Adds the objects of an image.

        Args:
            image_id: Id of the image.
            file: The label file, for messages.
            content: Its bytes.
        """
        try:
            lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            self.errors.add(NOT_A_LABEL, f"{file} (byte {error.start})")
            return
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words:
                continue
            self.columns.num_items += 1
            if "," in words[0]:
                self.errors.add(COMMAS, f"{file}:{number}: {line.strip()!r:.60}")
                continue
            label = self._classes.get(words[0])
            try:
                values = [float(word) for word in words[1:]]
            except ValueError:
                self._add_words(f"{file}:{number}", words)
                continue
            if label is None:
                label = self._class(f"{file}:{number}", words[0])
            box = self._box(f"{file}:{number}", values)
            if label is not None and box is not None:
                self.columns.add_at(file, number, image_id, label, box)

    def finish(self, notes: Findings) -> None:
        """Reports findings that depend on all lines.

        Seven values are a polygon with three points, but more probably a mistake if no other line is a polygon.
        """
        counts, places = self._counts, self._places
        if not counts[POLYGON]:
            self.errors.add_many(NUMBERS, counts[TRIANGLE], (f"{place}: 7 values" for place in places[TRIANGLE]))
        if counts[CORNERS] == counts[POLYGON]:
            notes.add_many(CORNERS, counts[CORNERS], places[CORNERS])
        notes.add_many(KEYPOINTS, counts[KEYPOINTS], places[KEYPOINTS])

    def _count(self, kind: str, place: str) -> None:
        """Counts a line for ``finish``."""
        self._counts[kind] += 1
        if self._counts[kind] <= NUM_PLACES:
            self._places[kind].append(place)

    def _box(self, place: str, values: list[float]) -> tuple[float, float, float, float] | None:
        """(x, y, width, height) of the values after the class; ``None`` if they are faulty."""
        count = len(values)
        if self.keypoint_values and count == 4 + self.keypoint_values:
            self._count(KEYPOINTS, place)
            values = values[:4]
        elif count != 4 and (count < 6 or count % 2 or self.keypoint_values):
            hint = ", perhaps with a score, as in predictions" if count == 5 else ""
            self.errors.add(NUMBERS, f"{place}: {count + 1} values{hint}")
            return None
        if fault := _fault(values):
            kind, value = fault
            self.errors.add(kind, f"{place}: {value:g}")
            return None
        if len(values) == 4:
            x, y, width, height = values
            return x - width / 2, y - height / 2, width, height
        self._count(TRIANGLE if count == 6 else POLYGON, place)
        if count == 8:
            self._count(CORNERS, place)
        left, top = min(values[::2]), min(values[1::2])
        return left, top, max(values[::2]) - left, max(values[1::2]) - top

    def _class(self, place: str, word: str) -> int | None:
        """The class of a word that is not simply an index, such as ``0.0``; ``None`` if it is faulty."""
        try:
            label = integer(float(word)) if math.isfinite(float(word)) else None
        except ValueError:
            label = None
        if label is None:
            self.errors.add(NOT_A_CLASS, f"{place}: {word!r:.40}")
        elif label not in self.names:
            self.errors.add(self._outside, f"{place}: {label}")
        else:
            self._classes[word] = label
            return label
        return None

    def _add_words(self, place: str, words: list[str]) -> None:
        """Reports a line with a word that is not a number."""
        word = next(word for word in words[1:] if not _is_number(word))
        self.errors.add(NOT_A_NUMBER, f"{place}: {word!r:.40}")


def is_label(line: str) -> bool:
    """Whether a line of text has the form of a label."""
    words = line.split()
    return len(words) >= 5 and all(map(_is_number, words))


def _fault(values: list[float]) -> tuple[str, float] | None:
    """The kind of fault and the faulty value."""
    if all(_LOW <= value <= _HIGH for value in values):
        if len(values) == 4 and min(values[2:]) < 0:
            return NEGATIVE, min(values[2:])
        return None
    for value in values:
        if kind := box_fault([value, 0, 0, 0]):
            return kind, value
    for value in values:
        if value > _HIGH:
            return PIXELS, value
    return NEGATIVE, min(values)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
