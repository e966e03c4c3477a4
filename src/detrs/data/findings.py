"""Findings in a file, grouped by kind, with the first occurrences of each."""

from collections import Counter
from pathlib import Path

from detrs.errors import UserError, printable

NUM_PLACES = 5
"""Occurrences listed for each kind."""


class Findings:
    """Counts findings by kind and keeps the first ``NUM_PLACES`` of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._places: dict[str, list[str]] = {}

    def add(self, kind: str, place: str) -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= NUM_PLACES:
            self._places.setdefault(kind, []).append(printable(place).replace("\n", "\\n"))

    def lines(self) -> list[str]:
        """One line per kind: ``"7 x missing image: a.jpg, b.jpg, c.jpg, d.jpg, e.jpg, ..."``."""
        return [
            f"{count} x {kind}: {', '.join(self._places[kind])}{', ...' if count > NUM_PLACES else ''}"
            for kind, count in self._counts.items()
        ]

    def raise_if_any(self, path: Path) -> None:
        """Raises ``UserError`` with all findings, if there are any."""
        if self._counts:
            raise UserError("\n  ".join([f"{path} has errors:", *self.lines()]))
