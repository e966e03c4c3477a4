"""Results of ``engine.accuracy`` summarized over seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

COLUMNS = (
    "detector",
    "runs",
    "best AP",
    "best AP50",
    "last AP",
    "last AP50",
    "images processed",
    "peak MiB",
    "seconds",
)


@dataclass(frozen=True)
class Spread:
    """Mean and range over seeds."""

    mean: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread | None":
        """``None`` if a value is undefined, or there are none."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        return cls(statistics.fmean(known), min(known), max(known))


@dataclass(frozen=True, kw_only=True)
class Row:
    """All runs of one detector under one setting."""

    subject: str
    runs: int
    best_ap: Spread | None
    """Of the evaluation with the highest AP of each run."""
    best_ap50: Spread | None
    """Of the same evaluations."""
    last_ap: Spread | None
    """Of the last evaluation of each run."""
    last_ap50: Spread | None
    images: Spread | None
    """Training images that were processed, each as often as it was used."""
    peak_mib: Spread | None
    seconds: Spread | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def cells(self, separator: str = "\n") -> list[str]:
        """Text for ``COLUMNS``; ``separator`` is between a mean and its range."""
        aps = (self.best_ap, self.best_ap50, self.last_ap, self.last_ap50)
        counts = (self.images, self.peak_mib, self.seconds)
        return [
            self.subject,
            str(self.runs),
            *(cell(spread, 3, separator, with_range=self.runs > 1) for spread in aps),
            *(cell(spread, 0, separator, with_range=False) for spread in counts),
        ]


def cell(spread: Spread | None, decimals: int, separator: str, *, with_range: bool) -> str:
    """A mean and its range as text."""
    if spread is None:
        return "-"
    mean, lowest, highest = (f"{value:,.{decimals}f}" for value in (spread.mean, spread.lowest, spread.highest))
    return f"{mean}{separator}{lowest}-{highest}" if with_range else mean


def rows(lines: Sequence[dict[str, Any]]) -> list[Row]:
    """One row for each subject, in the order of the first lines."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(line["subject"], []).append(line)
    return [_row(subject, group) for subject, group in groups.items()]


def _row(subject: str, lines: Sequence[dict[str, Any]]) -> Row:
    def spread(place: str, name: str) -> Spread | None:
        return Spread.of([line[place][name] for line in lines])

    return Row(
        subject=subject,
        runs=len(lines),
        best_ap=spread("best", "ap"),
        best_ap50=spread("best", "ap50"),
        last_ap=spread("last", "ap"),
        last_ap50=spread("last", "ap50"),
        **{name: Spread.of([line[name] for line in lines]) for name in ("images", "peak_mib", "seconds")},
    )


def table(summary: Sequence[Row]) -> Table:
    """The rows as a rich table for terminals of 80 columns, means above their ranges."""
    columns = ("detector", "best\nAP", "\nAP50", "last\nAP", "\nAP50", "images\nprocessed", "peak\nMiB", "time\ns")
    shown = Table(*columns, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for column in shown.columns[1:]:
        column.justify = "right"
    shown.columns[0].overflow = "fold"
    for row in summary:
        subject, _, *figures = row.cells()
        shown.add_row(subject, *(figure.replace("0.", ".") if "\n" in figure else figure for figure in figures))
    return shown
