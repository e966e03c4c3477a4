import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import page
import pytest
import torch
import training
import training_figure
from PIL import Image

from detrs.criterion.set_criterion import CriterionConfig
from detrs.data import digits
from detrs.engine import train as engine
from detrs.engine import trainer
from detrs.ops import use
from detrs.presets import preset
from detrs.schema import to_dict

MARKS = "<!-- training: begin --><!-- training: end -->"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for results, page and figures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "RESULTS", tmp_path / "results" / "training.jsonl")
    monkeypatch.setattr(training, "FIGURES", tmp_path / "docs" / "figures")
    monkeypatch.setattr(page, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(MARKS)
    return tmp_path


def run(preset: str, *aps: float | None, pace: float = 1.0, finished: bool = True, **setting: Any) -> dict[str, Any]:
    """A result: ``aps`` after each epoch, which takes ``pace`` times ten seconds."""
    points = [{"epoch": n, "seconds": 10 * pace * n, "ap": ap, "ap50": ap} for n, ap in enumerate(aps, start=1)]
    usual = {"data": "digits", "image_size": [128, 192], "max_minutes": 15.0, "epochs": 0, "device": "CPU"}
    return {
        "preset": preset,
        "parameters": 1_234_567,
        "batch_size": 8,
        "steps_per_epoch": 20,
        "setting": {**usual, "threads": 2, **setting},
        "versions": {"detrs": "0.1.0"},
        "commit": "0123456789ab",
        "finished": finished,
        "points": points,
    }


DEFORMABLE = run("deformable-detr-tiny", 0.1, 0.4, 0.7, pace=2.0)
DETR = run("detr-tiny", 0.0, 0.01, 0.05, 0.1, 0.15)


def rows(text: str) -> list[list[str]]:
    """The cells of all tables."""
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_tables_say_what_was_reached_and_nothing_else() -> None:
    assert rows(training.section([DETR, DEFORMABLE], "figure.svg")) == [
        ["preset", "parameters", "images/s", "epochs", "seconds of training", "final AP", "final AP50"],
        ["`detr-tiny`", "1,234,567", "16.0", "5.0", "50", "0.150", "0.150"],
        ["`deformable-detr-tiny`", "1,234,567", "8.0", "3.0", "60", "0.700", "0.700"],
        ["epochs to", "AP 0.150, the final one of `detr-tiny`", "AP 0.1", "AP 0.3", "AP 0.5"],
        ["`detr-tiny`", "5.0 (2.5x)", "4.0 (4.0x)", "-", "-"],
        ["`deformable-detr-tiny`", "2.0", "1.0", "2.0", "3.0"],
        ["seconds of training to", "AP 0.150, the final one of `detr-tiny`", "AP 0.1", "AP 0.3", "AP 0.5"],
        ["`detr-tiny`", "50 (1.2x)", "40 (2.0x)", "-", "-"],
        ["`deformable-detr-tiny`", "40", "20", "40", "60"],
    ]


def test_all_commits_that_were_measured_are_named() -> None:
    text = training.section([DETR, {**DEFORMABLE, "commit": "abcdef012345+"}, DETR], "")
    assert "commit 0123456789ab, abcdef012345+)" in text


def test_what_is_unknown_is_no_number() -> None:
    undefined = run("detr-tiny", None, None)
    assert rows(training.section([undefined], ""))[1][-2:] == ["-", "-"]
    assert rows(training.section([undefined], ""))[2] == ["epochs to", "AP 0.1", "AP 0.3", "AP 0.5"]
    nothing = rows(training.section([run("detr-tiny", 0.0, 0.002), DEFORMABLE], ""))
    assert nothing[3][1] == "AP 0.700, the final one of `deformable-detr-tiny`"  # not 0.002
    alone = rows(training.section([DETR], ""))
    assert alone[3] == ["`detr-tiny`", "5.0", "4.0", "-", "-"]  # nothing to compare with
    failing = rows(training.section([run("detr-tiny", 0.1, 0.4, 0.4), run("deformable-detr-tiny", 0.0, 0.12)], ""))
    assert failing[4] == ["`detr-tiny`", "2.0 (1.0x)", "1.0 (0.5x)", "2.0", "-"]  # the reference never reached 0.3


def test_an_interrupted_run_is_called_so_and_is_not_the_slowest() -> None:
    text = training.section([run("conditional-detr-tiny", 0.02, finished=False), DETR, DEFORMABLE], "")
    assert rows(text)[1][0] == "`conditional-detr-tiny` (interrupted)"
    assert "0.150, the final one of `detr-tiny`" in text


def test_seconds_are_those_of_the_steps() -> None:
    step, scores = {"kind": "step", "images_per_s": 4.0}, {"kind": "evaluation", "ap": 0.5, "ap50": 0.75, "ap75": 0.4}
    journal = [
        step | {"step": 20, "seconds": 50.0},  # 20 batches of 8, 4 images a second: 40 s
        step | {"step": 30, "seconds": 80.0, "images_per_s": 8.0},
        scores | {"step": 30, "seconds": 80.0},
        step | {"step": 40, "seconds": 990.0},  # the evaluation took 15 minutes
        scores | {"step": 40, "seconds": 990.0, "ap": None},
    ]
    assert training.points(journal, batch_size=8, steps_per_epoch=20) == [
        {"epoch": 1.5, "seconds": 50.0, "ap": 0.5, "ap50": 0.75},
        {"epoch": 2.0, "seconds": 70.0, "ap": None, "ap50": 0.75},
    ]


def test_only_runs_under_the_same_conditions_are_compared(home: Path) -> None:
    other = run("detr-tiny", 0.3, max_minutes=0.0, epochs=50)
    for line in (DEFORMABLE, other, run("detr-tiny", 0.99), DETR):  # the newest counts
        page.append(training.RESULTS, line)
    assert training.main(["--draw"]) == 0
    text = page.README.read_text()
    assert "0.990" not in text
    assert [row[0] for row in rows(text) if row[1] == "1,234,567"] == [
        "`detr-tiny`",
        "`deformable-detr-tiny`",
        "`detr-tiny`",
    ]
    assert "**digits at 128 x 192, 15 minutes each, CPU, 2 threads**" in text and "192, 50 epochs each" in text
    for name in ("training_digits.svg", "training_digits_2.svg"):
        assert f"(docs/figures/{name})" in text and (home / "docs/figures" / name).stat().st_size > 10_000


def test_figures_do_not_change_without_new_results(home: Path) -> None:
    page.append(training.RESULTS, DETR)
    drawn = []
    for _ in range(2):
        assert training.main(["--draw"]) == 0
        drawn.append(((training.FIGURES / "training_digits.svg").read_bytes(), page.README.read_text()))
    assert drawn[0] == drawn[1]


def test_every_curve_is_seen(tmp_path: Path) -> None:
    lines = [run(name, 0.1, 0.2 + n / 10, 0.3 + n / 5) for n, name in enumerate(training_figure.STYLES)]
    training_figure.training_figure([*lines, run("another", None, 0.2)], "title", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    half = pixels.shape[1] // 2
    for color in (*(color for color, _ in training_figure.STYLES.values()), training_figure.OTHERS[0][0]):
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        near = np.abs(pixels - rgb).max(axis=2) < 12
        assert near[:, :half].sum() > 100 and near[:, half:].sum() > 100, color


@pytest.mark.parametrize("heights", [[0.5], [0.5, 0.5, 0.5], [0.0, 0.01, 0.9], [0.9, 0.2, 0.25, 0.3, 0.0, 0.0]])
def test_names_do_not_collide(heights: list[float]) -> None:
    placed = np.array(training_figure.apart(heights, 0.1))
    assert (np.diff(np.sort(placed)) > 0.1 - 1e-9).all() and placed.min() > -1e-9
    assert (np.argsort(placed, kind="stable") == np.argsort(heights, kind="stable")).all()
    assert training_figure.apart([0.8, 0.1], 0.1) == [0.8, 0.1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "detr-tini"], "There is no preset 'detr-tini'. Did you mean 'detr-tiny'?"),
        (["--only", "detr-tiny", "--data", "nowhere"], "nowhere"),
        (["--epoch", "3"], "Did you mean '--epochs'?"),
        (["--epochs", "-1"], "--max-minutes and --epochs must be 0 or above."),
        (["--only", "detr-tiny", "--image-size", "8"], "data.resize_to is (8, 8)"),
    ],
)
def test_a_fault_of_the_input_is_one_sentence(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert training.main(words) == 2
    err = capsys.readouterr().err
    assert sentence in err and len(err.splitlines()) == 1
    assert page.README.read_text() == MARKS and not list(home.glob("runs/*"))


def test_runs_of_the_engine(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(digits, "NUM_IMAGES", {"train": 17, "val": 2})
    for name in ("save_training_batch", "save_predictions", "save_curves"):  # drawings take most of the time
        monkeypatch.setattr(trainer, name, lambda *arguments: None)
    torch.set_num_threads(1)
    words = ["--only", "detr-tiny", "--epochs", "2", "--image-size", "64", "96"]

    def interrupted(experiment: Any, output: Path, *, resume: bool) -> None:
        for report in engine.training(experiment, output, resume=resume):
            if report.step == 2:
                signal.raise_signal(signal.SIGINT)

    with use("reference"):
        with monkeypatch.context() as patch:
            patch.setattr(training, "train", interrupted)
            with pytest.raises(SystemExit, match="130"):
                training.main(words)
        (line,) = page.newest(training.RESULTS, json.dumps)
        assert line["preset"] == "detr-tiny" and not line["finished"]
        assert [point["epoch"] for point in line["points"]] == [0.5, 1.0]
        assert "(interrupted)" in page.README.read_text()

        assert training.main([*words, "--seed", "1", "--resume"]) == 2
        assert "had other settings" in capsys.readouterr().err
        assert training.main([*words, "--resume"]) == 0
    assert "detr-tiny: only 4 points" in capsys.readouterr().err
    _, whole = page.newest(training.RESULTS, json.dumps)
    assert whole["finished"] and whole["points"][:2] == line["points"] and whole["setting"] == line["setting"]
    assert [point["epoch"] for point in whole["points"]] == [0.5, 1.0, 1.5, 2.0]
    seconds = [point["seconds"] for point in whole["points"]]
    assert whole["recipe"]["optimizer"] == dataclasses.asdict(preset("detr-tiny").optimizer)
    assert whole["recipe"]["classification"] == {"kind": "Softmax", "weight": 3.0, "no_object_weight": 0.1}
    assert whole["recipe"]["criterion"] == to_dict(CriterionConfig())
    assert whole["recipe"]["schedule"]["max_minutes"] is None and whole["commit"] in page.README.read_text()
    assert sorted(seconds) == seconds and 1_000_000 < whole["parameters"] < 3_000_000
    assert "(interrupted)" not in page.README.read_text()
    assert [path.name for path in Path("runs/benchmark").iterdir()] == ["detr-tiny-1"]
