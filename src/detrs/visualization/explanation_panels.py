"""The panels of the figure of an explanation: one image with what a layer samples, attends to or pools for a query."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from torch import Tensor

from detrs.boxes import cxcywh_to_xyxy
from detrs.explanation.views import AttentionView, PointsView, RegionView, SamplingView, View
from detrs.visualization.draw import OKABE_ITO
from detrs.visualization.fonts import file_for, legible

Color = tuple[float, float, float]

HEAT = "inferno"
"""Color map of responses, attention and gradients: bright is large."""
POINTS = "plasma"
"""Color map of points, of which the smallest must be visible on dark images, too."""
DIMMED = 0.55
"""Brightness of the image under heat maps, which also has less color."""
SHADED = 0.8
"""Brightness of the image under points."""
SMALL = 8
"""Font size in points."""


class Window(NamedTuple):
    """The part of an image that a panel shows, in pixels."""

    left: float
    top: float
    right: float
    bottom: float


def whole(image: Tensor) -> Window:
    """The whole image (3, H, W)."""
    return Window(0, 0, image.shape[2], image.shape[1])


def around(boxes_xyxy: Tensor, image: Tensor, margin: float = 1.8, smallest: float = 0.3) -> Window:
    """A window with the proportions of the image around boxes (N, 4) in pixels.

    Args:
        boxes_xyxy: in pixels.
        image: (3, H, W).
        margin: side of the window, relative to that of the boxes.
        smallest: side of the window, relative to that of the image.
    """
    height, width = image.shape[1:]
    limits = boxes_xyxy.new_tensor([width, height])
    corners = boxes_xyxy.nan_to_num(0.0).unflatten(1, (2, 2)).clamp(min=0).minimum(limits)
    low, high = corners[:, 0].amin(0), corners[:, 1].amax(0)
    share = min(1.0, max(smallest, margin * float(((high - low) / limits).amax())))
    side = share * limits
    left, top = ((low + high - side) / 2).clamp(min=0).minimum(limits - side).tolist()
    return Window(left, top, left + float(side[0]), top + float(side[1]))


def show_image(axes: Axes, image: Tensor, window: Window, brightness: float = 1.0) -> None:
    """The image (3, H, W) without axes; below full brightness also without colors."""
    pixels = image.permute(1, 2, 0).numpy().astype(np.float32) / 255
    if brightness < 1:
        gray = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        pixels = brightness * ((1 - brightness) * gray[..., None] + brightness * pixels)
    height, width = image.shape[1:]
    axes.imshow(pixels, extent=(0, width, height, 0), interpolation="bicubic")
    axes.set_xlim(window.left, window.right)
    axes.set_ylim(window.bottom, window.top)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def show_box(axes: Axes, box: Tensor, image: Tensor, color: Color, width: float = 2.0, style: Any = "-") -> None:
    """A box, cxcywh in [0, 1] of the image; a point (x, y) as a cross; nothing for a query without reference."""
    if len(box) == 2:
        x, y = (box * scale_of(image, 2)).tolist()
        for line, edge in ((width + 1.5, "black"), (width, color)):
            axes.plot([x], [y], "+", color=edge, markersize=11, markeredgewidth=line)
    elif len(box) == 4:
        left, top, right, bottom = pixels_of(box[None], image)[0].tolist()
        for line, edge in ((width + 1.2, "black"), (width, color)):
            outline = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=edge, linewidth=line)
            outline.set_linestyle(style)
            outline.set_joinstyle("miter")
            axes.add_patch(outline)


def show_view(axes: Axes, view: View, row: int, image: Tensor) -> None:
    """What a view has of its query ``row``, over the image."""
    if isinstance(view, SamplingView):
        show_samples(axes, view.locations[row].flatten(0, 2), view.weights[row].flatten(), image)
    elif isinstance(view, AttentionView):
        show_heat(axes, view.weights[row].mean(0), whole(image), image)
    elif isinstance(view, RegionView) and view.responses is not None:
        response = view.responses[row]
        low, high = response.amin(), response.amax()
        window = Window(*pixels_of(view.boxes[row][None], image)[0].tolist())
        show_heat(axes, (response - low) / (high - low).clamp(min=1e-12), window, image, smooth=False)


def show_samples(axes: Axes, locations: Tensor, weights: Tensor, image: Tensor) -> None:
    """Points (N, 2) colored by their weights (N,): the largest on top."""
    visible = weights > 0
    order = weights[visible].argsort()
    points = (locations[visible][order] * scale_of(image, 2)).numpy()
    share = (weights[visible][order] / weights.amax().clamp(min=1e-12)).numpy()
    style: Any = {"cmap": POINTS, "vmin": -0.35, "vmax": 1.0, "edgecolors": "black", "linewidths": 0.4}
    size = axes.bbox.width / axes.figure.dpi  # of the panel in inches
    axes.scatter(
        points[:, 0], points[:, 1], s=(3 + 14 * share) * max(size, 1.0), c=share, zorder=3, clip_on=True, **style
    )


def show_heat(axes: Axes, heat: Tensor, window: Window, image: Tensor, *, smooth: bool = True) -> None:
    """A map (h, w), relative to its maximum, over a window of the image; small values are transparent."""
    share = heat.float() / heat.amax().clamp(min=1e-12)
    mode: Any = {"mode": "bilinear", "align_corners": False} if smooth else {"mode": "nearest"}
    height, width = heat.shape
    factor = max(1, round(256 / max(height, width)))
    enlarged = torch.nn.functional.interpolate(share[None, None], (height * factor, width * factor), **mode)[0, 0]
    colors = colormaps[HEAT](0.15 + 0.85 * enlarged.numpy())
    colors[..., 3] = (0.15 + 0.75 * enlarged.numpy() ** 0.7) if smooth else 0.65
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(colors, extent=(window.left, window.right, window.bottom, window.top), interpolation="nearest")
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def heat_color(share: float) -> Color:
    """Of a value in [0, 1]."""
    red, green, blue, _ = colormaps[POINTS](share)
    return red, green, blue


def show_points(axes: Axes, view: PointsView, image: Tensor) -> None:
    """The points of a backbone, one color per group."""
    for group, points in enumerate(view.points):
        x, y = (points.flatten(0, 1) * scale_of(image, 2)).T.numpy()
        color = np.array(OKABE_ITO[group % len(OKABE_ITO)]) / 255
        axes.scatter(x, y, s=14, color=color, edgecolors="black", linewidths=0.4, zorder=3, clip_on=True)


def show_scores(axes: Axes, names: Sequence[str], scores: Sequence[float], color: Color) -> None:
    """The highest scores of a query as bars; the first is the detection's class."""
    rows = np.arange(len(names))
    axes.barh(rows, scores, height=0.3, color=[color] + ["#9a9a9a"] * (len(names) - 1), edgecolor="#404040")
    axes.set_xlim(0, 1)
    axes.set_ylim(max(len(names), 4) - 0.6, -0.85)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=SMALL)
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)
    for row, name, score in zip(rows, names, scores, strict=True):
        text = f"{shortened(legible(name), 18)}  {score:.2f}"
        axes.text(0.01, row - 0.19, text, fontsize=SMALL, va="bottom", parse_math=False, fontproperties=font(text))


def font(text: str, size: float = SMALL, weight: str = "normal") -> FontProperties:
    """The font that has the characters of ``text``; bold only in the default font."""
    path = file_for(text)
    default = path == file_for("a")
    return FontProperties(size=size, weight=weight) if default else FontProperties(fname=path, size=size)


def shortened(text: str, length: int) -> str:
    """``text`` with at most ``length`` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def scale_of(image: Tensor, count: int) -> Tensor:
    """Pixels per unit of the coordinates (x, y), or (x, y, x, y)."""
    return torch.tensor([image.shape[2], image.shape[1]], dtype=torch.float32).repeat(count // 2)


def pixels_of(boxes: Tensor, image: Tensor) -> Tensor:
    """Boxes (N, 4), cxcywh in [0, 1], as xyxy in pixels."""
    return cxcywh_to_xyxy(boxes.float()) * scale_of(image, 4)
