"""Curves of a training run in one figure: losses, learning rate, average precision, also per class and object size.

Every panel has steps below and epochs above. Legends are beside the panels, so they never cover a curve; they list the
last finite value of every curve.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detrs.errors import UserError
from detrs.visualization.draw import OKABE_ITO
from detrs.visualization.fonts import label_of, set_font

ORANGE, SKY, GREEN, _, BLUE, RED, PURPLE, _ = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in OKABE_ITO)
GREY, BLACK, BROWN, OLIVE = "#8a8a8a", "#222222", "#8c4a2f", "#8a8a00"
COLORS = (BLUE, ORANGE, GREEN, RED, SKY, PURPLE, BLACK, BROWN, OLIVE, GREY)
MAX_CLASSES = len(COLORS)
"""With more classes, only the best and the worst ones have a color and a name."""
TERMS = {
    "class": "classification",
    "box": "box L1",
    "giou": "GIoU",
    "objectness": "objectness",
}
"""Loss term in ``metrics.jsonl`` -> name in figures."""
SCORES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
SIZES = {"ap_small": "small (< 32² px)", "ap_medium": "medium", "ap_large": "large (> 96² px)"}


class Curve(NamedTuple):
    """Values over steps, with name and color."""

    name: str
    x: np.ndarray
    y: np.ndarray
    color: str
    smooth: bool = False
    """Draw the moving average, over the values in a pale color."""
    dashed: bool = False


def results_figure(metrics_jsonl: Path, png: Path, *, steps_per_epoch: int | None = None) -> None:
    """Plots the metrics of a finished or running training.

    Args:
        metrics_jsonl: One JSON object per line: ``{"kind": "step", "step", "loss", "terms": {..}, "lr", ..}`` and
            ``{"kind": "evaluation", "step", "ap", "ap50", "ap75", "per_class", ..}``. Undefined values are ``null``.
        png: File to write.
        steps_per_epoch: Optimizer steps of an epoch, for the axes above the panels; ``None``: no such axes.

    Raises:
        UserError: A line is not valid JSON. The last line may be incomplete, as a killed run leaves it.
    """
    curves_figure(read_lines(metrics_jsonl), steps_per_epoch=steps_per_epoch).savefig(png, format="png")


def curves_figure(lines: Sequence[dict[str, Any]], *, steps_per_epoch: int | None = None) -> Figure:
    """The figure of ``results_figure`` for the lines of a ``metrics.jsonl``."""
    lines = sorted((line for line in lines if "step" in line), key=lambda line: line["step"])
    steps = [line for line in lines if line.get("kind") == "step"]
    evaluations = [line for line in lines if line.get("kind") == "evaluation"]
    rows = 3 if evaluations else 2
    figure = Figure(figsize=(14, 3.9 * rows), dpi=110, layout="constrained")  # pyplot is not thread-safe
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 2).ravel()
    last = max((line["step"] for line in lines), default=0)
    for axes in panels:
        _prepare(axes, last, steps_per_epoch)

    loss, terms, rate, norm = (panels[i] for i in ((0, 1, 4, 5) if evaluations else (0, 1, 2, 3)))
    _draw(loss, "training loss", [_of_steps("loss", steps, "loss", BLUE)] if steps else [])
    _draw_skipped(loss, steps)
    _draw(terms, "loss terms (last decoder layer)", _terms(steps))
    _draw(rate, "learning rate", [_of_steps("learning rate", steps, "lr", PURPLE, smooth=False)] if steps else [])
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    _draw(norm, "gradient norm", [_of_steps("before clipping", steps, "grad_norm", BROWN)] if steps else [])
    if evaluations:
        _draw_scores(panels[2], evaluations)
        _draw_classes(panels[3], evaluations)
    return figure


def term_name(term: str) -> str:
    """The name of a loss term in figures.

    >>> term_name("giou_proposals")
    'GIoU, proposals'
    >>> term_name("class_0")
    'classification, layer 1'
    """
    name, _, part = term.partition("_")
    if not part:
        return TERMS.get(name, name)
    return f"{TERMS.get(name, name)}, {f'layer {int(part) + 1}' if part.isdigit() else part.replace('_', ' ')}"


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


def _of_steps(name: str, steps: list[dict[str, Any]], key: str, color: str, *, smooth: bool = True) -> Curve:
    return Curve(name, _column(steps, "step"), _column(steps, key), color, smooth)


def _terms(steps: list[dict[str, Any]]) -> list[Curve]:
    """The terms of the last layer and of the proposals, without the auxiliary losses (``class_0``, ``box_1``, ...)."""
    if not steps:
        return []
    values = [line.get("terms") or {} for line in steps]
    names = dict.fromkeys(name for terms in values for name in terms if not name.rpartition("_")[2].isdigit())
    x = _column(steps, "step")
    return [
        Curve(term_name(name), x, _column(values, name), COLORS[i % len(COLORS)], smooth=True, dashed=i >= len(COLORS))
        for i, name in enumerate(names)
    ]


def _draw(axes: Axes, title: str, curves: Sequence[Curve]) -> None:
    """Curves with a legend of their last values; the y axis starts at 0."""
    axes.set_title(title, fontweight="bold")
    shown = []
    for curve in curves:
        y = _smooth(curve.y) if curve.smooth else curve.y
        marker = "o" if np.isfinite(y).sum() <= 20 else ""
        if curve.smooth and len(curve.y) > len(COLORS) and len(curves) == 1:
            axes.plot(curve.x, curve.y, color=curve.color, alpha=0.25, linewidth=1)
        label = f"{label_of(curve.name)}  {_figure(_last(y))}"
        style = "--" if curve.dashed else "-"
        axes.plot(curve.x, y, style, color=curve.color, marker=marker, markersize=4, label=label)
        shown.append(y)
    if shown and np.isfinite(np.concatenate(shown)).any():
        _crop(axes, np.concatenate(shown))
    else:
        axes.set_ylim(0, 1)
    if not curves:
        axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", color=GREY)
    _legend(axes)


def _draw_skipped(axes: Axes, steps: list[dict[str, Any]]) -> None:
    """Crosses at the bottom where steps were skipped."""
    skipped = [line["step"] for line in steps if line.get("skipped") or line.get("loss") is None]
    if skipped:
        style: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "color": RED, "clip_on": False}
        axes.plot(skipped, [0.0] * len(skipped), "x", label="skipped steps (not finite)", zorder=3, **style)
        _legend(axes)


def _draw_scores(axes: Axes, evaluations: list[dict[str, Any]]) -> None:
    """AP, AP50, AP75 and AP by object size; the best AP is marked."""
    x = _column(evaluations, "step")
    keys = {**SCORES, **SIZES}
    values = {key: _column(evaluations, key) for key in keys}
    known = {key: name for key, name in keys.items() if key in SCORES or np.isfinite(values[key]).any()}
    colors = dict(zip(keys, (BLUE, ORANGE, GREEN, SKY, PURPLE, RED), strict=True))
    _draw(
        axes,
        "average precision (validation)",
        [Curve(name if key in SCORES else f"AP {name}", x, values[key], colors[key]) for key, name in known.items()],
    )
    for key, line in zip(known, axes.get_lines(), strict=False):
        line.set_linewidth(2.2 if key == "ap" else 1.3)
        line.set_linestyle("-" if key in SCORES else "--")
    ap = values["ap"]
    if np.isfinite(ap).any():
        best = int(np.nanargmax(ap))
        label = f"best AP  {ap[best]:.3f}, step {x[best]:.0f}"
        axes.plot(x[best], ap[best], "o", color=BLUE, markerfacecolor="none", markersize=11, label=label, clip_on=False)
    _legend(axes)


def _draw_classes(axes: Axes, evaluations: list[dict[str, Any]]) -> None:
    """AP of each class; of many classes the best and worst have names, and the others are grey."""
    x = _column(evaluations, "step")
    tables = [line.get("per_class") or {} for line in evaluations]
    names = dict.fromkeys(name for table in tables for name in table)
    values = {name: _column([table.get(name) or {} for table in tables], "ap") for name in names}
    defined = [name for name in names if np.isfinite(values[name]).any()]
    ordered = sorted(defined, key=lambda name: -_last(values[name]))
    half = MAX_CLASSES // 2
    named = ordered if len(ordered) <= MAX_CLASSES else ordered[:half] + ordered[-half:]
    others = [name for name in ordered if name not in named]
    for number, name in enumerate(others):
        label = f"{len(others)} other classes" if number == 0 else None
        axes.plot(x, values[name], color="#cfcfcf", linewidth=0.8, zorder=1, label=label)
    some = f": best and worst {half} of {len(ordered)}" if others else " (validation)"
    curves = [Curve(name, x, values[name], color) for name, color in zip(named, COLORS, strict=False)]
    _draw(axes, f"AP per class{some}", curves)
    if others:
        _crop(axes, np.concatenate([values[name] for name in ordered]))


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        legend = axes.legend(handles, labels, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.02))
        for written in legend.get_texts():
            set_font(written)


def _prepare(axes: Axes, last_step: int, steps_per_epoch: int | None) -> None:
    axes.set_xlim(-0.02 * max(1, last_step), 1.02 * max(1, last_step))
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["right"]].set_visible(False)
    if steps_per_epoch:
        per_epoch = float(steps_per_epoch)
        to_epochs: Any = (lambda step: step / per_epoch, lambda epoch: epoch * per_epoch)
        above = axes.secondary_xaxis("top", functions=to_epochs)
        above.xaxis.set_major_locator(MaxNLocator(6, integer=True) if last_step >= steps_per_epoch else MaxNLocator(3))
        above.set_xlabel("epoch")
    else:
        axes.spines[["top"]].set_visible(False)


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


def _last(values: np.ndarray) -> float:
    """The last finite value, or NaN."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else float("nan")


def _figure(value: float) -> str:
    if not np.isfinite(value):
        return "–"
    return f"{value:.3f}" if 0.001 <= abs(value) < 100 or value == 0 else f"{value:.3g}"
