"""AP of every run as a figure: best and last evaluation of each seed, and their mean, per detector."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from page import Line

from detrs.visualization.curves import BLUE, ORANGE

KINDS = {"best": (BLUE, "o", -0.14), "last": (ORANGE, "s", 0.14)}
"""Evaluation -> color, marker, and place beside the line of the detector."""


def accuracy_figure(runs: Sequence[Line], title: str, path: Path) -> None:
    """Draws one row per detector; nothing without runs.

    Args:
        runs: finished runs with one setting.
        title: what they have in common.
        path: file to write, .svg or .png.
    """
    if not runs:
        return
    names = list(dict.fromkeys(run["subject"] for run in runs))
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(names)), dpi=130, layout="constrained")  # not pyplot: no global state
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, fontsize=9, color="#444444")
    for kind, (color, marker, offset) in KINDS.items():
        for row, name in enumerate(names):
            aps = [run[kind]["ap"] or 0.0 for run in runs if run["subject"] == name]
            axes.plot(aps, [row + offset] * len(aps), marker, color=color, markersize=5, alpha=0.6)
            axes.plot(
                [statistics.fmean(aps)] * 2, [row + offset - 0.12, row + offset + 0.12], color=color, linewidth=2.2
            )
        axes.plot([], [], marker, color=color, label=f"{kind} evaluation of a run")
    axes.plot([], [], color="#666666", linewidth=2.2, label="mean over seeds")
    axes.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), yticklabels=names, xlabel="AP")
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": "detrs"}):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
