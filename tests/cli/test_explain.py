import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrs.cli.explain import parse_formats
from detrs.errors import UserError
from detrs.predictor import Predictor
from detrs.visualization.explorer import explorer_page

THRESHOLD = 0.005
"""The detector is not trained."""


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """A folder with two validation images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("val-0.png", "val-1.png"):
        (folder / name).write_bytes((data / "images" / name).read_bytes())
    return folder


def test_files_of_each_image(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    words = ("--device", "cpu", "--threshold", THRESHOLD, "--gradients", 1, "--output", "out", "--json")
    done = detrs("explain", checkpoint, folder, *words)
    assert done.code == 0 and len(done.out.splitlines()) == 1 and "val-0.png" in done.err
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == [
        "explanations.json",
        *(f"val-{number}.{each}" for number in (0, 1) for each in ("html", "json", "png")),
    ]
    expected = Predictor.load(checkpoint, "cpu")(folder, threshold=THRESHOLD)
    for image, detections in zip(done.json["images"], expected, strict=True):
        assert image["detections"] == detections.to_json()["detections"] and len(detections)
        payload = json.loads(Path("out", image["files"][1]).read_text())
        np.testing.assert_allclose([each["score"] for each in payload["detections"]], detections.scores, rtol=1e-6)
        assert [each["query"] for each in payload["detections"]] == image["queries"]
        assert len(payload["gradients"]) == 1 and payload["threshold"] == THRESHOLD
        assert Path("out", image["files"][0]).read_text() == explorer_page(payload)
        with Image.open(Path("out", image["files"][2])) as figure:
            assert figure.format == "PNG" and figure.width > 1000
    summary = json.loads(Path("out/explanations.json").read_text())
    assert summary["images"] == done.json["images"] and summary["skipped"] == []


def test_another_suppression(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    words = ("--device", "cpu", "--threshold", THRESHOLD, "--format", "json", "--output", "out", "--json")
    done = detrs("explain", checkpoint, folder, "--nms", 0.1, *words)
    assert done.code == 0 and done.json["nms"] == 0.1
    expected = Predictor.load(checkpoint, "cpu", nms=0.1)(folder, threshold=THRESHOLD)
    assert [image["detections"] for image in done.json["images"]] == [each.to_json()["detections"] for each in expected]
    assert detrs("explain", checkpoint, folder, "--nms", 70).message.startswith("nms is 70.0, but must be")


def test_an_unreadable_image_is_skipped(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    (folder / "val-0.png").write_text("a text")
    done = detrs("explain", checkpoint, folder, "missing.png", "--device", "cpu", "--output", "out", "--json")
    assert done.code == 2 and "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert "val-0.png is not a readable image" in last and "1 more failed: see out/explanations.json" in last
    assert [Path(each["source"]).name for each in done.json["skipped"]] == ["val-0.png", "missing.png"]
    assert [each["files"] for each in done.json["images"]] == [["val-1.html", "val-1.json", "val-1.png"]]


def test_a_wrong_path_leaves_the_folder_usable(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    words = ("--device", "cpu", "--format", "html,json", "--output", "out")
    for command in ("explain", "predict"):
        done = detrs(command, checkpoint, "missing.png", *words[: 2 if command == "predict" else 4], *words[4:])
        assert done.code == 2 and done.message.startswith("missing.png does not exist") and not done.out
    done = detrs("explain", checkpoint, folder, *words)
    assert done.code == 0 and "val-0.html, .json" in done.out


def test_the_highest_score_if_there_is_no_detection(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    best = Predictor.load(checkpoint, "cpu")(folder / "val-0.png", threshold=0.0)[0].scores[0]
    words = (checkpoint, folder / "val-0.png", "--device", "cpu", "--format", "html")
    done = detrs("explain", *words, "--threshold", 1)
    assert f"No detection reaches the threshold 1.0; the highest score is {best:.3f}." in done.out
    assert "No detection" not in detrs("explain", *words, "--threshold", 0).out


def test_equal_names_do_not_overwrite_each_other(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    Path("other").mkdir()
    (folder / "val-0.png").rename("other/val-1.jpg")
    Image.new("RGB", (67, 41)).save("other/explanations.png")
    done = detrs("explain", checkpoint, folder, "other", "--format", "html", "--device", "cpu")
    assert done.code == 0 and "threshold 0.5: default" in done.out and "Open in a browser: runs/explain-1/" in done.out
    assert sorted(path.name for path in Path("runs/explain-1").iterdir()) == [
        *("explanations-2.html", "explanations.json", "val-1-2.html", "val-1.html"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "No sources given. Usage: detrs explain CHECKPOINT SOURCE..., with files, folders or glob patterns."),
        (("images", "--format", "svg"), "--format expects some of html, json, png"),
        (("images", "--format", ","), "separated by commas, got ','."),
        (("images", "--gradients", -1), "--gradients is -1, but must be at least 0."),
        (("images", "--threshold", 50), "threshold is 50.0, but must be in [0, 1]."),
        (("https://example.com/a.jpg",), "--allow-urls"),
        (("images", "--output", "images"), "is not empty: choose another one"),
    ],
)
def test_bad_arguments(detrs: Callable, checkpoint: Path, folder: Path, words: tuple, message: str) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = detrs("explain", checkpoint, *words, "--device", "cpu")
    assert done.code == 2 and message in done.err.splitlines()[-1] and "Traceback" not in done.err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_file_that_cannot_be_written_is_reported_and_removed(
    detrs: Callable, checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, text: str, **options: Any) -> int:
        if self.name == "val-0.html":
            self.write_bytes(b"<html>")
            raise OSError(28, os.strerror(28))
        return self.write_bytes(text.encode())

    monkeypatch.setattr(Path, "write_text", full)
    done = detrs("explain", checkpoint, folder, "--device", "cpu", "--output", "out", "--format", "html,json")
    assert done.code == 2 and done.message == "Cannot write to 'out': No space left on device."
    assert sorted(path.name for path in Path("out").iterdir()) == ["explanations.json", "val-1.html", "val-1.json"]
    assert json.loads(Path("out/explanations.json").read_text())["skipped"][0]["reason"].startswith("Cannot write")


def test_formats() -> None:
    assert parse_formats("json, HTML,json") == ["json", "html"]
    with pytest.raises(UserError, match="got 'html;json'"):
        parse_formats("html;json")
