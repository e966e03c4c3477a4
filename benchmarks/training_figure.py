"""The curves of several runs as one figure: AP over epochs, and AP over seconds of training."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from page import Line

from detrs.visualization.curves import BLACK, BLUE, GREEN, GREY, OLIVE, ORANGE, PURPLE, RED, SKY

BROWN, PINK = "#8c564b", "#e377c2"
STYLES = {
    "faster-rcnn-tiny": (GREY, "X"),
    "detr-tiny": (BLUE, "o"),
    "conditional-detr-tiny": (ORANGE, "s"),
    "anchor-detr-tiny": (GREEN, "^"),
    "deformable-detr-tiny": (RED, "D"),
    "deformable-detr-dat-tiny": (PURPLE, "P"),
    "efficient-detr-tiny": (SKY, "v"),
    "sparse-rcnn-tiny": (PINK, "*"),
    "dynamic-detr-tiny": (BROWN, "h"),
    "dab-detr-tiny": (OLIVE, "<"),
    "dn-detr-tiny": (BLACK, ">"),
    "dab-deformable-detr-tiny": ("#7a9a01", "p"),
    "dn-deformable-detr-tiny": ("#00637c", "d"),
    "dino-tiny": ("#8b0000", "H"),
}
"""Color and marker of a preset: the same in every figure."""
OTHERS = (("#bcbd22", ">"), ("#17becf", "<"))
GAP = 0.065
"""Least distance between two names, as a share of the height of a panel."""


def training_figure(runs: Sequence[Line], title: str, path: Path) -> None:
    """Draws one curve per run, its name at the right of each panel.

    Args:
        runs: lines of benchmarks/results/training.jsonl.
        title: what they have in common.
        path: file to write, .svg or .png.
    """
    figure = Figure(figsize=(11, 4.6), dpi=130, layout="constrained")  # not pyplot: no global state
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, color="#444444")
    others = iter(OTHERS * len(runs))
    styles = [STYLES.get(run["preset"]) or next(others) for run in runs]
    top = max((point["ap"] or 0.0 for run in runs for point in run["points"]), default=0.0)
    for axes, key, label in zip(
        figure.subplots(1, 2, sharey=True), ("epoch", "seconds"), ("epochs", "seconds of training"), strict=True
    ):
        last = max(point[key] for run in runs for point in run["points"])
        axes.set(xlim=(0, 1.02 * last), ylim=(0, 1.08 * max(top, 0.01)), xlabel=label)
        axes.set_title(f"AP over {label}", fontsize=11, fontweight="bold")
        axes.tick_params(labelleft=True)
        axes.grid(color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        ends = []
        for run, (color, marker) in zip(runs, styles, strict=True):
            x = np.array([point[key] for point in run["points"]])
            y = np.array([np.nan if point["ap"] is None else point["ap"] for point in run["points"]])
            axes.plot(x, y, color=color, marker=marker, markersize=4, linewidth=1.6)
            known = np.flatnonzero(np.isfinite(y))
            ends.append((float(x[-1]), float(y[known[-1]]) if len(known) else 0.0))
        _name(axes, runs, styles, ends)
    with matplotlib.rc_context({"svg.hashsalt": "detrs"}):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _name(
    axes: Axes,
    runs: Sequence[Line],
    styles: Sequence[tuple[str, str]],
    ends: Sequence[tuple[float, float]],
) -> None:
    """Names beside the panel at the height of the ends of their curves, moved apart, and a thin line to each."""
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    for run, (color, marker), (x, y), height in zip(
        runs, styles, ends, apart([y / top for _, y in ends], GAP), strict=True
    ):
        axes.plot(
            [x, right, 1.03 * right], [y, y, height * top], color=color, linewidth=0.8, linestyle=":", clip_on=False
        )
        axes.plot(1.045 * right, height * top, color=color, marker=marker, markersize=5, clip_on=False)
        name = run["preset"] if run["finished"] else f"{run['preset']} (interrupted)"
        axes.annotate(
            name,
            (1.045 * right, height * top),
            (6, 0),
            textcoords="offset points",
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in [0, 1], the same order, at least ``gap`` from each other, and as near to the old ones as may be."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    blocks: list[tuple[list[int], float]] = []  # members from below, height of their middle
    for index in order:
        members, middle = [index], heights[index]
        while blocks and middle - blocks[-1][1] < gap * (len(members) + len(blocks[-1][0])) / 2:
            below, center = blocks.pop()
            middle = (middle * len(members) + center * len(below)) / (len(members) + len(below))
            members = below + members
        blocks.append((members, max(middle, gap * (len(members) - 1) / 2)))
    placed = {i: middle + gap * (k - (len(ms) - 1) / 2) for ms, middle in blocks for k, i in enumerate(ms)}
    return [placed[index] for index in range(len(heights))]
