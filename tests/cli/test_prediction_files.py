"""Crops, YOLO labels and tables contain the detections that they are made from."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_detector import CLASSES, finder, painted
from PIL import Image
from torch import Tensor

from detrs.cli.prediction_files import COLUMNS, FileChoice, PredictionFiles, folder_names, yolo_lines
from detrs.config import RuntimeConfig
from detrs.data import open_dataset
from detrs.data.detect import find_split
from detrs.engine.evaluate import evaluate
from detrs.engine.runtime import Runtime
from detrs.errors import UserError
from detrs.predictor import Predictor
from detrs.structures import Classes, Detections

SIZE = (70, 110)
RECTANGLES = [(1, (10, 15, 40, 35)), (0, (50, 20, 73, 61)), (2, (80, 5, 90, 12)), (1, (80, 30, 100, 40))]


def make_image(folder: Path, name: str, rectangles: Any = RECTANGLES, size: tuple[int, int] = SIZE) -> Path:
    path = folder / name
    Image.fromarray(painted(size, rectangles).permute(1, 2, 0).numpy()).save(path, quality=100)
    return path


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(finder(110), "cpu")


def detections(boxes: list[list[float]], classes: Classes = CLASSES, source: str | None = None) -> Detections:
    count = len(boxes)
    scores, labels = torch.linspace(0.9, 0.5, count), torch.arange(count) % len(classes.names)
    return Detections(torch.tensor(boxes, dtype=torch.float32).view(-1, 4), scores, labels, classes, SIZE, source)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "detections.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_dataset_is_read_again_and_evaluated(predictor: Predictor, tmp_path: Path) -> None:
    """The detector agrees with its own detections."""
    (tmp_path / "in").mkdir()
    make_image(tmp_path / "in", "a.png")
    make_image(tmp_path / "in", "b.png", [], (31, 50))
    make_image(tmp_path / "in", "c.PNG", RECTANGLES[1:], (80, 110))
    files = PredictionFiles(tmp_path, CLASSES, FileChoice(yolo=True))
    for image, found in predictor.predict_iter(tmp_path / "in"):
        files.add(image, found, Path(found.source or "").stem)
    split = find_split(tmp_path / "yolo", "train")
    assert split.name == "train"
    dataset = open_dataset(str(tmp_path / "yolo"), "train")
    assert dataset.classes.names == CLASSES.names and len(dataset) == 3 and dataset.notes == []
    for index, expected in enumerate((RECTANGLES, [], RECTANGLES[1:])):
        sample = dataset[index]
        rows = torch.cat([sample.labels[:, None], sample.boxes.as_subclass(Tensor)], 1).tolist()
        np.testing.assert_allclose(sorted(rows), sorted([label, *box] for label, box in expected), atol=1e-3)
    scores = evaluate(predictor.detector, dataset, Runtime(RuntimeConfig(device="cpu")))
    assert scores.report.ap == 1.0 and scores.report.num_objects == 7
    for name in ("a.png", "b.png"):
        assert os.path.samefile(tmp_path / "in" / name, tmp_path / "yolo" / "images" / "train" / name)


def test_lines_are_fractions_of_the_image() -> None:
    found = detections([[11, 7, 33, 21], [-5, 60, 20, 90], [40, 30, 40, 50], [108.5, 1, 300, 3]])
    lines = yolo_lines(found)
    assert lines == [
        "0 0.200000 0.200000 0.200000 0.200000\n",
        "1 0.090909 0.928571 0.181818 0.142857\n",  # clipped; the third has no area
        "0 0.993182 0.028571 0.013636 0.028571\n",
    ]
    with_scores = yolo_lines(found, confidence=True)
    assert [line.rsplit(" ", 1)[0] + "\n" for line in with_scores] == lines
    assert [float(line.split()[5]) for line in with_scores] == pytest.approx([0.9, 0.766667, 0.5], abs=1e-6)


def test_labels_with_scores_are_no_dataset(predictor: Predictor, tmp_path: Path) -> None:
    path = make_image(tmp_path, "a.png")
    files = PredictionFiles(tmp_path, CLASSES, FileChoice(yolo=True, confidence=True))
    for image, found in predictor.predict_iter(path):
        files.add(image, found, "a")
    with pytest.raises(UserError, match="perhaps with a score, as in predictions"):
        open_dataset(str(tmp_path / "yolo"), "train")


def test_crops_are_the_pixels_of_the_objects(predictor: Predictor, tmp_path: Path) -> None:
    path = make_image(tmp_path, "a.png")
    files = PredictionFiles(tmp_path, CLASSES, FileChoice(crops=True))
    ((image, found),) = predictor.predict_iter(path)
    files.add(image, found, "a")
    written = sorted(str(path.relative_to(tmp_path / "crops")) for path in (tmp_path / "crops").rglob("*.jpg"))
    order = {tuple(box): number for number, box in enumerate(found.boxes_xyxy.round().int().tolist(), 1)}
    expected = {f"{CLASSES.names[label]}/a-{order[box]}.jpg": (label, box) for label, box in RECTANGLES}
    assert written == sorted(expected)
    for name, (label, (x1, y1, x2, y2)) in expected.items():
        pixels = read(tmp_path / "crops" / name)
        assert pixels.shape == (y2 - y1, x2 - x1, 3)
        assert pixels[..., label].min() > 200 and np.delete(pixels, label, 2).max() < 60  # JPEG


def test_crops_of_boxes_at_and_beyond_the_border(tmp_path: Path) -> None:
    image = torch.randint(256, (3, *SIZE), dtype=torch.uint8)
    boxes = [
        [-20, -20, 5.2, 4.9],
        [104.6, 60, 300, 300],
        [200, 10, 300, 20],
        [30, 30, 30, 40],
        [30.2, 30.2, 30.4, 30.4],
    ]
    PredictionFiles(tmp_path, CLASSES, FileChoice(crops=True)).add(image, detections(boxes), "a")
    shapes = {path.name: read(path).shape for path in tmp_path.rglob("*.jpg")}
    assert shapes == {"a-1.jpg": (5, 6, 3), "a-2.jpg": (10, 6, 3), "a-5.jpg": (1, 1, 3)}


def test_the_table(predictor: Predictor, tmp_path: Path) -> None:
    name = 'a "b", ü.png'
    path = make_image(tmp_path, name)
    files = PredictionFiles(tmp_path, CLASSES, FileChoice(csv=True))
    ((image, found),) = predictor.predict_iter(path)
    files.add(image, found, "a")
    files.add(image, found, "a", frame_index=30, time_seconds=1.0 / 3)
    table = rows(tmp_path)
    assert len(table) == 2 * len(RECTANGLES) and tuple(table[0]) == COLUMNS
    for number, row in enumerate(table):
        entry = found.to_json()["detections"][number % len(RECTANGLES)]
        assert row["source"] == str(path) and (row["class"], int(row["category_id"])) == (
            entry["name"],
            entry["category_id"],
        )
        assert [float(row[side]) for side in ("x1", "y1", "x2", "y2")] == entry["box_xyxy"]
        assert float(row["score"]) == entry["score"]
        assert (row["image_height"], row["image_width"]) == ("70", "110")
        is_frame = number >= len(RECTANGLES)
        assert (row["frame"], row["time_seconds"]) == (("30", "0.333333") if is_frame else ("", ""))


def test_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    files = PredictionFiles(tmp_path, CLASSES, FileChoice(crops=True, yolo=True))
    for name in ("a", "A", "a-2", "a"):
        files.add(image, detections([[1, 2, 30, 40]]), name)
    for number in (0, 5):
        files.add(image, detections([[1, 2, 30, 40]]), "film", frame_index=number)
    stems = ["a", "A-2", "a-2-2", "a-3", "film-000000", "film-000005"]
    assert sorted(path.stem for path in (tmp_path / "yolo" / "labels").rglob("*.txt")) == sorted(stems)
    assert sorted(path.name for path in (tmp_path / "yolo" / "images").rglob("*")) == sorted(
        [*(f"{s}.jpg" for s in stems), "train"]
    )
    assert sorted(path.stem for path in (tmp_path / "crops").rglob("*.jpg")) == sorted(f"{stem}-1" for stem in stems)


def test_names_that_a_dataset_cannot_have(tmp_path: Path) -> None:
    """``classes.txt`` would be the class names, and hidden images are not read."""
    files = PredictionFiles(tmp_path, CLASSES, FileChoice(yolo=True))
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    for name in ("classes", ".hidden", "Classes"):
        files.add(image, detections([[1, 2, 30, 40]]), name)
    stems = [path.stem for path in (tmp_path / "yolo" / "labels").rglob("*.txt")]
    assert sorted(stems) == ["Classes-3", "classes-2", "hidden"]
    dataset = open_dataset(str(tmp_path / "yolo"), "train")
    assert [len(dataset[index].boxes) for index in range(len(dataset))] == [1, 1, 1]


def test_names_of_classes_are_no_paths(tmp_path: Path) -> None:
    names = ("../../evil", "/etc", "..", "", "a\\b", "con\x00", "x" * 300, "é" * 300, "naïve", "A", "a")
    folders = folder_names(names)
    assert len({name.casefold() for name in folders}) == len(names)
    for name in folders:
        assert name not in (".", "..") and "/" not in name and "\\" not in name and len(os.fsencode(name)) <= 110
        (tmp_path / name).mkdir()
    assert folders[8:] == ["naïve", "A", "a-2"]
    classes = Classes(names, tuple(range(len(names))))
    image, output = torch.zeros(3, *SIZE, dtype=torch.uint8), tmp_path / "deep" / "out"
    output.mkdir(parents=True)
    files = PredictionFiles(output, classes, FileChoice(crops=True, yolo=True, csv=True))
    before = {path for path in tmp_path.rglob("*") if output not in path.parents}
    files.add(image, detections([[1, 2, 30, 40]] * len(names), classes), "a")
    assert {path for path in tmp_path.rglob("*") if output not in path.parents} == before
    assert len([*(output / "crops").rglob("*.jpg")]) == len(names)
    assert [row["class"] for row in rows(output)] == [*names]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = PredictionFiles(tmp_path, CLASSES, FileChoice(crops=True, csv=True))
    image, found = torch.zeros(3, *SIZE, dtype=torch.uint8), detections([[1, 2, 30, 40]])

    def full(self: Image.Image, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"\xff\xd8")
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(UserError, match=r"^Cannot write '.*a-1\.jpg': No space left on device\.$"):
            files.add(image, found, "a")
    assert not [*tmp_path.rglob("*.jpg")]
    files.add(image, found, "b")
    assert len(rows(tmp_path)) == 2 and [path.name for path in tmp_path.rglob("*.jpg")] == ["b-1.jpg"]


def test_nothing_is_written_unless_asked(tmp_path: Path) -> None:
    files = PredictionFiles(tmp_path, CLASSES, FileChoice())
    files.add(torch.zeros(3, *SIZE, dtype=torch.uint8), detections([[1, 2, 30, 40]]), "a")
    assert not [*tmp_path.iterdir()]
