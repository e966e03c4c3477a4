import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detrs.data import digits
from detrs.engine import accuracy_run

WORDS = ("benchmark", "accuracy", "deformable-detr-tiny", "faster-rcnn-tiny", "--data", "digits", "--device", "cpu")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Experiments that were trained, in this process for speed."""
    found: list[Any] = []

    def measure(experiment: Any) -> dict[str, Any]:
        found.append(experiment)
        return accuracy_run.measure(experiment) if len(found) == 1 else {**values, "peak_mib": 1234}

    point = {"images": 16, "seconds": 1.5, "ap": 0.25, "ap50": 0.5}
    values = {**accuracy_run.scores([point]), "images": 16, "seconds": 1.5, "versions": {}}
    monkeypatch.setattr(digits, "NUM_IMAGES", {"train": 8, "val": 2})
    monkeypatch.setattr(accuracy_run, "measure_alone", measure)
    return found


def test_presets_are_compared_and_runs_are_kept(detrs: Callable, measured: list[Any]) -> None:
    words = (*WORDS, "--minutes", 0.02, "--seeds", 2, "--image-size", 64, 96, "--json")
    done = detrs(*words)
    assert done.code == 0, done.err
    assert [row["subject"] for row in done.json["rows"]] == ["deformable-detr-tiny", "faster-rcnn-tiny"]
    assert done.json["rows"][1]["best_ap"] == {"mean": 0.25, "lowest": 0.25, "highest": 0.25}
    assert len(measured) == 4 and {run.data.resize_to for run in measured} == {(64, 96)}
    kept = [json.loads(text) for text in Path("runs/accuracy.jsonl").read_text().splitlines()]
    assert kept == done.json["runs"] and done.json["setting"] == kept[0]["setting"]
    assert "digits at 64 x 96, 0.02 minutes each, CPU, 1 thread; mean over 2 seeds" in done.err
    assert "1/4  deformable-detr-tiny, seed 42: 0.02 minutes" in done.err
    again = detrs(*words)
    assert again.json == done.json and len(measured) == 4 and "4/4  faster-rcnn-tiny, seed 43: in runs" in again.err


def test_the_table_fits_a_terminal_of_80_columns(
    detrs: Callable, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    measured.append(None)  # nothing is trained
    done = detrs("benchmark", "accuracy", "deformable-detr-small", "--data", "digits", "--device", "cpu", "--seeds", 2)
    lines = done.out.splitlines()
    assert any(".250-.250" in line and ".500-.500" in line for line in lines), done.out
    assert all(len(line) <= 80 for line in lines if "digits at" not in line)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["accuracy"], "Usage: detrs benchmark accuracy PRESET"),
        (["accuracy", "detr-tiny"], "Expected presets and a dataset"),
        (["accuracy", "--data", "digits"], "Expected presets and a dataset"),
        (["accuracy", "detr-tinny", "--data", "digits"], "Did you mean 'detr-tiny'?"),
        (["accuracy", "detr-tiny", "--data", "nowhere"], "nowhere"),
        (["accuracy", "detr-tiny", "--data", "digits", "--minutes", 0], "--minutes must be above 0, got 0"),
        (["accuracy", "detr-tiny", "--data", "digits", "--seeds", 0], "--seeds must be at least 1, got 0"),
        (["accuracy", "detr-tiny", "--data", "digits", "--batch-size", 0], "batch_size is 0"),
        (["accuracy", "detr-tiny", "--data", "digits", "--threads", 0], "threads is 0"),
        (["acuracy"], "Did you mean 'accuracy'?"),
    ],
)
def test_wrong_arguments(detrs: Callable, measured: list[Any], words: list[Any], message: str) -> None:
    done = detrs("benchmark", *words)
    assert done.code == 2 and message in done.message and not measured


def test_a_preset_that_cannot_be_trained_on_the_data(
    detrs: Callable, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digits, "MAX_OBJECTS", 51)
    done = detrs(*WORDS)
    assert done.code == 2 and "deformable-detr-tiny cannot be trained on 'digits'" in done.message and not measured


def test_an_output_that_cannot_be_written(detrs: Callable, measured: list[Any]) -> None:
    Path("file").touch()
    done = detrs(*WORDS, "--minutes", 0.02, "--output", "file/lines.jsonl")
    assert done.code == 2 and "file/lines.jsonl" in done.message
