"""Findings in a file, grouped by kind, with the first occurrences of each."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from detrs.errors import UserError, printable

NUM_PLACES = 5
"""Occurrences listed for each kind."""
MAX_DEFECTS = 0.01
"""Fraction of items with a defect that are skipped with a note; more are an error."""


@dataclass(frozen=True)
class Finding:
    """All findings of one kind."""

    kind: str
    count: int
    places: list[str]
    """The first of them."""

    def __str__(self) -> str:
        if not self.places:
            return self.kind
        return f"{self.count} x {self.kind}: {', '.join(self.places)}{', ...' if self.count > NUM_PLACES else ''}"


class Findings:
    """Counts findings by kind and keeps the first ``NUM_PLACES`` of each."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._places: dict[str, list[str]] = {}

    def copied(self) -> "Findings":
        """These findings, without those that are added later."""
        copied = Findings()
        copied.reset(self)
        return copied

    def reset(self, other: "Findings") -> None:
        """Replaces all findings by those of ``other``."""
        self._counts = Counter(other._counts)
        self._places = {kind: [*places] for kind, places in other._places.items()}

    def add(self, kind: str, place: str) -> None:
        self.add_many(kind, 1, (place,))

    def add_many(self, kind: str, count: int, places: Iterable[str]) -> None:
        """Adds ``count`` findings; only the first of ``places`` are evaluated."""
        if count:
            self._counts[kind] += count
            kept = self._places.setdefault(kind, [])
            for place in islice(places, NUM_PLACES - len(kept)):
                kept.append(printable(place).replace("\n", "\\n"))

    def lines(self) -> list[str]:
        """One line per kind: ``"7 x missing image: a.jpg, b.jpg, c.jpg, d.jpg, e.jpg, ..."``."""
        return list(map(str, self.listed()))

    def listed(self) -> list[Finding]:
        """All findings by kind, in the order in which the kinds were found."""
        return [Finding(kind, count, self._places[kind]) for kind, count in self._counts.items()]

    def raise_if_any(self, path: Path, problem: str = "") -> None:
        """Raises ``UserError`` with all findings, if there are any, or with ``problem`` and all findings."""
        if self._counts or problem:
            raise UserError("\n  ".join([problem or f"{path} has errors:", *self.lines()]))


def add_items(
    skipped: str, kind: str, places: Sequence[str], num_items: int, errors: Findings, notes: Findings
) -> None:
    """Adds defects of single items: a note if they are few, else an error.

    Args:
        skipped: Kind of the note.
        kind: Kind of the error.
        places: All occurrences.
        num_items: Number of items with and without the defect.
        errors: Receives more than ``MAX_DEFECTS`` of the items.
        notes: Receives fewer.
    """
    few = len(places) <= MAX_DEFECTS * num_items
    (notes if few else errors).add_many(skipped if few else kind, len(places), places)
