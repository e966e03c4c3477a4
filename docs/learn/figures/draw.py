"""The figures of the course, drawn with the library: ``python docs/learn/figures/draw.py [NAME ...]``.

Each function of ``FIGURES`` returns a matplotlib figure. The files are written beside this script.
"""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detrs.layers.attention import GlobalSelfAttention
from detrs.layers.deformable_attention import DeformableSelfAttention
from detrs.layers.initialization import XAVIER
from detrs.structures import Pyramid

FOLDER = Path(__file__).resolve().parent
BLUE, ORANGE, GREEN, PURPLE, INK, GRID = "#0072b2", "#d55e00", "#008060", "#6b4a94", "#222222", "#d5dbe1"
STYLE = {
    "font.size": 11,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": "#7a8ea3",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.labelcolor": INK,
    "figure.facecolor": "white",
    "svg.hashsalt": "detrs",
}


def panels(
    number: int, width: float = 9.6, height: float = 3.6, **ratios: Sequence[float]
) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, number, squeeze=False, **ratios)
    return figure, list(axes[0])


def pyramid_of(height: int, width: int, dim: int, device: str) -> Pyramid:
    """A pyramid of four levels without content for an image of this size."""
    shapes = tuple((-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64))
    tokens = sum(h * w for h, w in shapes)
    return Pyramid(
        tokens=torch.zeros(1, tokens, dim, device=device),
        position=torch.zeros(1, tokens, dim, device=device),
        reference_points=torch.zeros(1, tokens, 2, device=device),
        padding=torch.zeros(1, tokens, dtype=torch.bool, device=device),
        shapes=shapes,
        valid_ratio=torch.ones(1, 4, 2, device=device),
        image_sizes=torch.tensor([[height, width]], device=device),
    )


def cost() -> Figure:
    """Multiply-adds and stored bytes of one layer for squares of different size."""
    sides = [256, 384, 512, 640, 800, 1024, 1344]
    with torch.device("meta"):
        layers: list[tuple[str, str, nn.Module]] = [
            ("global attention", BLUE, GlobalSelfAttention(256, 8, 0.0, XAVIER)),
            ("deformable attention", ORANGE, DeformableSelfAttention(256, 8, 4, 4)),
        ]
    figure, (work, memory) = panels(2)
    for name, color, layer in layers:
        counts, stored = [], []
        for side in sides:
            pyramid = pyramid_of(side, side, 256, "meta")
            counter = FlopCounterMode(display=False)
            with counter, torch.no_grad():
                layer(pyramid)
            tokens, samples = pyramid.tokens.shape[1], 8 * 4 * 4
            deformable = isinstance(layer, DeformableSelfAttention)
            # On "meta", plain PyTorch samples, which the counter omits: four corners of C / M channels.
            counts.append(counter.get_total_flops() / 2 + deformable * 4 * tokens * samples * 256 / 8)
            # Weights of all pairs, against offsets, logits and the projected values.
            stored.append(4 * tokens * (samples * 3 + 256) if deformable else 4 * 8 * tokens**2)
        for axes, values, unit in ((work, counts, 1e9), (memory, stored, 2**30)):
            axes.loglog(sides, [value / unit for value in values], "o-", color=color, label=name, markersize=4.5)
    for axes, title in (
        (work, "Multiply-adds of one encoder layer, in G"),
        (memory, "What the attention stores, in GiB"),
    ):
        axes.set_title(title)
        axes.set_xlabel("side of the image in pixels, four levels")
        axes.set_xticks(sides, [str(side) for side in sides])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(color=GRID, linewidth=0.7)
    work.legend(frameon=False, loc="upper left")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "cost.svg": cost,
}
"""Name of the file -> function that draws it."""


def main(names: Sequence[str]) -> None:
    with matplotlib.rc_context(STYLE):
        for name in names or FIGURES:
            file = io.BytesIO()
            FIGURES[name]().savefig(file, format=name.rpartition(".")[2], metadata={"Date": None})
            (FOLDER / name).write_bytes(file.getvalue())


if __name__ == "__main__":
    main(sys.argv[1:])
