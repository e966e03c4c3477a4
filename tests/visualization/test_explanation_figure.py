"""Figures of explanations: every kind of view is drawn, where and as large as its numbers are."""

import dataclasses
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from explained import EVERY_TINY, photograph, shared_tiny
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from detrs.explanation.explain import explain
from detrs.explanation.views import AttentionView, Explanation, Gradients, PointsView, RegionView, SamplingView
from detrs.structures import Classes
from detrs.visualization import explanation_figure
from detrs.visualization.explanation_figure import figure, layers_figure

THRESHOLD = 0.2
SIZE = torch.tensor([131.0, 97.0])


def explained(name: str, threshold: float = THRESHOLD) -> Explanation:
    (found,) = explain(shared_tiny(name), photograph(), threshold=threshold, device="cpu")
    return found


def panels(drawn: Figure, title: str) -> list[Axes]:
    """The axes whose title begins with ``title``, in the order of the detections."""
    return [axes for axes in drawn.axes if axes.get_title().startswith(title)]


def points_of(axes: Axes) -> tuple[Any, Any]:
    """Positions and colors of the points of a panel."""
    (points,) = [each for each in axes.collections if isinstance(each, PathCollection)]
    return np.asarray(points.get_offsets()), np.asarray(points.get_array())


@pytest.mark.parametrize("name", EVERY_TINY)
def test_layers_of_a_detection(name: str) -> None:
    explanation = explained(name)
    assert explanation.detections.image_size == (97, 131) and len(explanation.queries) > 1
    drawn = figure(explanation, max_detections=2)
    count = len(explanation.trace)
    titles = [f"layer {i + 1}: " for i in range(count)] if explanation.suppressed is None else ["objectness "]
    for row, (query, label) in enumerate(
        zip(explanation.queries[:2], explanation.detections.labels.tolist(), strict=False)
    ):
        for layer, title in enumerate(titles):
            axes, trace = panels(drawn, title)[row], explanation.trace[layer]
            assert len(panels(drawn, title)) == 2
            assert f"{trace.scores[query, label]:.2f}" in axes.get_title()
            (view,) = [
                each
                for each in explanation.views
                if each.stage == "decoder" and each.layer == layer and not isinstance(each, PointsView)
            ]
            index = view.queries.tolist().index(query)
            if isinstance(view, SamplingView):
                positions, colors = points_of(axes)
                weights = view.weights[index].flatten()
                order = weights.argsort()  # the largest on top
                assert np.allclose(positions, (view.locations[index].flatten(0, 2) * SIZE)[order], atol=1e-3)
                assert np.allclose(colors, (weights / weights.max())[order], atol=1e-6)
            heats = axes.get_images()[1:]
            assert len(heats) == isinstance(view, AttentionView) + (
                isinstance(view, RegionView) and view.responses is not None
            )
            if isinstance(view, AttentionView):  # the brightest part is at the largest weight
                (heat,) = heats
                pixels, weights = np.asarray(heat.get_array()).sum(2), view.weights[index].mean(0)
                rows, columns = (pixels.shape[i] // weights.shape[i] for i in (0, 1))
                y, x = np.unravel_index(pixels.argmax(), pixels.shape)
                assert weights[int(y // rows), int(x // columns)] > 0.7 * weights.max()
                assert heat.get_extent() == [0, 131, 97, 0]
            if isinstance(view, RegionView) and view.responses is not None:
                center, size = view.boxes[index].view(2, 2) * SIZE
                left, right, bottom, top = heats[0].get_extent()
                assert np.allclose(
                    [left, top, right, bottom], torch.cat([center - size / 2, center + size / 2]), atol=1e-3
                )
            center, size = trace.boxes[query].view(2, 2) * SIZE
            outlines = [each for each in axes.patches if isinstance(each, Rectangle)]
            assert np.allclose(outlines[-1].get_xy(), center - size / 2, atol=1e-3)
            assert np.allclose([outlines[-1].get_width(), outlines[-1].get_height()], size, atol=1e-3)
            removed = len(explanation.suppressed[row]) if explanation.suppressed is not None else 0
            assert len(outlines) == 2 * (1 + removed + (trace.reference.shape[1] == 4))
    assert len(panels(drawn, "class scores")) == 2


def test_points_of_the_backbone_and_samples_of_the_encoder() -> None:
    explanation = explained("deformable-detr-dat-tiny")
    drawn = figure(explanation, max_detections=1)
    (axes,) = panels(drawn, "stages.3.attns.1")
    (view,) = [each for each in explanation.views if each.name.endswith("stages.3.attns.1")]
    assert isinstance(view, PointsView)
    offsets = [np.asarray(each.get_offsets()) for each in axes.collections if isinstance(each, PathCollection)]
    assert np.allclose(offsets, view.points.flatten(1, 2) * SIZE, atol=1e-3) and len(offsets) == 4
    (axes,) = panels(drawn, "encoder, layer 1")
    (view,) = [each for each in explanation.views if each.stage == "encoder"]
    assert isinstance(view, SamplingView)
    positions, _ = points_of(axes)
    cross = np.array([each.get_xydata()[0] for each in axes.lines])
    center = explanation.trace[-1].boxes[explanation.queries[0], :2].clamp(0, 1) * SIZE
    assert np.abs(cross - center.numpy()).max() < 131 / 3  # in the same cell of the grid
    locations = (view.locations.flatten(1, 3) * SIZE).numpy()
    (token,) = [
        i for i, each in enumerate(locations) if np.allclose(np.sort(each, 0), np.sort(positions, 0), atol=1e-3)
    ]
    assert 0 <= token < len(view.queries)


def test_gradients_are_bright_where_they_are_large() -> None:
    explanation = explained("detr-tiny")
    maps = {name: torch.full((97, 131), 1e-6) for name in ("score", "x", "y", "w", "h")}
    for name, (row, column) in {"score": (20, 100), "y": (70, 30)}.items():
        maps[name][row - 5 : row + 5, column - 5 : column + 5] = 1.0
    changed = dataclasses.replace(explanation, gradients=(Gradients(0, maps),))
    drawn = figure(changed, max_detections=2)
    for title, (row, column) in {"|∂ score": (20, 100), "|∂ box": (70, 30)}.items():
        (axes,) = panels(drawn, title)  # of the first detection only
        pixels = np.asarray(axes.get_images()[1].get_array()).sum(2)
        scale = pixels.shape[0] / 97
        bright = np.argwhere(pixels > 0.9 * pixels.max()).mean(0) / scale
        assert np.abs(bright - (row, column)).max() < 2


def test_files_of_odd_names_and_without_detections(tmp_path: Path) -> None:
    """Mathematical signs, markup, other scripts, long names: no error and no text as a formula."""
    explanation = explained("deformable-detr-tiny")
    classes = Classes(("$\\frac{1}$ </script>", "赤血球" * 20, "ع ب"), (1, 2, 3))
    found = dataclasses.replace(explanation.detections, classes=classes)
    odd = dataclasses.replace(explanation, classes=classes, detections=found, source="a/$x_1$ & <b>.jpg")
    drawn = explanation_figure.figure(odd, max_detections=1)
    assert any("$x_1$ & <b>.jpg" in text.get_text() for text in drawn.texts)
    path = tmp_path / "odd.png"
    drawn.savefig(path)
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width > 1000
        assert np.asarray(image.convert("L")).std() > 20
    none = explained("deformable-detr-tiny", threshold=1.0)
    assert len(none.queries) == 0
    figure(none).savefig(tmp_path / "none.png")
    assert (tmp_path / "none.png").stat().st_size > 10_000


@pytest.mark.parametrize("threshold", [1.0, 0.2])
def test_the_title_fits_into_the_figure(threshold: float) -> None:
    found = dataclasses.replace(explained("detr-tiny", threshold=threshold), source=f"a/{'long_name_' * 20}W.jpg")
    drawn = figure(found)
    drawn.draw_without_rendering()
    (title,) = (text for text in drawn.texts if text.get_text().startswith("DETR, long_name_"))
    extent, page = title.get_window_extent(), drawn.bbox
    assert page.x0 <= extent.x0 and extent.x1 <= page.x1 and page.y0 <= extent.y0 and extent.y1 <= page.y1
    assert title.get_text().count("long_name_") == 20 or "\n" in title.get_text()


def test_pyplot_and_settings_stay_as_they_are() -> None:
    before = dict(matplotlib.rcParams)
    figure(explained("sparse-rcnn-tiny"), max_detections=1)
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in vars(explanation_figure)


def test_of_many_layers_the_first_and_the_last_are_shown() -> None:
    explanation = explained("detr-tiny")
    deep = dataclasses.replace(explanation, trace=explanation.trace[:1] * 6, views=())
    assert explanation_figure.shown_layers(deep) == [0, 2, 3, 5]
    assert len([axes for axes in figure(deep, max_detections=1).axes if axes.get_title().startswith("layer ")]) == 4


def test_each_detection_of_a_proposal_has_its_own_box() -> None:
    """Faster R-CNN has a box for each class of a proposal; the trace has that of the best class."""
    explanation = explained("faster-rcnn-tiny")
    boxes = explanation.detections.boxes_xyxy.clone()
    boxes[1] = torch.tensor([11.0, 13.0, 71.0, 83.0])
    changed = dataclasses.replace(explanation, detections=dataclasses.replace(explanation.detections, boxes_xyxy=boxes))
    (axes,) = layers_figure(changed, [1]).axes
    outline = [each for each in axes.patches if isinstance(each, Rectangle)][-1]
    assert np.allclose([*outline.get_xy(), outline.get_width(), outline.get_height()], [11, 13, 60, 70], atol=1e-3)


def test_layers_of_chosen_detections() -> None:
    explanation = explained("deformable-detr-tiny")
    drawn = layers_figure(explanation, [1, 0], width=6)
    assert [axes.get_title()[:8] for axes in drawn.axes] == ["layer 1:", "layer 2:", "layer 3:"] * 2
    assert [axes.get_ylabel() for axes in drawn.axes[::3]] == [
        f"{i + 1}: {explanation.detections.names[i]}, query {explanation.queries[i]}" for i in (1, 0)
    ]
