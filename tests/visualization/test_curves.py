import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from detrs.errors import UserError
from detrs.visualization.curves import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    _smooth,
    _terms,
    curves_figure,
    read_lines,
    results_figure,
    term_name,
)


def step(number: int, loss: float | None = 3.0, **more: Any) -> dict[str, Any]:
    terms = {"class": 0.5, "box": 0.2, "giou": 0.3, "class_0": 0.6, "class_proposals": 0.4}
    return {"kind": "step", "step": number, "epoch": 0, "loss": loss, "terms": terms, "lr": 1e-4} | more


def evaluation(number: int, ap: float | None, **more: Any) -> dict[str, Any]:
    ap50, ap75 = (None, None) if ap is None else (ap * 1.2, ap * 0.8)
    return {"kind": "evaluation", "step": number, "epoch": 0, "ap": ap, "ap50": ap50, "ap75": ap75} | more


def figure(tmp_path: Path, lines: list[dict[str, Any]]) -> np.ndarray:
    journal, png = tmp_path / "metrics.jsonl", tmp_path / "results.png"
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results_figure(journal, png)
    with Image.open(png) as plot:
        assert plot.format == "PNG"
        return np.asarray(plot.convert("RGB"))


def amount(plot: np.ndarray, color: str) -> int:
    """Pixels of a curve's colour."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(plot.astype(int) - rgb).max(axis=2) < 12).sum())


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [step(0), evaluation(0, 0.0)],
        [step(1, None), step(2, math.nan), step(3, math.inf), step(4, -2.0), evaluation(4, None)],
        [{"kind": "step", "step": 5, "loss": 0.0, "lr": 0.0}, {"kind": "other", "step": 9}],
        [step(i) for i in range(5000)] + [evaluation(5000, 1.0)],
    ],
    ids=["none", "one point", "undefined", "bare", "many"],
)
def test_every_run_has_a_figure(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    height, width, _ = figure(tmp_path, lines).shape
    assert width == 1540 and height == (1287 if any(line["kind"] == "evaluation" for line in lines) else 858)


CASES: dict[str, list[dict[str, Any]]] = {
    "few points": [
        step(1),
        evaluation(1, 0.1, per_class={name: {"ap": 0.1} for name in ("$x_1$", "$", "_a", "", "血小板", "a\nb")}),
    ],
    "80 classes": [step(i) for i in range(20, 40001, 200)]
    + [
        evaluation(i, 0.5, per_class={f"class {c}, a long name " * 3: {"ap": c / 80} for c in range(80)})
        for i in (1, 9)
    ],
    "not finite": [
        step(20),
        step(40, None, skipped=20),
        evaluation(40, None, per_class={"血": {"ap": None}}),
        step(60),
    ],
}


def drawn(lines: list[dict[str, Any]], steps_per_epoch: int | None = 100) -> Figure:
    plot = curves_figure(lines, steps_per_epoch=steps_per_epoch)
    plot.canvas.draw()
    return plot


@pytest.mark.parametrize("case", CASES)
def test_no_text_overlaps_another_or_leaves_the_figure(case: str) -> None:
    """Bounding boxes of all titles, labels, legends and ticks of a panel, as matplotlib draws them."""
    plot = drawn(CASES[case])
    renderer = plot.canvas.get_renderer()
    boxes = []
    for axes in plot.axes:
        boxes.append((f"{axes.get_title()} panel", axes.get_window_extent(renderer)))
        boxes.append((f"{axes.get_title()} title", axes.title.get_window_extent(renderer)))
        (above,) = axes.child_axes
        for axis in (axes.xaxis, above.xaxis):
            boxes.append((f"{axes.get_title()} {axis.get_label_text()}", axis.label.get_window_extent(renderer)))
        for name, axis in (("tick", axes.xaxis), ("epoch tick", above.xaxis)):
            low, high = axis.get_view_interval()
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            labels = [tick.label1 if axis is axes.xaxis else tick.label2 for tick in ticks]
            boxes += [(f"{axes.get_title()} {name}", label.get_window_extent(renderer)) for label in labels]
        if axes.get_legend() is not None:
            boxes.append((f"{axes.get_title()} legend", axes.get_legend().get_window_extent(renderer)))
    area = plot.bbox
    for name, box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= area.x1 + 1 and box.y1 <= area.y1 + 1, (name, box)
    for (name, box), (other, second) in combinations([(n, b) for n, b in boxes if b.width and b.height], 2):
        width = min(box.x1, second.x1) - max(box.x0, second.x0)
        height = min(box.y1, second.y1) - max(box.y0, second.y0)
        assert width <= 1 or height <= 1, (name, other)


def legend(plot: Figure, title: str) -> list[str]:
    (axes,) = [axes for axes in plot.axes if axes.get_title().startswith(title)]
    return [] if axes.get_legend() is None else [text.get_text() for text in axes.get_legend().get_texts()]


def test_names_are_those_of_papers() -> None:
    assert [term_name(name) for name in ("class", "giou_proposals", "box_0", "objectness_proposals", "own_term")] == [
        *("classification", "GIoU, proposals", "box L1, layer 1", "objectness, proposals", "own, term")
    ]
    terms = {"class": 0.5, "giou": 0.25, "giou_0": 9.0, "giou_proposals": 0.125}
    plot = drawn([step(i, terms=terms) for i in (20, 40)])
    assert legend(plot, "loss terms") == ["classification  0.500", "GIoU  0.250", "GIoU, proposals  0.125"]


def test_more_terms_than_colors_all_have_a_curve(tmp_path: Path) -> None:
    """DINO with denoising and one-to-many matching has twelve; those beyond the colors are dashed."""
    terms = {
        f"{name}{part}": 0.1 * i
        for i, part in enumerate(("", "_proposals", "_denoising", "_one_to_many"))
        for name in ("class", "box", "giou")
    }
    curves = _terms([step(i) | {"terms": terms} for i in range(3)])
    assert [curve.name for curve in curves] == [term_name(name) for name in terms] and len(curves) == 12
    assert len({(curve.color, curve.dashed) for curve in curves}) == 12


def test_epochs_stand_above_and_steps_below() -> None:
    plot = drawn([step(i) for i in range(20, 1001, 20)], steps_per_epoch=250)
    for axes in plot.axes:
        (above,) = axes.child_axes
        assert axes.get_xlabel() == "step" and above.get_xlabel() == "epoch"
        assert above.get_xlim() == pytest.approx(tuple(limit / 250 for limit in axes.get_xlim()))
    assert not drawn([step(1)], steps_per_epoch=None).axes[0].child_axes


def test_every_class_has_a_curve_and_many_are_summarized() -> None:
    few = {"red cell": {"ap": 0.5}, "platelet": {"ap": 0.25}, "unseen": {"ap": None}}
    plot = drawn([evaluation(1, 0.2, per_class=few), evaluation(2, 0.4, per_class=few)])
    assert legend(plot, "AP per class") == ["red cell  0.500", "platelet  0.250"]
    many = {f"c{number}": {"ap": number / 100} for number in range(80)}
    plot = drawn([evaluation(step, 0.4, per_class=many) for step in (1, 2)])
    names = [name.split()[0] for name in legend(plot, "AP per class: best and worst 5 of 80")]
    assert names == ["70", "c79", "c78", "c77", "c76", "c75", "c4", "c3", "c2", "c1", "c0"]
    (axes,) = [axes for axes in plot.axes if axes.get_title().startswith("AP per class")]
    assert len(axes.get_lines()) == 80


def test_steps_that_were_not_finite_are_marked() -> None:
    plot = drawn(CASES["not finite"])
    assert "skipped steps (not finite)" in legend(plot, "training loss")
    marks = next(line for line in plot.axes[0].get_lines() if line.get_label().startswith("skipped"))
    assert list(marks.get_xdata()) == [40]
    assert legend(plot, "average precision") == ["AP  –", "AP50  –", "AP75  –"]


def test_lines_of_a_resumed_run_are_ordered() -> None:
    """A line that was appended late does not draw a curve backwards."""
    plot = drawn([step(20, 4.0), step(60, 2.0), step(40, 3.0)])
    (curve,) = plot.axes[0].get_lines()
    assert list(curve.get_xdata()) == [20, 40, 60] and list(curve.get_ydata()) == [4, 3, 2]


def test_all_curves_are_visible(tmp_path: Path) -> None:
    steps = [step(i, 3 + 9 / (i + 1), terms={}) for i in range(0, 400, 5)]
    plot = figure(tmp_path, steps + [evaluation(i, i / 500) for i in range(100, 401, 100)])
    assert all(amount(plot, color) > 200 for color in (BLUE, PURPLE, ORANGE, GREEN))


def test_an_incomplete_last_line_is_skipped(tmp_path: Path) -> None:
    journal = tmp_path / "metrics.jsonl"
    journal.write_text(json.dumps(step(1)) + '\n{"kind": "step", "st')
    assert read_lines(journal) == [step(1)]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    journal = tmp_path / "metrics.jsonl"
    journal.write_text(json.dumps(step(1)) + '\n{"kind": "st\n' + json.dumps(step(2)))
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2, is not valid JSON"):
        results_figure(journal, tmp_path / "results.png")


def test_smoothing() -> None:
    assert (_smooth(np.arange(39.0)) == np.arange(39.0)).all()  # too few points to smooth
    line = 2.0 * np.arange(200.0)
    assert _smooth(line)[5:-5] == pytest.approx(line[5:-5])
    assert _smooth(line)[0] == pytest.approx(line[:6].mean())
    assert _smooth(line)[-1] == pytest.approx(line[-6:].mean())
    noise = np.random.default_rng(0).normal(size=1000)
    assert _smooth(noise).std() < 0.2
    holes = np.where(np.arange(200) % 3 == 0, np.nan, 7.0)
    assert _smooth(holes) == pytest.approx(np.full(200, 7.0))
    assert np.isnan(_smooth(np.full(50, np.nan))).all()
