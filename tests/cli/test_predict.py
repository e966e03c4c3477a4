import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrs.checkpoints.detector import load_detector, save_detector
from detrs.cli.image_results import stem
from detrs.evaluation.thresholds import between
from detrs.predictor import Predictor
from detrs.visualization.draw import Style, draw_detections


def test_json_and_annotated_images(detrs: Callable, checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    words = ("--output", output, "--threshold", 0.001, "--device", "cpu", "--json")
    done = detrs("predict", checkpoint, folder, *words)
    assert done.code == 0 and len(done.out.splitlines()) == 1 and "val-0.png" in done.err
    predictions = json.loads((output / "predictions.json").read_text())
    expected = Predictor.load(checkpoint, "cpu")(folder, threshold=0.001)
    assert [{**image, "annotated_image": None} for image in predictions["images"]] == [
        {**each.to_json(), "annotated_image": None} for each in expected
    ]
    names = [image["annotated_image"] for image in predictions["images"]]
    assert names == ["val-0.jpg", "val-1.jpg", "val-2.jpg"]
    assert sorted(path.name for path in output.iterdir()) == ["predictions.json", *names]
    assert done.json == {
        "output": str(output),
        "predictions": str(output / "predictions.json"),
        "checkpoint": str(checkpoint),
        "precision": "fp32",
        "nms": None,
        "threshold": 0.001,
        "num_images": 3,
        "num_videos": 0,
        "num_frames": 0,
        "num_detections": sum(map(len, expected)),
        "skipped": [],
    }
    assert sum(map(len, expected)) > 0
    with Image.open(folder / "val-0.png") as image, Image.open(output / "val-0.jpg") as drawing:
        original, drawn = (np.asarray(each.resize(image.size), float) for each in (image, drawing))
    assert np.abs(drawn - original).max() > 60  # something was drawn on it


def test_an_unreadable_image_is_skipped(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    (folder / "val-1.png").write_text("a text")
    done = detrs("predict", checkpoint, folder, "missing.png", "--device", "cpu", "--output", "out", "--json")
    assert done.code == 2 and "Traceback" not in done.err
    last = done.err.splitlines()[-1]
    assert (
        last.startswith("error: ")
        and "val-1.png is not a readable image" in last
        and "1 more failed: see out/predictions.json" in last
    )
    assert done.json["num_images"] == 2
    assert [Path(each["source"]).name for each in done.json["skipped"]] == ["val-1.png", "missing.png"]
    predictions = json.loads(Path("out/predictions.json").read_text())
    assert [image["annotated_image"] for image in predictions["images"]] == ["val-0.jpg", "val-2.jpg"]
    assert predictions["skipped"] == done.json["skipped"]


def test_images_of_equal_name_do_not_overwrite_each_other(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    Path("other").mkdir()
    (folder / "val-0.png").rename("other/val-1.png")
    done = detrs("predict", checkpoint, folder / "val-1.png", "other/val-1.png", "--device", "cpu")
    assert done.code == 0 and "2 images: runs/predict-1/predictions.json" in done.out and not done.err
    assert {path.name for path in Path("runs/predict-1").glob("*.jpg")} == {"val-1.jpg", "val-1-2.jpg"}


def test_nothing_is_ever_overwritten(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = detrs("predict", checkpoint, folder, "--output", folder, "--device", "cpu")
    assert done.code == 2 and "is not empty: choose another one" in done.message
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((), "No sources given"),
        (("nowhere",), "nowhere does not exist"),
        (("https://example.com/a.jpg",), "--allow-urls"),
        (("*.png",), ".tiff) match '*.png'."),
        ((".",), "The folder '.' has no images"),
        (("images/**.jpg",), "; '**' must be a whole path component, as in 'images/**/*.jpg'."),
        (("x" * 300,), "cannot be opened: File name too long"),
        (("~nobody-of-this-name/x",), "is not a valid path or pattern: Could not determine home directory."),
    ],
)
def test_bad_sources(detrs: Callable, checkpoint: Path, sources: tuple[str, ...], message: str) -> None:
    Path("out").mkdir()
    done = detrs("predict", checkpoint, *sources, "--device", "cpu", "--json", "--output", "out")
    assert done.code == 2 and message in done.err.splitlines()[-1] and "Traceback" not in done.err
    assert not done.err.rstrip().endswith("..")


def test_the_threshold_is_that_of_the_checkpoint_by_default(
    detrs: Callable, checkpoint: Path, folder: Path, tmp_path: Path
) -> None:
    """The printed threshold, typed again, gives the same detections."""
    detector = load_detector(checkpoint)
    scores = torch.cat([each.scores for each in Predictor(detector, "cpu")(folder, threshold=0.0)]).sort().values
    threshold = between(float(scores[-4]), float(scores[-3]))
    own = tmp_path / "own.safetensors"
    save_detector(own, replace(detector, threshold=threshold))
    words = (folder, "--device", "cpu")
    done = detrs("predict", own, *words, "--json")
    assert done.json["threshold"] == threshold and done.json["num_detections"] == 3
    assert f"threshold {threshold}: stored in the checkpoint, best F1" in done.err
    typed = detrs("predict", own, *words, "--threshold", threshold)
    assert f"threshold {threshold}: from --threshold" in typed.out and "3 detections in 3 images" in typed.out
    default = detrs("predict", checkpoint, *words)
    assert "threshold 0.5: default, since the checkpoint contains none" in default.out
    assert "No detection reaches the threshold 0.5; the highest score is" in default.out


def test_flags_for_drawing(detrs: Callable, checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    styles = []

    def draw(*arguments: Any, style: Style) -> Image.Image:
        styles.append(style)
        return draw_detections(*arguments, style=style)

    monkeypatch.setattr("detrs.visualization.draw.draw_detections", draw)
    words = (folder / "val-0.png", "--device", "cpu", "--threshold", 0)
    flags = ("--hide-labels", "--line-width", 3, "--color-by", "instance")
    assert detrs("predict", checkpoint, *words, *flags).code == 0
    assert detrs("predict", checkpoint, *words, "--show-labels").code == 0
    assert styles == [Style(show_labels=False, line_width=3, color_by="instance"), Style()]
    both = detrs("predict", checkpoint, *words, "--show-labels", "--hide-labels")
    assert both.code == 2 and "exclude each other" in both.message
    bad = detrs("predict", checkpoint, *words, "--line-width", 0)
    assert bad.code == 2 and bad.message.startswith("line_width is 0, but must be")


def test_numbers_have_their_nouns(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    words = (checkpoint, folder / "val-0.png", "--device", "cpu")
    scores = Predictor.load(checkpoint, "cpu")(folder / "val-0.png", threshold=0.0)[0].scores
    best = float(scores[0] + scores[1]) / 2
    assert "1 detection in 1 image: runs/" in detrs("predict", *words, "--threshold", best).out
    assert "2 detections in 1 image: runs/" in detrs("predict", *words, "--threshold", float(scores[1])).out


def test_bad_threshold(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    done = detrs("predict", checkpoint, folder, "--threshold", 50, "--device", "cpu")
    assert done.code == 2 and done.message == "threshold is 50.0, but must be in [0, 1]."


def test_an_interruption_keeps_the_predictions_so_far(
    detrs: Callable, checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(images: int) -> Callable:
        def draw(*arguments: Any, **options: Any) -> Image.Image:
            drawn.append(1)
            if len(drawn) > images:
                raise KeyboardInterrupt
            return draw_detections(*arguments, **options)

        drawn: list[int] = []
        return draw

    monkeypatch.setattr("detrs.visualization.draw.draw_detections", stopped(2))
    done = detrs("predict", checkpoint, folder, "--device", "cpu", "--output", "out")
    assert done.code == 130
    predictions = json.loads(Path("out/predictions.json").read_text())
    assert [image["annotated_image"] for image in predictions["images"]] == ["val-0.jpg", "val-1.jpg"]


def test_a_drawing_that_cannot_be_written_is_skipped(
    detrs: Callable, checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Image.Image.save

    def fail(image: Image.Image, path: Path, **options: Any) -> None:
        if path.name == "val-1.jpg":
            raise OSError(28, "No space left on device")
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", fail)
    done = detrs("predict", checkpoint, folder, "--device", "cpu", "--output", "out")
    assert done.code == 2 and "Cannot write 'out/val-1.jpg': No space left on device" in done.err.splitlines()[-1]
    images = json.loads(Path("out/predictions.json").read_text())["images"]
    assert [image["annotated_image"] for image in images] == ["val-0.jpg", None, "val-2.jpg"]


def test_names_of_all_kinds(detrs: Callable, checkpoint: Path, folder: Path) -> None:
    """Markup, bytes that are no UTF-8, and names that leave no room for what is added."""
    (folder / "a[").mkdir()
    names = ["a[/] [bold] :smile:.png", os.fsdecode(b"caf\xe9.png"), "猫" * 83 + ".png"]  # the first one in a folder
    for number, name in enumerate(names):
        (folder / f"val-{number}.png").rename(folder / name)
    (folder / os.fsdecode(b"\xff [red].png")).write_text("not an image")
    done = detrs("predict", checkpoint, folder / "a[", folder, "--device", "cpu", "--output", "out [x]")
    assert done.code == 2 and "is not a readable image" in done.err and "Traceback" not in done.err
    assert "a[/] [bold] :smile:" in done.out and "caf\\udce9.png" in done.out
    assert "out [x]/predictions.json" in done.out
    names = {image["annotated_image"] for image in json.loads(Path("out [x]/predictions.json").read_text())["images"]}
    assert names == {"] [bold] :smile:.jpg", "caf.jpg", "猫" * 66 + ".jpg"}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("https://example.com/a/b.png?size=3&x=/c.png#d", "b"),
        ("https://example.com", "image"),
        ("https://example.com/" + "x" * 300 + ".png", "x" * 200),
        ("a/b.c.jpg", "b.c"),
    ],
)
def test_names_of_annotated_images(source: str, name: str) -> None:
    assert stem(source) == name
