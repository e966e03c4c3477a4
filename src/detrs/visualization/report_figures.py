"""The figures of a report as PNG files, for slides and papers; the page draws its own."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from detrs.visualization.draw import OKABE_ITO
from detrs.visualization.fonts import label_of, set_font

ORANGE, SKY, GREEN, _, BLUE, RED, PURPLE, _ = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in OKABE_ITO)
COLORS = (BLUE, ORANGE, GREEN, PURPLE)
GREY = "#8a8a8a"
NUMBERED = 20
"""Largest number of classes of a confusion matrix whose names and numbers are printed."""
COLORED = 3
"""Classes whose curves are colored."""


def figures(diagnosis: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """File name and figure of everything that is known.

    Args:
        diagnosis: the part of ``report.json`` with this name.
    """
    draw: dict[str, tuple[Callable[[Axes, Mapping[str, Any]], None], tuple[float, float]]] = {
        "pr_curve.png": (_precision, (6.4, 5)),
        "f1_curve.png": (_f1, (6.4, 5)),
        "confusion_matrix.png": (_confusion, _matrix_size(len(diagnosis["confusion"]["names"]))),
        "errors.png": (_errors, (7.5, 4.2)),
        "calibration.png": (_calibration, (5.6, 5)),
    }
    if len(diagnosis["layers"]) > 1:
        draw["layers.png"] = (_layers, (6.4, 4.2))
    for name, (plot, size) in draw.items():
        figure = Figure(figsize=size, dpi=140, layout="constrained")  # pyplot is not thread-safe
        FigureCanvasAgg(figure)
        plot(figure.subplots(), diagnosis)
        for written in figure.findobj(Text):
            set_font(written)
        yield name, figure


def _matrix_size(classes: int) -> tuple[float, float]:
    side = min(12.0, max(4.6, 2.4 + 0.62 * (classes + 1) if classes <= NUMBERED else 10.0))
    return side + 0.8, side


def _unit(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x, ylabel=y)
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _curves(axes: Axes, diagnosis: Mapping[str, Any], kind: str, over: str, whole: str) -> None:
    curves, classes = diagnosis["curves"], diagnosis["per_class"]
    names = sorted((name for name in classes if classes[name]["num_objects"]), key=lambda n: -classes[n]["num_objects"])
    for name in names[COLORED:]:
        axes.plot(curves[over], curves[kind][name], color=GREY, linewidth=0.6, alpha=0.5)
    for name, color in zip(names[:COLORED] if len(names) > 1 else (), COLORS[1:], strict=False):
        axes.plot(curves[over], curves[kind][name], color=color, linewidth=1.4, label=label_of(name))
    if curves[kind][""]:
        axes.plot(curves[over], curves[kind][""], color=BLUE, linewidth=2.6, label=whole)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[::-1], labels[::-1], frameon=False, loc="best", fontsize=9)


def _precision(axes: Axes, diagnosis: Mapping[str, Any]) -> None:
    _unit(axes, "Precision over recall, IoU 0.5", "recall", "precision")
    _curves(axes, diagnosis, "precision", "recall", "mean over classes")


def _f1(axes: Axes, diagnosis: Mapping[str, Any]) -> None:
    _unit(axes, "F1 over the threshold, IoU 0.5", "threshold", "F1")
    threshold, best = diagnosis["threshold"], diagnosis["best_threshold"]
    axes.axvline(threshold, color=RED, linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
    if best is not None and best != threshold:
        axes.axvline(best, color=GREY, linestyle=":", linewidth=1, label=f"best F1 {best:g}")
    _curves(axes, diagnosis, "f1", "threshold", "all detections")


def _confusion(axes: Axes, diagnosis: Mapping[str, Any]) -> None:
    names = [*diagnosis["confusion"]["names"], None]
    place = {name: index for index, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)))
    for each in diagnosis["confusion"]["entries"]:
        matrix[place[each["truth"]], place[each["detected"]]] = each["count"]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="detected", ylabel="ground truth")
    axes.set_title(f"Confusion matrix at threshold {diagnosis['threshold']:g}", loc="left")
    axes.figure.colorbar(image, ax=axes, fraction=0.04, label="share of the row")
    if len(names) <= NUMBERED + 1:
        ticks = [label_of(name) if name is not None else "background" for name in names]
        axes.set_xticks(range(len(names)), ticks, rotation=40, ha="right")
        axes.set_yticks(range(len(names)), ticks)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                color = "white" if shares[row, column] > 0.55 else "black"
                axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=color, fontsize=9)


def _errors(axes: Axes, diagnosis: Mapping[str, Any]) -> None:
    errors = diagnosis["errors"]
    counts = {**errors["wrong"], "not found: covered": errors["covered"], "not found: missed": errors["missed"]}
    colors = [RED] * len(errors["wrong"]) + [BLUE] * 2
    bars = axes.barh(list(counts), list(counts.values()), color=colors)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("number")
    axes.set_title(f"Errors at threshold {diagnosis['threshold']:g}, IoU 0.5", loc="left")


def _calibration(axes: Axes, diagnosis: Mapping[str, Any]) -> None:
    found = diagnosis["calibration"]
    bins = [each for each in found["bins"] if each["count"]]
    _unit(axes, "Calibration, IoU 0.5", "score", "share of right detections")
    axes.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1)
    axes.plot([each["score"] for each in bins], [each["precision"] for each in bins], color=BLUE, marker="o")
    if found["expected_error"] is not None:
        axes.text(0.03, 0.95, f"expected calibration error {found['expected_error']:.3f}", color=GREY)


def _layers(axes: Axes, diagnosis: Mapping[str, Any]) -> None:
    layers = diagnosis["layers"]
    for key, label, color in (("ap50", "AP50", ORANGE), ("ap", "AP", BLUE)):
        values = [np.nan if each[key] is None else each[key] for each in layers]
        axes.plot([each["layer"] for each in layers], values, color=color, marker="o", label=label)
    axes.set(xlabel="decoder layer", ylabel="AP", ylim=(0, None))
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title("AP of each decoder layer", loc="left")
