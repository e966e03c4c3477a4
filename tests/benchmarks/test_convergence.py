from pathlib import Path
from typing import Any

import convergence
import page
import pytest

from detrs.data import digits
from detrs.engine import trainer
from detrs.ops import use
from detrs.presets import PRESETS

MARKS = "<!-- convergence: begin -->\n\nThere are no results yet.\n\n<!-- convergence: end -->"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for results, page and figures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(convergence, "RESULTS", tmp_path / "results" / "convergence.jsonl")
    monkeypatch.setattr(convergence, "FIGURES", tmp_path / "docs" / "figures")
    monkeypatch.setattr(convergence, "PAGE", tmp_path / "docs" / "convergence.md")
    (tmp_path / "docs").mkdir()
    convergence.PAGE.write_text(MARKS)
    return tmp_path


def run(preset: str, *aps: float | None, pace: float = 1.0, finished: bool = True) -> dict[str, Any]:
    """A result: ``aps`` after each epoch, which takes ``pace`` times ten seconds."""
    points = [{"epoch": n, "seconds": 10 * pace * n, "ap": ap, "ap50": ap} for n, ap in enumerate(aps, start=1)]
    setting = {"data": "digits", "image_size": [128, 192], "max_minutes": 0.0, "epochs": 5, "device": "CPU"}
    return {
        "preset": preset,
        "setting": {**setting, "threads": 1},
        "versions": {"detrs": "0.1.0"},
        "commit": "0123456789ab",
        "finished": finished,
        "points": points,
    }


DETR = run("detr-tiny", 0.0, 0.02, 0.05, 0.21, 0.2)
DINO = run("dino-tiny", 0.1, 0.4, 0.5, 0.6, 0.7, pace=4.0)


def test_ratios_to_the_final_ap_of_detr() -> None:
    detr, dino = convergence.compared([DETR, DINO])
    assert (detr["final_ap"], detr["epoch"], detr["epoch_ratio"], detr["seconds_ratio"]) == (0.2, 4, 1.0, 1.0)
    assert (dino["final_ap"], dino["epoch"], dino["epoch_ratio"]) == (0.7, 2, 2.0)
    assert (dino["seconds"], dino["seconds_ratio"]) == (80.0, 0.5)
    text = convergence.section([DETR, DINO], "figure.svg")
    assert (
        "| `dino-tiny` | 5.0 | 0.700 | 2.0 | 2.0 | 80 | 0.5 |" in text
        and "The reference is `detr-tiny`, whose final AP is 0.200. Ratios" in text
    )


def test_what_was_not_reached_is_no_number() -> None:
    _, slow = convergence.compared([DETR, run("anchor-detr-tiny", 0.1, None)])
    assert slow["final_ap"] is None and slow["epoch"] is slow["epoch_ratio"] is slow["seconds_ratio"] is None
    nothing = [run("detr-tiny", 0.0, 0.004), run("dino-tiny", 0.009)]
    assert [row["epoch_ratio"] for row in convergence.compared(nothing)] == [None, None]
    assert "No finished run has reached AP 0.01" in convergence.section(nothing, "")
    interrupted = [run("detr-tiny", 0.3, finished=False)]
    assert [row["epoch"] for row in convergence.compared(interrupted)] == [None]
    text = convergence.section(interrupted, "")
    assert "`detr-tiny` (interrupted)" in text and "No finished run" in text


def test_the_reference_is_the_first_that_has_learned() -> None:
    """DETR learns nothing in a few epochs."""
    runs = [run("detr-tiny", 0.0, 0.0), run("conditional-detr-tiny", 0.01, 0.2), run("dino-tiny", 0.3, 0.5)]
    assert [row["epoch_ratio"] for row in convergence.compared(runs)] == [None, 1.0, 2.0]
    text = convergence.section(runs, "")
    assert (
        "`detr-tiny` stayed below 0.01, so the reference is `conditional-detr-tiny`, whose final AP is 0.200." in text
    )
    interrupted = [run("detr-tiny", 0.3, finished=False), DINO]
    assert [row["epoch_ratio"] for row in convergence.compared(interrupted)] == [None, 1.0]


def test_every_epoch_is_evaluated(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "NUM_IMAGES", {"train": 16, "val": 2})
    for name in ("save_training_batch", "save_predictions", "save_curves"):
        monkeypatch.setattr(trainer, name, lambda *arguments: None)
    words = ["--only", "detr-tiny", "--epochs", "3", "--image-size", "64", "96", "--device", "cpu"]
    with use("reference"):
        assert convergence.main(words) == 0
    (line,) = page.newest(convergence.RESULTS, str)
    assert [point["epoch"] for point in line["points"]] == [1.0, 2.0, 3.0] and line["finished"]
    text = convergence.PAGE.read_text()
    assert "no results yet" not in text and "64 x 96, 3 epochs each" in text
    assert (convergence.FIGURES / "convergence_digits.svg").stat().st_size > 5_000


def test_without_results_the_page_stays(home: Path) -> None:
    assert convergence.main(["--draw"]) == 0
    assert convergence.PAGE.read_text() == MARKS


def test_results_are_drawn_in_the_order_of_the_papers(home: Path) -> None:
    for line in (DINO, DETR, run("detr-tiny", 0.99, 0.2)):
        page.append(convergence.RESULTS, line)
    assert convergence.main(["--draw"]) == 0
    text = convergence.PAGE.read_text()
    assert text.index("| `detr-tiny`") < text.index("| `dino-tiny`") and "(figures/convergence_digits.svg)" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--epochs", "-1"], "must be 0 or above"), (["--only", "detr-tinny"], "Did you mean 'detr-tiny'?")],
)
def test_wrong_arguments(home: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert convergence.main(words) == 2 and message in capsys.readouterr().err


def test_every_detector_is_compared() -> None:
    assert set(convergence.PRESETS) == {name for name in PRESETS if name.endswith("-tiny")}
