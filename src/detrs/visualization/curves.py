"""Training curves in one figure: loss, loss terms, average precision, learning rate."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from detrs.errors import UserError
from detrs.visualization.draw import OKABE_ITO

ORANGE, SKY, GREEN, _, BLUE, RED, PURPLE, _ = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in OKABE_ITO)
GREY = "#8a8a8a"
MAX_TERMS = 8


def results_figure(metrics_jsonl: Path, png: Path) -> None:
    """Plots the metrics of a finished or running training.

    Args:
        metrics_jsonl: One JSON object per line: ``{"kind": "step", "step", "loss", "terms": {..}, "lr", ..}`` and
            ``{"kind": "evaluation", "step", "ap", "ap50", "ap75", ..}``. Undefined values are ``null``.
        png: File to write.

    Raises:
        UserError: A line is not valid JSON. The last line may be incomplete, as a killed run leaves it.
    """
    lines = read_lines(metrics_jsonl)
    steps = [line for line in lines if line.get("kind") == "step"]
    evaluations = [line for line in lines if line.get("kind") == "evaluation"]
    figure = Figure(figsize=(13, 8), dpi=110, layout="constrained")  # pyplot is not thread-safe
    FigureCanvasAgg(figure)
    (loss, precision), (terms, rate) = figure.subplots(2, 2)
    last = max((line["step"] for line in lines), default=0)
    for axes in (loss, precision, terms, rate):
        _prepare(axes, last)

    _draw_loss(loss, steps)
    _draw_precision(precision, evaluations)
    _draw_terms(terms, steps)
    _draw_rate(rate, steps)
    figure.savefig(png, format="png")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads a JSON lines file. An incomplete last line, as a killed run leaves it, is skipped.

    Raises:
        UserError: A line other than the last is not valid JSON.
    """
    texts = path.read_text(encoding="utf-8").splitlines()
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            if number < len(texts):
                raise UserError(f"{path}, line {number}, is not valid JSON ({error}). Remove the line.") from error
    return lines


def _draw_loss(axes: Axes, steps: list[dict[str, Any]]) -> None:
    _title(axes, "loss")
    if not steps:
        return
    x, y = _column(steps, "step"), _column(steps, "loss")
    smooth = _smooth(y)
    axes.plot(x, y, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(x, smooth, color=BLUE, marker=_marker(steps))
    _crop(axes, smooth)
    axes.annotate(f"{smooth[-1]:.3g}", (x[-1], smooth[-1]), (4, 0), textcoords="offset points", color=BLUE, va="center")


def _draw_terms(axes: Axes, steps: list[dict[str, Any]]) -> None:
    """Plots the terms of the last layer, without the auxiliary losses (``class_0``, ``box_1`` ..)."""
    _title(axes, "loss terms (last layer)")
    if not steps:
        return
    x = _column(steps, "step")
    names = [name for name in steps[-1].get("terms", {}) if not name.rpartition("_")[2].isdigit()][:MAX_TERMS]
    smooth = [_smooth(_column([line.get("terms", {}) for line in steps], name)) for name in names]
    for name, y, color in zip(names, smooth, (BLUE, ORANGE, GREEN, RED, SKY, PURPLE, GREY, "black"), strict=False):
        axes.plot(x, y, color=color, marker=_marker(steps), label=name)
    if names:
        _crop(axes, np.concatenate(smooth))
        axes.legend(frameon=False, loc="upper right", ncols=2)


def _draw_precision(axes: Axes, evaluations: list[dict[str, Any]]) -> None:
    _title(axes, "average precision")
    axes.set_ylim(0, 1)
    if not evaluations:
        axes.text(0.5, 0.5, "no evaluation", transform=axes.transAxes, ha="center", color=GREY)
        return
    x = _column(evaluations, "step")
    for name, key, color in (("AP50", "ap50", ORANGE), ("AP75", "ap75", GREEN), ("AP", "ap", BLUE)):
        y = _column(evaluations, key)
        axes.plot(x, y, color=color, marker=_marker(evaluations), label=f"{name}  {_figure(y[-1])}")
    ap = _column(evaluations, "ap")
    if np.isfinite(ap).any():
        best = int(np.nanargmax(ap))
        axes.plot(x[best], ap[best], "o", color=BLUE, markerfacecolor="none", markersize=12)
        axes.plot([], [], "o", color=BLUE, markerfacecolor="none", markersize=9, label=f"best AP  {_figure(ap[best])}")
    top = np.nanmax([0.02, *_column(evaluations, "ap50"), *ap])
    axes.set_ylim(0, min(1.02, 1.25 * top))
    axes.legend(frameon=False, loc="upper left", ncols=2)


def _draw_rate(axes: Axes, steps: list[dict[str, Any]]) -> None:
    _title(axes, "learning rate")
    if steps:
        axes.plot(_column(steps, "step"), _column(steps, "lr"), color=PURPLE, marker=_marker(steps))
        axes.ticklabel_format(axis="y", scilimits=(-2, 2))
        axes.set_ylim(bottom=0)


def _prepare(axes: Axes, last_step: int) -> None:
    axes.set_xlim(-0.02 * max(1, last_step), 1.06 * max(1, last_step))
    axes.set_xlabel("step")
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontweight="bold")


def _column(lines: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """One value per line; NaN if it is missing, ``null`` or not finite."""
    values = np.array([np.nan if line.get(key) is None else line[key] for line in lines], dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centered moving average over 1/20 of the run, one-sided at both ends; NaN values are ignored."""
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    index, half = np.arange(len(values)), len(values) // 40
    start, stop = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    number = count[stop] - count[start]
    return np.where(number > 0, (total[stop] - total[start]) / np.maximum(number, 1), np.nan)


def _crop(axes: Axes, values: np.ndarray) -> None:
    """Limits the y axis to the maximum, or to the 99 % quantile if a spike would flatten the rest of the curve."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.max() > 0:
        usual = float(np.quantile(finite, 0.99))
        axes.set_ylim(0, 1.1 * (finite.max() if finite.max() < 3 * usual else usual))


def _marker(lines: Sequence[object]) -> str:
    return "o" if len(lines) <= 20 else ""


def _figure(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "–"
