"""Small charts as SVG, which take their colors from the style sheet of the page."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detrs.html_table import text

WIDTH, HEIGHT, WIDE = 380, 220, 900
LEFT, BOTTOM, TOP = 46, 34, 18
ROW = 22
"""Height of a bar in pixels."""
LABEL = 150
"""Width of the labels of bars in pixels."""
SERIES = ("s0", "s1", "s2", "s3")
"""Classes of the style sheet that color the series."""


def bars(labels: Sequence[str], series: dict[str, Sequence[int]]) -> str:
    """Horizontal bars on a square-root scale, so that rare classes are visible; one bar per label and series."""
    most = max((max(values, default=0) for values in series.values()), default=0) or 1
    thickness = ROW if len(series) == 1 else ROW // 2 + 3
    step = thickness * len(series) + 8
    parts = []
    for row, label in enumerate(labels):
        top = row * step + 4
        middle = top + thickness * len(series) / 2 + 4
        parts.append(f'<text x="{LABEL - 8}" y="{middle:.0f}" text-anchor="end">{_text(label, 22)}</text>')
        for number, (name, values) in enumerate(series.items()):
            width = (WIDE - LABEL - 70) * math.sqrt(values[row] / most)
            y = top + number * thickness
            title = f"<title>{_text(label)}, {_text(name)}: {values[row]:,}</title>"
            parts.append(
                f'<rect class="{SERIES[number % len(SERIES)]}" x="{LABEL}" y="{y}" width="{width:.1f}" '
                f'height="{thickness - 2}" rx="2">{title}</rect>'
                f'<text class="small" x="{LABEL + width + 6:.1f}" y="{y + thickness - 5}">{values[row]:,}</text>'
            )
    return _svg(WIDE, len(labels) * step + 8, "".join(parts))


def histogram(
    values: NDArray[Any],
    *,
    label: str,
    logarithmic: bool = False,
    bins: int = 40,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """Numbers of values in equal bins, of the logarithm if ``logarithmic``.

    Args:
        values: The values, which must be positive if ``logarithmic``.
        label: Name and unit of the values.
        logarithmic: Whether the axis is logarithmic.
        bins: Number of bins.
        marks: Values with a vertical line and its text.
    """
    if not len(values):
        return ""
    points = [float(value) for value, _ in marks]
    low, high = min([values.min(), *points]), max([values.max(), *points])
    if logarithmic:
        low, high = math.log2(max(low, 1e-3)), math.log2(max(high, 1e-3))
        low, high = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
        scaled = np.log2(np.maximum(values, 1e-3))
    else:
        low, high, scaled = 0.0, max(float(high), 1.0) * 1.001, values
        if np.issubdtype(values.dtype, np.integer):
            bins = min(bins, int(high) + 1)
            high = math.ceil((int(high) + 1) / bins) * bins
    counts, edges = np.histogram(scaled, bins=bins, range=(low, high))
    most, inner = max(int(counts.max()), 1), WIDTH - LEFT - 12
    height = HEIGHT - BOTTOM - TOP

    def x(value: float) -> float:
        return LEFT + inner * (value - low) / (high - low)

    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 12}" y1="{TOP + height}" y2="{TOP + height}"/>']
    for count, left, right in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        if count:
            size = height * count / most
            ends = (2**left, 2**right) if logarithmic else (left, right)
            title = f"<title>{ends[0]:.3g} to {ends[1]:.3g}: {count:,}</title>"
            parts.append(
                f'<rect class="s0" x="{x(left):.1f}" y="{TOP + height - size:.1f}" '
                f'width="{max(x(right) - x(left) - 1, 1):.1f}" height="{size:.1f}">{title}</rect>'
            )
    ticks = range(int(low), int(high) + 1) if logarithmic else _ticks(high)
    ticks = list(ticks)[:: max(1, math.ceil(len(list(ticks)) / 9))]
    for tick in ticks:
        name = f"{2.0**tick:g}" if logarithmic else f"{tick:g}"
        parts.append(
            f'<text class="small" x="{x(tick):.1f}" y="{TOP + height + 14}" text-anchor="middle">{name}</text>'
        )
    for number, (value, shown) in enumerate(marks):
        at = x(math.log2(value) if logarithmic else value)
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{TOP + height}"/>'
            f'<text class="small mark" x="{at + 4:.1f}" y="{TOP + 9 + 12 * (number % 3)}">{_text(shown)}</text>'
        )
    parts.append(f'<text class="small" x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{most:,}</text>')
    parts.append(
        f'<text class="small" x="{LEFT + inner / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{_text(label)}</text>'
    )
    return _svg(WIDTH, HEIGHT, "".join(parts))


def scatter(points: NDArray[Any], counts: NDArray[Any], *, labels: tuple[str, str]) -> str:
    """Points (N, 2) as circles whose area grows with their counts (N,); both axes start at 0."""
    high = max(float(points.max(initial=1)), 1.0) * 1.08
    width, height = WIDTH - LEFT - 12, HEIGHT + 60 - BOTTOM - TOP
    parts = [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 12}" y1="{TOP + height}" y2="{TOP + height}"/>',
        f'<line class="axis" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{TOP + height}"/>',
    ]
    order = np.argsort(-counts)
    for (x, y), count in zip(points[order].tolist(), counts[order].tolist(), strict=True):
        radius = 3 + 15 * math.sqrt(count / counts.max())
        title = f"<title>{x:g} x {y:g}: {count:,}</title>"
        cx, cy = LEFT + width * x / high, TOP + height * (1 - y / high)
        parts.append(f'<circle class="s0 soft" cx="{cx:.1f}" cy="{cy:.1f}" r="{radius:.1f}">{title}</circle>')
    for tick in _ticks(high):
        at, up = LEFT + width * tick / high, TOP + height * (1 - tick / high)
        parts.append(f'<text class="small" x="{at:.1f}" y="{TOP + height + 14}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text class="small" x="{LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(
        f'<text class="small" x="{LEFT + width / 2:.0f}" y="{HEIGHT + 56}" text-anchor="middle">'
        f"{_text(labels[0])}</text>"
    )
    parts.append(f'<text class="small" x="{LEFT + 6}" y="{TOP - 4}">{_text(labels[1])}</text>')
    return _svg(WIDTH, HEIGHT + 60, "".join(parts))


def _ticks(high: float) -> list[float]:
    """About five round numbers from 0 to ``high``."""
    step = 10 ** math.floor(math.log10(high / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if high / (step * factor) <= 6)
    return [step * number for number in range(int(high / step) + 1)]


def _svg(width: float, height: float, content: str) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" width="{width:.0f}">{content}</svg>'


def _text(name: str, limit: int = 60) -> str:
    return text(name if len(name) <= limit else name[: limit - 1] + "…")
