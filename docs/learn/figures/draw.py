"""The figures of the course that need no trained detector: ``python docs/learn/figures/draw.py``.

They are drawn with the library and written beside this script.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from detrs.boxes import inverse_sigmoid, offset_from_box
from detrs.layers.attention import GlobalSelfAttention
from detrs.layers.conditional_attention import point_features
from detrs.layers.deformable_attention import DeformableSelfAttention, on_padded_maps, star
from detrs.layers.initialization import XAVIER
from detrs.layers.neck import centers, padding_at, valid_size
from detrs.layers.position import SinePosition
from detrs.layers.queries import proposal_anchors
from detrs.layers.row_column_attention import AxisAttention, attend
from detrs.ops import ms_deform_attn, ms_deform_attn_fused
from detrs.structures import Pyramid

FOLDER = Path(__file__).resolve().parent
BLUE, ORANGE, GREEN, PURPLE, INK, GRID = "#0072b2", "#d55e00", "#008060", "#6b4a94", "#222222", "#d5dbe1"
COLORS = [BLUE, ORANGE, GREEN, PURPLE, "#56b4e9", "#b98a2f", "#cc3377", "#444444"]
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


def sampling() -> Figure:
    """A point between four cells of the map of chapter 2, and the weights that the operator gives them."""
    height, width, point = 3, 5, (0.34, 0.7)
    value = torch.zeros(1, height * width, 1, 1, requires_grad=True)
    location = torch.tensor(point).view(1, 1, 1, 1, 1, 2)
    ms_deform_attn(value, ((height, width),), location, torch.ones(1, 1, 1, 1, 1)).sum().backward()
    assert value.grad is not None
    weights = value.grad.view(height, width).tolist()
    figure, (axes,) = panels(1, 7.2, 4.5)
    for i in range(height):
        for j in range(width):
            color = ORANGE if weights[i][j] else "#ffffff"
            axes.add_patch(Rectangle((j, i), 1, 1, facecolor=color, alpha=0.15 + weights[i][j], edgecolor="none"))
            axes.plot(j + 0.5, i + 0.5, ".", color=INK, markersize=4)
            axes.text(j + 0.1, i + 0.26, f"{10 * i + j + 1}", fontsize=12, fontweight="bold")
            if weights[i][j]:
                axes.text(j + 0.94, i + 0.93, f"x {weights[i][j]:.2f}", ha="right", fontsize=10)
    for i in range(height + 1):
        axes.plot([0, width], [i, i], color="#7a8ea3", linewidth=0.8)
    for j in range(width + 1):
        axes.plot([j, j], [0, height], color="#7a8ea3", linewidth=0.8)
    x, y = point[0] * width, point[1] * height
    axes.plot([1.5, 2.5, 2.5, 1.5, 1.5], [1.5, 1.5, 2.5, 2.5, 1.5], ":", color=INK, linewidth=1)
    axes.plot(x, y, "o", color=BLUE, markersize=9)
    axes.annotate(
        "(0.34, 0.7)",
        (x, y),
        (0.5, 2.72),
        color=BLUE,
        ha="center",
        va="center",
        arrowprops={"arrowstyle": "-", "color": BLUE},
    )
    axes.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes.set_xticks(range(width + 1), [f"{j / width:g}" for j in range(width + 1)])
    axes.set_yticks(range(height + 1), ["0", "1/3", "2/3", "1"])
    axes.set_xlabel("x of the cells' edges; dots are their centers")
    axes.set_ylabel("y")
    axes.set_frame_on(False)
    return figure


def star_pattern() -> Figure:
    """The initial sampling points of eight heads on one level, and of one head on four levels."""
    offsets = star(num_heads=8, num_levels=4, num_points=4)  # (M, L, P, 2)
    figure, (heads, levels) = panels(2, 9.6, 4.7)
    for head, steps in enumerate(offsets[:, 0].tolist()):
        color = COLORS[head]
        heads.plot([0, steps[-1][0]], [0, steps[-1][1]], color=color, linewidth=1)
        heads.plot(*zip(*steps, strict=True), "o", color=color, markersize=7)
        x, y = (step + 1.1 * (step > 0) - 1.1 * (step < 0) if abs(step) > 1 else step for step in steps[-1])
        heads.text(x, y, f"head {head}", ha="center", va="center", fontsize=9.5)
    heads.set(xlim=(-6, 6), ylim=(6, -6), aspect="equal", xticks=range(-5, 6), yticks=range(-5, 6))
    heads.set_title("Eight heads on one level, in cells")
    for level, stride in enumerate((64, 32, 16, 8)):
        points = (offsets[:, level] * stride).flatten(0, 1).tolist()
        levels.plot(
            *zip(*points, strict=True), "o", color=COLORS[level], markersize=6 - level, label=f"stride {stride}"
        )
    levels.set(xlim=(-300, 300), ylim=(300, -300), aspect="equal")
    levels.set_title("The same on four levels, in pixels")
    levels.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.2)
    for axes in (heads, levels):
        axes.plot(0, 0, "+", color=INK, markersize=12, markeredgewidth=2)
        axes.grid(color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
    return figure


def valid_ratios() -> Figure:
    """Where the center of a padded image lies with and without valid ratios."""
    (height, width), sizes, stride = (96, 160), ((96, 160), (64, 96)), 8
    padding = torch.ones(2, height, width, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        padding[i, :h, :w] = False
    mask = padding_at(padding, (height // stride, width // stride))
    ratio = valid_size(mask) / torch.tensor([width / stride, height / stride])  # (B, 2)
    center = torch.full((2, 1, 2), 0.5)
    located = on_padded_maps(center, ratio[:, None])[:, 0, 0] * torch.tensor([width, height])
    figure, axes = panels(2, 9.6, 3.5)
    for i, (each, (h, w)) in enumerate(zip(axes, sizes, strict=True)):
        each.add_patch(Rectangle((0, 0), width, height, facecolor="#eceff2", edgecolor="#9aa7b4", hatch="///"))
        each.add_patch(Rectangle((0, 0), w, h, facecolor="#fdf3e1", edgecolor="#b98a2f", linewidth=1.5))
        each.set(xlim=(-2, width + 2), ylim=(height + 2, -2), aspect="equal")
        each.set_xticks(range(0, width + 1, 32))
        each.set_yticks(range(0, height + 1, 32))
        each.set_title(f"Image {i}: {h} x {w} in {height} x {width}")
        x, y = located[i].tolist()
        each.plot(x, y, "o", color=GREEN, markersize=9, label="(0.5, 0.5) · valid ratio", linestyle="none")
        if i:
            each.plot(width / 2, height / 2, "X", color=ORANGE, markersize=10, label="(0.5, 0.5)", linestyle="none")
            arrow = {"arrowstyle": "->", "color": ORANGE, "shrinkA": 7, "shrinkB": 7}
            each.annotate("", (width / 2, height / 2), (x, y), arrowprops=arrow)
            each.text(128, 80, "padding", ha="center", color="#5b6875", backgroundcolor="#eceff2")
        each.legend(loc="upper right", framealpha=0.95, edgecolor="#d5dbe1", fontsize=10)
    return figure


def refinement() -> Figure:
    """A correction in logit space for two references, and the anchors of the encoder's tokens."""
    figure, (curve, anchors) = panels(2, 9.6, 3.9)
    z = torch.linspace(-5, 5, 200)
    curve.plot(z, z.sigmoid(), color="#7a8ea3", linewidth=2)
    for reference, color in ((0.5, BLUE), (0.05, ORANGE)):
        start = torch.full((1, 4), reference)
        end = offset_from_box(torch.full((1, 4), 0.5), start)
        (a, b), (low, high) = (inverse_sigmoid(x)[0, 0].item() for x in (start, end)), (start[0, 0], end[0, 0])
        curve.fill_betweenx([low, high], -5, a, color=color, alpha=0.25, linewidth=0)
        curve.plot([-5, a, a], [low, low, 0], color=color, linewidth=1)
        curve.plot([-5, b, b], [high, high, 0], color=color, linewidth=1)
        curve.plot([a, b], [low, high], "o-", color=color, label=f"{low:.2f} to {high:.2f}")
    curve.set(xlim=(-5, 5), ylim=(0, 1), xlabel="logit", ylabel="coordinate of the box")
    curve.set_title("The same correction of 0.5 at two places")
    curve.legend(frameon=False, loc="center right")
    pyramid = replace(pyramid_of(96, 160, 4, "cpu"), shapes=((12, 20), (6, 10), (3, 5)))
    valid = torch.tensor([[[20.0, 12.0], [10.0, 6.0], [5.0, 3.0]]])
    points = centers(pyramid.shapes, valid)
    count = points.shape[1]
    pyramid = replace(
        pyramid,
        tokens=torch.zeros(1, count, 4),
        position=torch.zeros(1, count, 4),
        reference_points=points,
        padding=torch.zeros(1, count, dtype=torch.bool),
    )
    boxes = proposal_anchors(pyramid)[0].sigmoid()[0]
    start = 0
    for level, ((h, w), color) in enumerate(zip(pyramid.shapes, (BLUE, GREEN, ORANGE), strict=True)):
        cells = boxes[start : start + h * w] * torch.tensor([160, 96, 160, 96])
        anchors.plot(*cells[:, :2].T, ".", color=color, markersize=2.5 + 2 * level)
        for cell in ((h // 2) * w + w // 4, (h // 2) * w + 3 * w // 4):
            cx, cy, bw, bh = cells[cell].tolist()
            box = Rectangle((cx - bw / 2, cy - bh / 2), bw, bh, fill=False, edgecolor=color, linewidth=1.8)
            anchors.add_patch(box)
        start += h * w
    anchors.set(xlim=(0, 160), ylim=(96, 0), aspect="equal")
    anchors.set_title("Tokens of three levels, two anchors of each")
    return figure


def family() -> Figure:
    """Attention of one query to the cells of a map, as three detectors of the family compute it."""
    height, width, dim, point = 24, 36, 64, torch.tensor([[[0.62, 0.4]]])
    empty = torch.zeros(1, height, width, dtype=torch.bool)
    keys = SinePosition(dim, shift=0.0)(empty)[0]  # (H, W, C): the row's features, then the column's
    spatial = point_features(point, dim)[0, 0]
    figure, axes = panels(4, 11.5, 2.6)
    rows_only = torch.cat([torch.ones(dim // 2), torch.zeros(dim // 2)])
    for each, title, transform in (
        (axes[0], "Conditional, T = 1", torch.ones(dim)),
        (axes[1], "Conditional, T keeps y", rows_only),
    ):
        weights = ((keys @ (transform * spatial)) / 2).flatten().softmax(0).view(height, width)
        each.imshow(weights, cmap="viridis")
        each.set_title(title)
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    column = (-((x - 0.62 * width) ** 2) / 18).softmax(0)
    row = (-((y - 0.4 * height) ** 2) / 6).softmax(0)
    cells = torch.zeros(1, 1, height, width, height * width)
    cells.view(height * width, -1).fill_diagonal_(1.0)  # the value of a cell is its own one-hot code: out is weights
    mask_x, mask_y = (torch.ones(1, 1, 1, n, dtype=torch.bool) for n in (width, height))
    one = torch.ones(1, 1, 1, 1)
    out = attend(
        AxisAttention(one, column.log().view(1, 1, -1, 1), mask_x),
        AxisAttention(one, row.log().view(1, 1, -1, 1), mask_y),
        cells,
        0.0,
    )
    axes[2].imshow(out.view(height, width), cmap="viridis")
    axes[2].set_title("Anchor: column · row")
    value = torch.zeros(1, height * width, 8, 1, requires_grad=True)
    offsets = star(8, 1, 4)[None, None]
    logits = torch.zeros(1, 1, 8, 1, 4)
    ms_deform_attn_fused(value, ((height, width),), offsets, logits, point[:, :, None]).sum().backward()
    assert value.grad is not None
    axes[3].imshow(value.grad.sum((0, 2, 3)).view(height, width), cmap="viridis")
    axes[3].set_title("Deformable: points")
    for each in axes:
        each.plot(0.62 * width - 0.5, 0.4 * height - 0.5, "+", color="white", markersize=9, markeredgewidth=2)
        each.set_xticks([])
        each.set_yticks([])
    return figure


DRAWN: dict[str, Callable[[], Figure]] = {
    "cost.svg": cost,
    "sampling.svg": sampling,
    "star.svg": star_pattern,
    "valid_ratios.svg": valid_ratios,
    "refinement.svg": refinement,
    "family.svg": family,
}
"""Name of the file -> function that draws it."""


def main(figures: Mapping[str, Callable[[], Figure]]) -> None:
    """Draw and write all of ``figures``."""
    with matplotlib.rc_context(STYLE):
        for name, draw in figures.items():
            save(draw(), name)


def save(figure: Figure, name: str) -> None:
    """Write a figure beside this script; the same every time."""
    kind, file = name.rpartition(".")[2], io.BytesIO()
    options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"pil_kwargs": {"quality": 88}}
    figure.savefig(file, format=kind, dpi=130, **options)
    (FOLDER / name).write_bytes(file.getvalue())


if __name__ == "__main__":
    main(DRAWN)
