"""Objects of JSON files, which have an index in a list instead of a line, and their numbers."""

from typing import Any, SupportsIndex

from detrs.data.objects import PlacedColumns


class ItemColumns(PlacedColumns):
    """Objects that are named by their file and their index in a list of it. ``add_at`` takes the index + 1 as line.

    Args:
        items: Name of the list, such as ``shapes``.
        normalized: Boxes are fractions of the width and height of their image, not pixels.
    """

    def __init__(self, items: str, *, normalized: bool = False) -> None:
        super().__init__(normalized=normalized)
        self._items = items

    def place(self, row: SupportsIndex) -> str:
        file, _, number = super().place(row).rpartition(":")
        return f"{file}: {self._items}[{int(number) - 1}]"


def floats(values: Any, count: int) -> list[float] | None:
    """A list of ``count`` JSON numbers as floats, or ``None`` for anything else. Too large integers are infinite."""
    if not isinstance(values, list) or len(values) != count or not {*map(type, values)} <= {int, float}:
        return None
    try:
        return [float(value) for value in values]
    except OverflowError:
        return [float("inf")] * count
