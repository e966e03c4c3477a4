import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from detrs.checkpoints.detector import load_detector, save_detector
from detrs.cli import report
from detrs.engine.evaluate import evaluate_checkpoint
from detrs.predictor import Predictor


def test_json_is_the_report_of_the_engine(detrs: Callable, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    words = ("--device", "cpu", "--results", results, "--json")
    done = detrs("evaluate", checkpoint, *words)
    assert done.code == 0 and len(done.out.splitlines()) == 1 and "3 images, 6 objects" in done.err
    expected = evaluate_checkpoint(checkpoint, device="cpu")
    numbers = json.loads(json.dumps(expected.report.to_json()))
    assert done.json == {"checkpoint": str(checkpoint), "precision": "fp32", "nms": None, **numbers}
    assert json.loads(results.read_text()) == expected.results
    assert set(done.json["per_class"]) == {"bright", "dark"}

    other = detrs("evaluate", checkpoint, "--data", data, "--split", "train", *words)
    assert other.json["num_images"] == 4


def test_a_report(detrs: Callable, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    done = detrs("evaluate", checkpoint, "--device", "cpu", "--report", folder, "--json")
    assert done.code == 0 and f"Report: {folder / 'report.html'}" in done.err
    plain = detrs("evaluate", checkpoint, "--device", "cpu", "--json").json
    written = json.loads((folder / "report.json").read_text())
    assert done.json == {**plain, "report": str(folder / "report.html"), "diagnosis": written["diagnosis"]}
    assert written["report"] == {k: v for k, v in plain.items() if k not in ("checkpoint", "precision", "nms")}
    assert written["about"].endswith(", fp32")
    layers = written["diagnosis"]["layers"]
    assert len(layers) == 2 and layers[-1]["ap"] == plain["ap"]
    assert written["diagnosis"]["queries"]["num_queries"] == 17
    results = folder / "results.json"
    again = detrs("evaluate", checkpoint, "--device", "cpu", "--report", folder, "--results", results)  # replaced
    assert again.code == 0 and "Report: " in again.out and results.exists()
    (folder / "report.json").unlink()
    (folder / "report.html").unlink()
    results.unlink()
    again = detrs("evaluate", checkpoint, "--device", "cpu", "--report", folder, "--results", results)
    assert again.code == 0 and results.exists(), "the results in the folder of a new report"


def test_folders_of_reports_are_checked_at_once(detrs: Callable, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detrs.engine.evaluate.evaluate_checkpoint", None)  # not reached
        for folder, message in (
            ("file", f"--report must be a folder, but '{tmp_path / 'file'}' is a file."),
            ("file/deeper", "is a file."),
            ("full", "is not empty and contains no report: choose another one."),
        ):
            done = detrs("evaluate", checkpoint, "--report", tmp_path / folder)
            assert done.code == 2 and done.message.endswith(message), done.message
        patch.setattr("os.access", lambda path, mode: False)
        done = detrs("evaluate", checkpoint, "--report", tmp_path / "new")
        assert done.code == 2 and "is not writable: choose another one." in done.message
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine" == (tmp_path / "file").read_text()


def test_table_without_json(detrs: Callable, checkpoint: Path) -> None:
    done = detrs("evaluate", checkpoint, "--device", "cpu", "--image-size", 67, "--max-detections", 5)
    assert done.code == 0 and "bright" in done.out and "15 detections" in done.out and not done.err


def test_a_terminal_shows_the_number_of_images(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(report, "Console", lambda **_: Console(file=shown, force_terminal=True, width=80))
    with report.counting("evaluating") as on_images:
        evaluate_checkpoint(checkpoint, device="cpu", batch_size=2, on_images=on_images)
    assert "evaluating 3/3" in shown.getvalue()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--batch-size -1", "--batch-size is -1, but must be at least 1"),
        ("--max-detections -1", "--max-detections is -1, but must be at least 1"),
        ("--image-size 0", "--image-size is (0, 0)"),
        ("--workers -1", "--workers is -1"),
    ],
)
def test_numbers_out_of_range(detrs: Callable, checkpoint: Path, words: str, message: str) -> None:
    done = detrs("evaluate", checkpoint, "--device", "cpu", *words.split())
    assert done.code == 2 and message in done.message and not done.out


def test_results_that_cannot_be_written_are_refused_at_once(
    detrs: Callable, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("folder").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("detrs.engine.evaluate.evaluate_checkpoint", None)  # not reached
        for results, message in (
            ("folder", "must be a file, but 'folder' is a folder"),
            ("nowhere/a.json", "the folder 'nowhere' does not exist"),
            ("/dev/null", "must be a regular file, but '/dev/null' is a pipe or a device"),
        ):
            done = detrs("evaluate", checkpoint, "--results", results)
            assert done.code == 2 and message in done.message
        patch.setattr("os.access", lambda path, mode: False)
        assert "is not writable: choose another" in detrs("evaluate", checkpoint, "--results", "a.json").message

    def fail(path: Path, text: str, encoding: str | None = None) -> None:
        path.write_bytes(text.encode()[:7])
        raise OSError(28, "No space left on device")

    Path("a.json").write_bytes(b"earlier")
    monkeypatch.setattr(Path, "write_text", fail)
    done = detrs("evaluate", checkpoint, "--device", "cpu", "--results", "a.json")
    assert done.code == 2 and "a.json: No space left" in done.message and "bright" in done.out  # the table is not lost
    assert Path("a.json").read_bytes() == b"earlier"
    assert {path.name for path in Path().iterdir()} == {"a.json", "folder"}


def test_a_data_set_that_has_moved(detrs: Callable, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    detector = load_detector(checkpoint)
    data_config = replace(detector.experiment.data, path="my-data")  # relative: to another folder
    experiment = replace(detector.experiment, data=data_config)
    save_detector(tmp_path / "best.safetensors", replace(detector, experiment=experiment))
    done = detrs("evaluate", tmp_path / "best.safetensors", "--device", "cpu")
    assert done.code == 2 and "my-data does not exist. This is the dataset of training" in done.message


def test_any_size_can_be_evaluated(detrs: Callable, checkpoint: Path, tmp_path: Path) -> None:
    detector = load_detector(checkpoint)
    data = replace(detector.experiment.data, augment="official", resize_to=(800, 1333))
    preprocessing = replace(detector.preprocessing, resize_to=(800, 1333))
    detector = replace(detector, experiment=replace(detector.experiment, data=data), preprocessing=preprocessing)
    save_detector(tmp_path / "best.safetensors", detector)
    done = detrs("evaluate", tmp_path / "best.safetensors", "--device", "cpu", "--image-size", 64, "--json")
    assert done.code == 0 and done.json["num_images"] == 3


def test_tiles_and_suppression_are_those_of_prediction(
    detrs: Callable, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results.json"
    words = ("--tile", 48, "--overlap", 0.4, "--nms", 0.1, "--results", results, "--device", "cpu")
    done = detrs("evaluate", checkpoint, "--data", data, *words)
    assert done.code == 0, done.err
    assert "suppression: of detections with an IoU above 0.1 to a better one of their class" in done.out + done.err
    paths = sorted((data / "images").glob("val-*.png"))
    predictor, tiles = Predictor.load(checkpoint, "cpu"), {"threshold": 0.0, "tile": 48, "overlap": 0.4}
    found = predictor(paths, nms=0.1, **tiles)
    scored = json.loads(results.read_text())
    assert sum(map(len, predictor(paths, **tiles))) > len(scored) == sum(map(len, found)) > 0
    expected = sorted(score for each in found for score in each.scores.tolist())
    assert sorted(result["score"] for result in scored) == pytest.approx(expected, abs=1e-6)
    for flags, message in (
        (("--overlap", 0.4), "--overlap has no effect without --tile SIZE"),
        (("--tiles-only",), "--tiles-only has no effect without --tile SIZE"),
        (("--tile", 5), "tile is 5, but must be"),
        (("--nms", 70), "nms is 70.0, but must be"),
    ):
        done = detrs("evaluate", checkpoint, "--data", data, *flags)
        assert done.code == 2 and done.message.startswith(message)
