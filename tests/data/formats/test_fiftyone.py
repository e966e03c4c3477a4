"""Exports of FiftyOne."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert import assert_equal_targets, subset, to_fiftyone, to_fiftyone_detection, train_one_epoch
from PIL import Image

from detrs.cli import main
from detrs.data.check import Annotations, read_annotations
from detrs.data.detect import find_splits
from detrs.data.formats import fiftyone
from detrs.errors import UserError

BOX = [0.1, 0.2, 0.3, 0.5]


def images(root: Path) -> None:
    (root / "data" / "sub").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name in ("a.png", "b.v2.png", "sub/c.jpg"):
        Image.fromarray(random.integers(0, 256, (50, 30, 3), dtype=np.uint8)).save(root / "data" / name)


def detections(*items: Any) -> dict[str, Any]:
    return {"_cls": "Detections", "detections": [*items]}


def detection(**values: Any) -> dict[str, Any]:
    return {"_cls": "Detection", "label": "cat", "bounding_box": BOX} | values


def samples(root: Path, *items: Any) -> Path:
    """Two correct samples, and those given."""
    images(root)
    first: dict[str, Any] = {"filepath": "data/a.png", "ground_truth": detections(detection(), detection(label="dog"))}
    second: dict[str, Any] = {"filepath": "data/b.v2.png", "ground_truth": None}
    (root / "metadata.json").write_text("{}")
    (root / "samples.json").write_text(json.dumps({"samples": [first, second, *items]}))
    return root


def labels(root: Path, content: dict[str, Any], classes: Any = ("dog", "cat")) -> Path:
    images(root)
    first = [{"label": 1, "bounding_box": BOX}] if classes else [{"label": "cat", "bounding_box": BOX}]
    (root / "labels.json").write_text(json.dumps({"classes": classes, "labels": {"a": first, **content}}))
    return root


def read(root: Path) -> Annotations:
    return read_annotations(find_splits(root)[0])


@pytest.mark.parametrize("listed", [True, False, None])
def test_equal_to_coco(shared: Path, tmp_path: Path, listed: bool | None) -> None:
    coco = shared / "data" / "bccd"
    for split in ("train", "val"):
        if listed is None:
            to_fiftyone(coco, split, tmp_path)
        else:
            to_fiftyone_detection(coco, split, tmp_path, listed=listed)
    for split in ("train", "val"):
        assert_equal_targets(tmp_path, split, coco)


@pytest.mark.parametrize("convert", [to_fiftyone, to_fiftyone_detection])
def test_training_on_the_command_line(shared: Path, tmp_path: Path, convert: Any) -> None:
    coco = subset(shared / "data" / "bccd", tmp_path / "coco")
    for split in ("train", "val"):
        convert(coco, split, tmp_path / "set")
    train_one_epoch(tmp_path / "set", tmp_path / "run")


def test_the_layouts(tmp_path: Path) -> None:
    root = samples(tmp_path / "a")
    (split,) = find_splits(root)
    assert split.name == "" and find_splits(root / "samples.json") == [split]
    for name in ("train", "val"):
        samples(tmp_path / "b" / name)
        labels(tmp_path / "c" / name, {})
    for root in (tmp_path / "b", tmp_path / "c"):
        assert [split.name for split in find_splits(root)] == ["train", "val"]


def test_samples(tmp_path: Path) -> None:
    extra = {
        "filepath": "/home/someone/export/data/sub/c.jpg",
        "metadata": {"width": 30, "height": 50},
        "ground_truth": detections(detection(iscrowd=1), detection()),
        "scene": {"_cls": "Classification", "label": "x"},
        "predictions": detections(detection(confidence=0.5)),
    }
    root = samples(tmp_path, extra)
    content = (root / "samples.json").read_text()
    (root / "samples.json").write_text(content.replace("/home/someone/export/", ""))
    found = read(root)
    assert found.classes == (("cat", "dog"), (1, 2))
    assert [image.path.name for image in found.images] == ["a.png", "b.v2.png", "c.jpg"]
    assert [each.image_id for each in found.objects] == [1, 1, 3, 3]
    np.testing.assert_allclose(found.objects.boxes[0], [3, 10, 9, 25])
    assert found.objects.area[0] == pytest.approx(225)
    assert found.objects.crowd.tolist() == [False, False, True, False]


def test_labels(tmp_path: Path) -> None:
    root = labels(tmp_path, {"b.v2": None, "sub/c": [{"label": "dog", "bounding_box": BOX}]}, ["dog", "cat", "owl"])
    found = read(root)
    assert found.classes == (("dog", "cat", "owl"), (0, 1, 2))
    assert [image.path.name for image in found.images] == ["a.png", "b.v2.png", "c.jpg"]
    assert [each.category_id for each in found.objects] == [1, 0]
    assert not [note for note in found.notes if "file_name" in note]


def test_the_digest(tmp_path: Path) -> None:
    first = read(samples(tmp_path / "a")).digest
    assert read(samples(tmp_path / "b")).digest == first
    assert read(samples(tmp_path / "b", {"filepath": "data/sub/c.jpg"})).digest != first


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"filepath": "data/sub/c.jpg", "ground_truth": detections(detection(bounding_box=[1, 2, 3]))},
         r"bounding_box that is not .*: samples.json: data/sub/c.jpg\[0\]: \[1, 2, 3\]"),
        ({"filepath": "data/sub/c.jpg", "ground_truth": detections({}, detection(bounding_box=[10, 20, 9, 9]))},
         r"not inside \[0, 1\] .*: samples.json: data/sub/c.jpg\[1\]: \[10, 20, 9, 9\]"),
        ({"filepath": "data/sub/c.jpg", "ground_truth": detections(detection(bounding_box=[0.5, 0.5, -0.1, 0.1]))},
         "negative width or height"),
        ({"filepath": "data/sub/c.jpg", "ground_truth": detections(detection(bounding_box=["0", 0, 0, 0]))},
         "bounding_box that is not"),
        ({"filepath": "data/sub/c.jpg", "ground_truth": detections(detection(label=None))},
         r"unknown label: samples.json: data/sub/c.jpg\[0\]: None"),
        ({"filepath": "data/sub/c.jpg", "ground_truth": detections(detection(label=3))}, "unknown label"),
        ({"filepath": "data/sub/c.jpg", "ground_truth": detections(detection(iscrowd=7))}, "iscrowd that is neither"),
        ({"filepath": "data/sub/c.jpg", "ground_truth": detections("x")}, "annotation that is not an object"),
        ({"filepath": "data/gone.png"}, "missing image .of 3.: .*gone.png"),
        ({"filepath": None}, r"image without file_name: samples.json: samples\[2\]"),
        ({"filepath": "../x.png"}, r"outside the image folder: samples.json: ../x.png"),
        ({"filepath": "data/sub/c.jpg", "metadata": {"width": 50, "height": 30}}, "size .* differs"),
        (7, r"sample that is not an object: samples.json: samples\[2\]: 7"),
    ],
)  # fmt: skip
def test_faulty_samples(tmp_path: Path, item: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(samples(tmp_path, item))
    assert str(caught.value).startswith(f"{tmp_path / 'samples.json'} has errors:")


@pytest.mark.parametrize(
    ("content", "classes", "message"),
    [
        ({"b.v2": [{"label": 2, "bounding_box": BOX}]}, ["dog", "cat"], r"unknown label: labels.json: b.v2\[0\]: 2"),
        ({"b.v2": [{"label": -1, "bounding_box": BOX}]}, ["dog", "cat"], "unknown label"),
        ({"b.v2": [{"label": "cow", "bounding_box": BOX}]}, ["dog", "cat"], "unknown label"),
        ({"b.v2": [{"label": 0, "bounding_box": BOX}]}, None, "unknown label"),
        ({"b.v2": 3}, ["dog", "cat"], "boxes of an image that are not a list: labels.json: b.v2: 3"),
        ({"gone": []}, ["dog", "cat"], "missing image .of 2.: .*gone"),
        ({"../data/a": []}, ["dog", "cat"], "outside the image folder"),
        ({}, ["dog", 7], "'classes' is .*Expected a list of names"),
        ({}, ["cat", "cat"], "duplicate class name"),
    ],
)
def test_faulty_labels(tmp_path: Path, content: dict[str, Any], classes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(labels(tmp_path, content, classes))


def test_two_images_of_one_name(tmp_path: Path) -> None:
    root = labels(tmp_path, {})
    shutil.copy(root / "data" / "a.png", root / "data" / "a.jpg")
    with pytest.raises(UserError, match="several images of one name: labels.json: a: a.jpg and a.png"):
        read(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"samples": [{"filepath": "a.png"', "samples.json: invalid JSON at line 1, column 34"),
        ('{"samples": {}}', "'samples' is not a list"),
        ('{"samples": [' + "[" * 100_000, "nested too deeply to be an export of FiftyOne"),
        ('{"samples": [{"filepath": "a.png"}]}', "has no field with boxes"),
        (
            json.dumps({"samples": [{"a": detections(), "b": detections()}]}),
            "has several fields with boxes: a, b. Export one, or name it 'ground_truth'",
        ),
    ],
)
def test_faulty_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    for split in ("train", "val"):
        samples(tmp_path / "set" / split)
        (tmp_path / "set" / split / "samples.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "set")
    arguments = ["train", "deformable-detr-tiny", "--data", str(tmp_path / "set"), "--output", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_other_files_are_not_of_this_format(tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text("[]")
    (tmp_path / "labels.json").write_text('{"images": []}')
    (tmp_path / "data").mkdir()
    assert fiftyone.splits(tmp_path) == []
