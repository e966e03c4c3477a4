import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from detrs.checkpoints.detector import load_detector, save_detector
from detrs.exporting import comparison
from detrs.structures import Classes


def test_files_are_compared_in_accuracy_and_latency(detrs: Callable, checkpoint: Path, tmp_path: Path) -> None:
    other = Path(shutil.copy(checkpoint, tmp_path / "other.safetensors"))
    done = detrs("benchmark", checkpoint, other, "--images", 2, "--repeats", 2, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    expected = detrs("evaluate", checkpoint, "--device", "cpu", "--json").json
    first, second = done.json["files"]
    assert (first["path"], second["path"]) == (str(checkpoint), str(other))
    assert first["ap"] == second["ap"] == expected["ap"] and first["ap50"] == expected["ap50"]
    assert first["kind"] == "checkpoint of detrs, fp32" and first["num_bytes"] == checkpoint.stat().st_size
    for each in (first, second):
        assert 0 < each["model"]["median_ms"] <= each["model"]["p95_ms"]
        assert 0 < each["total"]["median_ms"] <= each["total"]["p95_ms"]
    assert (done.json["num_images"], done.json["repeats"]) == (2, 2)
    assert "per image" in done.err and "model only" in done.err and "2 images, one at a time, 2 rounds" in done.err


def test_all_files_are_scored_on_the_dataset_of_the_first(detrs: Callable, checkpoint: Path, tmp_path: Path) -> None:
    other, detector = tmp_path / "other.safetensors", load_detector(checkpoint)
    data = replace(detector.experiment.data, path=str(tmp_path / "elsewhere"))
    save_detector(other, replace(detector, experiment=replace(detector.experiment, data=data)))
    done = detrs("benchmark", checkpoint, other, "--images", 1, "--repeats", 1, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    first, second = done.json["files"]
    assert first["ap"] == second["ap"] is not None


def test_other_classes_are_an_error_before_the_measurement(
    detrs: Callable, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.safetensors"
    save_detector(other, replace(load_detector(checkpoint), classes=Classes(("cat", "dog"), (1, 2))))
    monkeypatch.setattr(comparison, "time_files", lambda *_, **__: pytest.fail("measured"))
    done = detrs("benchmark", checkpoint, other)
    assert done.code == 2 and "other.safetensors' does not have all classes" in done.message


def test_latency_alone_needs_no_data(detrs: Callable, checkpoint: Path) -> None:
    done = detrs("benchmark", checkpoint, "--images", 1, "--repeats", 1, "--latency-only", "--json")
    assert done.code == 0 and done.json["files"][0]["ap"] is None and done.json["num_images"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected ops, or checkpoints"),
        (["missing.onnx"], "There is no file or folder 'missing.onnx'"),
        (["CHECKPOINT", "missing.onnx"], "There is no file or folder 'missing.onnx'"),
        (["CHECKPOINT", "--images", 0], "--images and --repeats must be at least 1"),
        (["CHECKPOINT", "--repeats", 0], "--images and --repeats must be at least 1"),
        (["CHECKPOINT", "--full"], "are for ops"),
        (["CHECKPOINT", "--output", "lines.jsonl"], "are for ops"),
        (["CHECKPOINT", "--data", "nowhere"], "nowhere"),
        (["ops", "--data", "digits"], "are for files"),
    ],
)
def test_wrong_arguments(detrs: Callable, checkpoint: Path, words: list[str], message: str) -> None:
    done = detrs("benchmark", *(checkpoint if word == "CHECKPOINT" else word for word in words))
    assert done.code == 2 and message in done.message


def test_data_of_training_that_has_moved(detrs: Callable, checkpoint: Path, data: Path) -> None:
    moved = data.rename(data.parent / "moved")
    try:
        done = detrs("benchmark", checkpoint)
    finally:
        moved.rename(data)
    assert done.code == 2 and "--data" in done.message
