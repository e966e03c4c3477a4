"""The flags of ``detrs predict`` that choose detections, and files that are made from them."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrs.checkpoints.detector import load_detector, save_detector
from detrs.data import open_dataset
from detrs.predictor import Predictor


def predictions(output: str) -> list[dict[str, Any]]:
    """The images in ``predictions.json`` without the names of the annotated ones."""
    images = json.loads(Path(output, "predictions.json").read_text())["images"]
    return [{key: value for key, value in image.items() if key != "annotated_image"} for image in images]


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        (("--classes", "dark"), {"classes": ["dark"]}),
        (("--nms", 0.05), {"nms": 0.05}),
        (("--tile", 48, "--overlap", 0.5), {"tile": 48, "overlap": 0.5}),
        (("--tile", 48, "--tiles-only", "--nms", 0.5), {"tile": 48, "whole_image": False, "nms": 0.5}),
    ],
)
def test_flags_are_the_arguments_of_the_predictor(
    detrs: Callable, checkpoint: Path, folder: Path, flags: tuple[Any, ...], arguments: dict[str, Any]
) -> None:
    words = ("--threshold", 0.001, "--device", "cpu", "--output", "out")
    done = detrs("predict", checkpoint, folder, *words, *flags)
    assert done.code == 0, done.err
    nms = arguments.get("nms")
    assert f"suppression: {f'of detections with an IoU above {nms} ' if nms else 'none'}" in done.out
    predictor = Predictor.load(checkpoint, "cpu")
    found = predictor(folder, threshold=0.001, **arguments)
    assert predictions("out") == [each.to_json() for each in found]
    assert [len(each) for each in found] != [len(each) for each in predictor(folder, threshold=0.001)]


def test_thresholds_of_the_classes(detrs: Callable, checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    detector = load_detector(checkpoint)
    everything = Predictor(detector, "cpu")(folder, threshold=0.0)
    scores = torch.cat([each.scores[each.labels == 0] for each in everything]).sort().values
    own = {"bright": float(scores[-3]), "dark": 1.0}
    path = tmp_path / "own.safetensors"
    save_detector(path, replace(detector, class_thresholds=own))
    done = detrs("predict", path, folder, "--device", "cpu", "--threshold", "per-class", "--output", "out")
    assert done.code == 0, done.err
    assert "threshold per class: stored in the checkpoint, best F1 of each class" in done.out
    content = json.loads(Path("out/predictions.json").read_text())
    assert content["threshold"] == own
    found = [each for image in content["images"] for each in image["detections"]]
    assert len(found) == 3 and {each["name"] for each in found} == {"bright"}
    save_detector(path, replace(detector, class_thresholds={"bright": 1.0, "dark": 1.0}))
    done = detrs("predict", path, folder, "--device", "cpu", "--threshold", "per-class", "--output", "none")
    assert "No detection reaches the threshold of its class; the highest score is" in done.out
    done = detrs("predict", checkpoint, folder, "--device", "cpu", "--threshold", "per-class", "--output", "other")
    assert done.code == 2 and "has no thresholds of its classes" in done.message and not Path("other").exists()


def test_crops_labels_and_table(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    flags = ("--save-crops", "--save-yolo", "--save-csv", "--threshold", 0.01, "--device", "cpu", "--output", "out")
    (folder / "val-1.png").rename(folder / "broken.png")
    (folder / "broken.png").write_text("no image")
    done = detrs("predict", checkpoint, folder, *flags)
    assert done.code == 2 and "broken.png is not a readable image" in done.err
    images = predictions("out")
    count = sum(len(image["detections"]) for image in images)
    assert len(images) == 2 and count > 0
    with Path("out/detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], row["class"], float(row["score"])) for row in rows] == [
        (image["source"], each["name"], each["score"]) for image in images for each in image["detections"]
    ]
    dataset = open_dataset("out/yolo", "train")
    assert len(dataset) == 2 and dataset.classes.names == ("bright", "dark")
    crops = {str(path.relative_to("out/crops")): path for path in Path("out/crops").rglob("*.jpg")}
    for image in images:
        for number, each in enumerate(image["detections"], 1):
            x1, y1, x2, y2 = each["box_xyxy"]
            with Image.open(crops.pop(f"{each['name']}/{Path(image['source']).stem}-{number}.jpg")) as crop:
                assert crop.width - 2 < x2 - x1 <= crop.width and crop.height - 2 < y2 - y1 <= crop.height
    assert not crops
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == ["crops", "detections.csv", "predictions.json", "val-0.jpg", "val-2.jpg", "yolo"]


def test_a_file_that_cannot_be_written_is_reported(
    detrs: Callable, checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detrs.cli.prediction_files.link", full)
    done = detrs("predict", checkpoint, folder, "--save-yolo", "--device", "cpu", "--output", "out")
    assert done.code == 2 and "No space left on device. 2 more failed: see out/predictions.json" in done.err
    assert len(predictions("out")) == 3  # nothing else is lost


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--classes", "drak"), "The detector has no class 'drak'. Did you mean 'dark'? Its classes are bright, dark."),
        (("--classes",), "--classes expects at least one name, got none."),
        (("--nms", 70), "nms is 70.0, but must be an IoU above 0 and at most 1"),
        (("--tile", 8), "tile is 8, but must be"),
        (("--tile", 64, "--overlap", 20), "overlap is 20.0, but must be in [0, 0.9]"),
        (("--overlap", 0.2), "--overlap has no effect without --tile SIZE"),
        (("--tiles-only",), "--tiles-only has no effect without --tile SIZE"),
        (("--save-confidence",), "--save-confidence has no effect without --save-yolo"),
        (("--threshold", "per_class"), "--threshold expects a number in [0, 1] or per-class, got 'per_class'."),
        (("--threshold", 30), "threshold is 30.0, but must be in [0, 1]."),
    ],
)
def test_bad_values(detrs: Callable, checkpoint: Path, folder: Path, flags: tuple[Any, ...], message: str) -> None:
    done = detrs("predict", checkpoint, folder, "--device", "cpu", "--output", "out", *flags)
    assert done.code == 2 and done.message.startswith(message), done.err
    assert not Path("out").exists()


def test_files_of_the_frames_of_a_video(detrs: Callable, checkpoint: Path, tmp_path: Path) -> None:
    from detrs.video.writing import VideoWriter

    writer = VideoWriter(tmp_path / "film.mp4")
    for number in range(4):
        random = np.random.default_rng(number)
        writer.write(Image.fromarray(random.integers(256, size=(64, 96, 3), dtype=np.uint8)), number / 10)
    writer.close()
    flags = (
        "--save-crops",
        "--save-yolo",
        "--save-csv",
        "--stride",
        2,
        "--classes",
        "dark",
        "--tile",
        48,
        "--nms",
        0.5,
    )
    done = detrs("predict", checkpoint, "film.mp4", "--threshold", 0.01, "--output", "out", "--device", "cpu", *flags)
    assert done.code == 0, done.err
    frames = [json.loads(line) for line in Path("out/film.jsonl").read_text().splitlines()]
    found = [(frame, each) for frame in frames for each in frame["detections"]]
    assert [frame["frame"] for frame in frames] == [0, 2] and found
    assert {each["name"] for _, each in found} == {"dark"}
    with Path("out/detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], int(row["frame"]), float(row["time_seconds"]), float(row["score"])) for row in rows] == [
        ("film.mp4", frame["frame"], frame["time_seconds"], each["score"]) for frame, each in found
    ]
    assert len(open_dataset("out/yolo", "train")) == 2
    names = [f"film-{frame['frame']:06}-{n}.jpg" for frame in frames for n in range(1, len(frame["detections"]) + 1)]
    assert sorted(path.name for path in Path("out/crops/dark").iterdir()) == sorted(names)
