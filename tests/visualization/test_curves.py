import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrs.errors import UserError
from detrs.visualization.curves import BLUE, GREEN, ORANGE, PURPLE, _smooth, read_lines, results_figure


def step(number: int, loss: float | None = 3.0, **more: Any) -> dict[str, Any]:
    terms = {"class": 0.5, "box": 0.2, "giou": 0.3, "class_0": 0.6, "class_proposals": 0.4}
    return {"kind": "step", "step": number, "epoch": 0, "loss": loss, "terms": terms, "lr": 1e-4} | more


def evaluation(number: int, ap: float | None) -> dict[str, Any]:
    ap50, ap75 = (None, None) if ap is None else (ap * 1.2, ap * 0.8)
    return {"kind": "evaluation", "step": number, "epoch": 0, "ap": ap, "ap50": ap50, "ap75": ap75}


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
    assert figure(tmp_path, lines).shape == (880, 1430, 3)


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
