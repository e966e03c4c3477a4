"""The figure of an explanation, for talks and papers: what happened in each layer for the best detections of an image.

On the left, the image with all detections, and what the backbone and the encoder sampled. On the right, one row per
detection: each decoder layer with the reference before it (dashed), the box after it, and its sampling points by
attention weight, its attention or its filters' responses; then the scores of the best classes and, if computed, the
gradients.
"""

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from detrs.boxes import xyxy_to_cxcywh
from detrs.explanation.trace import duplicates_of, runners_up
from detrs.explanation.views import (
    AttentionView,
    Explanation,
    Gradients,
    PointsView,
    RegionView,
    SamplingView,
    View,
)
from detrs.visualization import explanation_panels as panels
from detrs.visualization.draw import class_color, draw_detections
from detrs.visualization.explanation_panels import DIMMED, SHADED, SMALL, Color, Window
from detrs.visualization.fonts import legible

WIDTH = 9.0
"""Of the rows of detections in inches."""
PANEL_WIDTHS = (1.3, 2.4)
"""Smallest and largest width of a panel in inches."""
IMAGE_WIDTHS = (3.2, 5.2)
"""The same of the image with all detections."""
DPI = 120
MAX_DETECTIONS = 4
"""Rows: the detections with the highest scores."""
MAX_LAYERS = 4
"""Decoder layers that are shown; of more, some between the first and the last are left out."""
MAX_PROPOSALS = 50
TITLE = 11
"""Font size in points."""
CHARACTER = 0.105
"""Width of a character of the title in inches; the title is wrapped."""


class Answer(NamedTuple):
    """A detection and its query."""

    number: int
    """Of the detection, from 0."""
    query: int
    label: int
    score: float
    color: Color


def figure(explanation: Explanation, max_detections: int = MAX_DETECTIONS) -> Figure:
    """The figure; pyplot is not involved, so nothing is displayed or kept open."""
    answers = answers_of(explanation)[:max_detections]
    layers, others = shown_layers(explanation), overview(explanation)
    columns = len(layers) + 1 + (2 if explanation.gradients else 0)
    height, width = explanation.image.shape[1:]
    aspect = min(max(height / width, 0.4), 2.0)
    panel = min(max(WIDTH / columns, PANEL_WIDTHS[0]), PANEL_WIDTHS[1])  # widths and heights in inches
    rows_height = len(answers) * (panel * aspect + 0.42)
    title_height, count = 0.35, 1 + len(others)
    left = min(max((rows_height / count - title_height) / aspect, IMAGE_WIDTHS[0]), IMAGE_WIDTHS[1])
    right = panel * columns + 0.4 if answers else 0.0
    total = max(rows_height, count * (left * aspect + title_height))
    engine = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.01, hspace=0.01)
    title = wrap(heading(explanation, len(answers)), max(8, int((left + right) / CHARACTER)))
    margin = (0.7 if answers else 0.4) + 0.22 * (len(title) - 1)
    sheet = Figure(figsize=(left + right, total + margin), dpi=DPI, layout=engine)
    FigureCanvasAgg(sheet)  # pyplot is not thread-safe
    parts = sheet.subfigures(1, 2 if answers else 1, width_ratios=[left, right] if answers else None, squeeze=False)[0]
    draw_overview(parts[0], explanation, others)
    if answers:
        grid = parts[1].subplots(len(answers), columns, squeeze=False)
        for axes, answer in zip(grid, answers, strict=True):
            draw_answer(axes, explanation, answer, layers)
    sheet.suptitle("\n".join(title), fontsize=TITLE, fontweight="bold", parse_math=False)
    sheet.supxlabel(legend(explanation), fontsize=SMALL + 1, color="#404040")
    return sheet


def layers_figure(explanation: Explanation, detections: Sequence[int], width: float = WIDTH) -> Figure:
    """Only the decoder layers of some detections, a row each: small enough for a page of text.

    Args:
        explanation: of an image.
        detections: indices of detections.
        width: in inches.
    """
    answers = answers_of(explanation)
    layers = shown_layers(explanation)
    aspect = explanation.image.shape[1] / explanation.image.shape[2]
    panel = (width - 0.3) / len(layers)
    engine = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.005, hspace=0.005)
    sheet = Figure(figsize=(width, len(detections) * (panel * aspect + 0.3)), dpi=DPI, layout=engine)
    FigureCanvasAgg(sheet)
    grid = sheet.subplots(len(detections), len(layers), squeeze=False)
    for axes, number in zip(grid, detections, strict=True):
        draw_layers(axes, explanation, answers[number], layers)
    return sheet


def answers_of(explanation: Explanation) -> list[Answer]:
    """All detections, best first."""
    found = explanation.detections
    return [
        Answer(i, query, label, score, color_of(label))
        for i, (query, label, score) in enumerate(
            zip(explanation.queries, found.labels.tolist(), found.scores.tolist(), strict=True)
        )
    ]


def color_of(label: int) -> Color:
    """Of a class, as in the drawn detections, in [0, 1]."""
    red, green, blue = class_color(label)
    return red / 255, green / 255, blue / 255


def heading(explanation: Explanation, rows: int) -> str:
    """Detector, image and number of detections."""
    count = len(explanation.queries)
    name = f", {Path(explanation.source).name}" if explanation.source else ""
    best = f", of which the best {rows} are explained" if rows < count else ""
    plural = "detection" if count == 1 else "detections"
    return legible(
        f"{explanation.detector}{name}: {count} {plural} with a score of at least {explanation.threshold:.2g}{best}"
    )


def legend(explanation: Explanation) -> str:
    """What the marks mean, for the kinds of views that there are."""
    if not explanation.queries:
        return ""
    kinds = [type(view) for view in explanation.views if view.stage == "decoder"]
    marks = []
    if explanation.trace[0].reference.shape[1]:
        what = {2: "cross: reference point", 4: "dashed: reference box"}[explanation.trace[0].reference.shape[1]]
        marks.append(f"{'dashed: proposal' if explanation.suppressed is not None else what} before the layer")
    marks.append("solid: box after the layer, with the score of the class above")
    if SamplingView in kinds:
        marks.append("points: sampling locations, brighter and larger with a larger attention weight")
    if AttentionView in kinds:
        marks.append("bright: large attention weight (mean over the heads)")
    if any(isinstance(view, RegionView) and view.responses is not None for view in explanation.views):
        marks.append("bright cells: strong response of the dynamic filters")
    if explanation.suppressed is not None:
        marks.append("thin: boxes that non-maximum suppression removed")
    return "   ·   ".join(marks)


def overview(explanation: Explanation) -> list[View]:
    """Views below the image: the last ones of the backbone, the last one of the encoder, and proposals."""
    views = explanation.views
    points = [view for view in views if isinstance(view, PointsView)]
    encoder = [view for view in views if view.stage == "encoder" and isinstance(view, SamplingView | AttentionView)]
    proposals = [view for view in views if isinstance(view, RegionView) and view.objectness is not None]
    return [*points[-2:], *(encoder[-1:] if explanation.queries else []), *proposals]


def shown_layers(explanation: Explanation) -> list[int]:
    """Indices of the decoder layers that are shown: all if they fit, always the first and the last."""
    count = len(explanation.trace)
    if count <= MAX_LAYERS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (MAX_LAYERS - 1)) for i in range(MAX_LAYERS)})


def draw_overview(part: SubFigure, explanation: Explanation, views: list[View]) -> None:
    """The image with all detections, and the views of backbone, encoder and proposals."""
    image = explanation.image
    first, *others = part.subplots(1 + len(views), 1, squeeze=False)[:, 0]
    drawn = draw_detections(image, explanation.detections, explanation.threshold, min_size=900)
    first.imshow(drawn, interpolation="antialiased")
    first.axis("off")
    first.set_title("detections", fontsize=TITLE - 2)
    for axes in (first, *others):
        axes.set_anchor("N")
    for axes, view in zip(others, views, strict=True):
        panels.show_image(axes, image, panels.whole(image), min(brightness([view]), SHADED))
        if isinstance(view, PointsView):
            panels.show_points(axes, view, image)
            name = ".".join(view.name.split(".")[-4:])
            axes.set_title(f"{name}: points of {len(view.points)} groups", fontsize=TITLE - 2)
        elif isinstance(view, RegionView):
            draw_proposals(axes, view, image)
        else:
            draw_encoder(axes, explanation, view)


def draw_proposals(axes: Axes, view: RegionView, image: Tensor) -> None:
    """The proposals with the highest objectness."""
    assert view.objectness is not None
    objectness, best = view.objectness.topk(min(MAX_PROPOSALS, len(view.boxes)))
    for score, box in reversed(list(zip(objectness.tolist(), view.boxes[best], strict=True))):
        panels.show_box(axes, box, image, panels.heat_color(score), 1.0)
    title = f"the best {len(best)} proposals, bright: high objectness"
    axes.set_title(title, fontsize=TITLE - 2)


def draw_encoder(axes: Axes, explanation: Explanation, view: View) -> None:
    """What the token at the center of the best detection samples or attends to."""
    assert isinstance(view, SamplingView | AttentionView)
    image, box = explanation.image, explanation.trace[-1].boxes[explanation.queries[0]]
    x, y = box[:2].clamp(0, 1 - 1e-6).tolist()
    # the grid whose cells are nearest to a third of the box; later grids are coarser
    starts = [sum(h * w for h, w in view.grids[:i]) for i in range(len(view.grids))]
    level = min(range(len(view.grids)), key=lambda i: abs(1 / view.grids[i][0] - float(box[3]) / 3))
    rows, columns = view.grids[level]
    token = starts[level] + int(y * rows) * columns + int(x * columns)
    panels.show_view(axes, view, token, image)
    center = torch.tensor([(int(x * columns) + 0.5) / columns, (int(y * rows) + 0.5) / rows])
    panels.show_box(axes, center, image, (1.0, 1.0, 1.0))
    title = f"encoder, layer {view.layer + 1}: token at the cross"
    axes.set_title(title, fontsize=TITLE - 2)


def draw_answer(axes: Sequence[Axes], explanation: Explanation, answer: Answer, layers: list[int]) -> None:
    """One detection: its layers, scores and gradients."""
    window = draw_layers(axes, explanation, answer, layers)
    best = explanation.trace[-1]
    names = [(answer.label, answer.score), *runners_up(best, answer.query, answer.label, 3)]
    scores = axes[len(layers)]
    panels.show_scores(scores, [explanation.classes.names[i] for i, _ in names], [s for _, s in names], answer.color)
    scores.set_box_aspect((window.bottom - window.top) / (window.right - window.left))
    scores.set_title("class scores", fontsize=TITLE - 2)
    gradients = [each for each in explanation.gradients if each.detection == answer.number]
    for each, name in zip(axes[len(layers) + 1 :], ("score", "box"), strict=False):
        each.axis("off")
        for found in gradients:
            draw_gradient(each, explanation, answer, found, name, window)


def draw_layers(axes: Sequence[Axes], explanation: Explanation, answer: Answer, layers: list[int]) -> Window:
    """The layers of a detection, with its class and query beside them.

    Returns:
        The part of the image that is shown.
    """
    window = window_of(explanation, answer)
    for each, layer in zip(axes, layers, strict=False):
        draw_layer(each, explanation, answer, layer, window)
    number = f"{answer.number + 1}: {panels.shortened(legible(explanation.classes.names[answer.label]), 24)}"
    text = f"{number}, {'proposal' if explanation.suppressed is not None else 'query'} {answer.query}"
    axes[0].set_ylabel(text, fontproperties=panels.font(text, SMALL + 1, "bold"), parse_math=False)
    return window


def draw_layer(axes: Axes, explanation: Explanation, answer: Answer, layer: int, window: Window) -> None:
    """A decoder layer."""
    image, trace = explanation.image, explanation.trace[layer]
    views = [
        view
        for view in explanation.views
        if not isinstance(view, PointsView) and view.stage == "decoder" and view.layer == layer
        if answer.query in view.queries
    ]
    panels.show_image(axes, image, window, brightness(views))
    title = f"layer {layer + 1}: {trace.scores[answer.query, answer.label]:.2f}"
    for view in views:
        row = int((view.queries == answer.query).nonzero()[0, 0])
        panels.show_view(axes, view, row, image)
        if isinstance(view, RegionView) and view.objectness is not None:
            title = f"objectness {float(view.objectness[row]):.2f}, score {answer.score:.2f}"
    if explanation.suppressed is not None:
        for other in duplicates_of(explanation, answer.number):
            panels.show_box(axes, torch.tensor(other.box), image, answer.color, 0.8)
    panels.show_box(axes, trace.reference[answer.query], image, (1.0, 1.0, 1.0), 1.4, (0, (3, 2)))
    panels.show_box(axes, box_of(explanation, answer, layer), image, answer.color)
    axes.set_title(title, fontsize=TITLE - 2)


def box_of(explanation: Explanation, answer: Answer, layer: int) -> Tensor:
    """The box (4,) after a layer, cxcywh in [0, 1].

    With Faster R-CNN that of the detection: the trace has only the box of the best class of each proposal.
    """
    if explanation.suppressed is None:
        return explanation.trace[layer].boxes[answer.query]
    box = explanation.detections.boxes_xyxy[answer.number]
    return xyxy_to_cxcywh(box / panels.scale_of(explanation.image, 4))


def brightness(views: Sequence[View]) -> float:
    """Of an image under what is drawn over it."""
    if any(isinstance(view, AttentionView) for view in views):
        return DIMMED
    if any(isinstance(view, RegionView) and view.responses is not None for view in views):
        return DIMMED
    return SHADED if any(isinstance(view, SamplingView | PointsView) for view in views) else 1.0


def draw_gradient(
    axes: Axes, explanation: Explanation, answer: Answer, gradients: Gradients, name: str, window: Window
) -> None:
    """The gradient norm of the score or, over its four coordinates, of the box."""
    image = explanation.image
    maps = [gradients.maps["score"]] if name == "score" else [gradients.maps[key] for key in "xywh"]
    heat: Tensor = torch.stack(maps).square().sum(0).sqrt()
    panels.show_image(axes, image, window, DIMMED)
    # the largest values are single pixels: all above the 99.8 % quantile are equally bright
    limit = heat.flatten().kthvalue(max(1, round(0.998 * heat.numel()))).values
    panels.show_heat(axes, heat.minimum(limit), panels.whole(image), image)
    panels.show_box(axes, box_of(explanation, answer, -1), image, answer.color, 1.2)
    axes.set_title(f"|∂ {name} / ∂ image|", fontsize=TITLE - 2)


def window_of(explanation: Explanation, answer: Answer) -> Window:
    """The whole image for attention maps; otherwise the part around the boxes of all layers."""
    image = explanation.image
    if any(isinstance(view, AttentionView) and view.stage == "decoder" for view in explanation.views):
        return panels.whole(image)
    boxes = [box_of(explanation, answer, layer) for layer in range(len(explanation.trace))]
    references = [each.reference[answer.query] for each in explanation.trace if each.reference.shape[1] == 4]
    path = torch.stack(boxes + [each for each in references if each[2:].prod() < 0.5])
    return panels.around(panels.pixels_of(path, image), image)
