"""Label Studio: JSON and JSON-MIN, references to images, faults."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from convert import assert_equal_targets, to_label_studio
from small import boxes, error, read, write_coco

from detrs.data.detect import find_splits
from detrs.data.formats.label_studio_files import image_of


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


@pytest.fixture
def studio(coco: Path, tmp_path: Path) -> Path:
    for split in ("train", "val"):
        to_label_studio(coco, split, tmp_path / "studio")
    return tmp_path / "studio"


def edit(change: Callable[[Any], object], file: str = "train.json") -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        data = json.loads((root / file).read_text())
        change(data)
        (root / file).write_text(json.dumps(data))

    return apply


def result(**values: Any) -> Callable[[Path], None]:
    return edit(lambda tasks: tasks[0]["annotations"][0]["result"][1].update(values))


def value(**values: Any) -> Callable[[Path], None]:
    return edit(lambda tasks: tasks[0]["annotations"][0]["result"][1]["value"].update(values))


@pytest.mark.parametrize("split", ["train", "val"])
def test_equals_the_coco_form(coco: Path, studio: Path, split: str) -> None:
    assert [found.name for found in find_splits(studio)] == ["train", "val"]
    assert_equal_targets(studio, split, coco)


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_data(shared: Path, tmp_path: Path, split: str) -> None:
    bccd = shared / "data" / "bccd"
    for each in ("train", "val"):
        to_label_studio(bccd, each, tmp_path)
    assert_equal_targets(tmp_path, split, bccd)


def minimal(tasks: list[Any]) -> list[Any]:
    """The tasks in the format JSON-MIN."""
    found = []
    for task in tasks:
        items = [each["value"] | {"original_width": each["original_width"], "original_height": each["original_height"]}
                 for each in task["annotations"][0]["result"]]  # fmt: skip
        found.append({"image": task["data"]["image"], "id": task["id"], "annotator": 1, "annotation_id": 3})
        if items:
            found[-1]["label"] = items
    return found


def test_json_min(coco: Path, studio: Path) -> None:
    path = studio / "train.json"
    tasks = minimal(json.loads(path.read_text()))
    path.write_text(json.dumps([*tasks, tasks[0]]))
    assert_equal_targets(studio, "train", coco)
    assert read(studio).notes == [
        "1 x task with several annotations, of which the first is used: train.json: task 1",
    ]


def test_an_export_without_splits(studio: Path) -> None:
    expected = boxes(read(studio))
    (studio / "val.json").unlink()
    (studio / "train.json").rename(studio / "project-1-at-2026-01-01.json")
    for root in (studio, studio / "project-1-at-2026-01-01.json"):
        assert [split.name for split in find_splits(root)] == [""]
        assert boxes(read(root, "")) == expected


def test_an_export_in_the_folder_of_each_split(studio: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "other" / split).mkdir(parents=True)
        shutil.copy(studio / f"{split}.json", tmp_path / "other" / split / "project-1.json")
        shutil.copytree(studio / "images", tmp_path / "other" / split / "images")
    for split in ("train", "val"):
        assert boxes(read(tmp_path / "other", split)) == boxes(read(studio, split))


@pytest.mark.parametrize(
    "reference",
    [
        "/data/upload/12/0a1b2c3d-train_0.png",
        "/data/local-files/?d=photos/images/train%200.png",
        "s3://bucket/photos/train 0.png",
        "https://example.org/images/train%200.png?width=100",
        "images\\train 0.png",
        "train 0.png",
    ],
)
def test_references_to_images(studio: Path, reference: str) -> None:
    expected = boxes(read(studio))
    edit(lambda tasks: tasks[0]["data"].update(image=reference))(studio)
    assert boxes(read(studio)) == expected


def test_files_that_keep_the_name_of_the_upload(studio: Path) -> None:
    (studio / "images/train 0.png").rename(studio / "images/00000001-train_0.png")
    assert read(studio).images[0].path.name == "00000001-train_0.png"


def test_the_key_of_the_image() -> None:
    assert image_of({"text": "a cat", "photo": "/data/upload/1/a.JPG"}) == "/data/upload/1/a.JPG"
    assert image_of({"photo": "a.jpg", "image": "https://a.org/1"}) == "https://a.org/1"
    assert image_of({"text": "a cat", "image": None}) is None


def test_cancelled_and_several_annotations(studio: Path) -> None:
    expected = boxes(read(studio))

    def change(tasks: list[Any]) -> None:
        first = tasks[0]["annotations"][0]
        tasks[0]["annotations"] = [first | {"was_cancelled": True, "result": []}, first, first | {"result": []}]
        tasks[2]["annotations"] = []

    edit(change)(studio)
    found = read(studio)
    assert boxes(found) == expected and len(found.images) == 2
    assert found.notes[:2] == [
        "1 x task with several annotations, of which the first is used: train.json: task 1",
        "1 x task without annotations, skipped: train.json: task 3",
    ]


def test_labels_that_are_results_of_their_own(studio: Path) -> None:
    expected = boxes(read(studio))

    def change(tasks: list[Any]) -> None:
        results = tasks[0]["annotations"][0]["result"]
        box = results[0]["value"]
        names = box.pop("rectanglelabels")
        results[0]["type"] = "rectangle"
        results.append(results[0] | {"type": "labels", "value": box | {"labels": names}})

    edit(change)(studio)
    assert boxes(read(studio)) == expected


@pytest.mark.parametrize(
    ("kind", "sides"),
    [
        ("polygonlabels", {"points": [[10, 30], [20, 20], [30, 60]]}),
        ("ellipselabels", {"x": 20, "y": 40, "radiusX": 10, "radiusY": 20, "rotation": 0}),
    ],
)
def test_other_shapes(studio: Path, kind: str, sides: dict[str, Any]) -> None:
    result(type=kind, value=sides | {kind: ["cat"]})(studio)
    found = read(studio)
    box = next(box for file, name, box in boxes(found) if (file, name) == ("train 0.png", "cat"))
    assert box == pytest.approx([9.7, 12.2, 19.4, 24.4])
    place = "train.json: task 1: result[1]"
    assert found.notes == [f"1 x polygon or other shape, of which the enclosing upright box is used: {place}"]
    result(type="choices", value={"choices": ["night"]})(studio)
    assert f"1 x result of the type 'choices', which has no box, ignored: {place}" in read(studio).notes


def fractions(tasks: list[Any]) -> None:
    for task in tasks:
        for each in task["annotations"][0]["result"]:
            each["value"].update(x=0.1, y=0.2, width=0.3, height=0.4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "train.json").write_text('[{"data": {},\n "annotations": ['), "invalid JSON at line 2"),
        (edit(lambda tasks: tasks.append(3)), r"task that is not an object: train.json: \[3\]"),
        (edit(lambda tasks: tasks[0].update(data={"text": "a"})), "task without an image: train.json: task 1"),
        (edit(lambda tasks: tasks[0].update(annotations=1.5)), "annotations are not a list: train.json: task 1: 1.5"),
        (edit(lambda tasks: tasks[0].update(annotations={"id": 1})), "not a list: train.json: task 1: {"),
        (edit(lambda tasks: tasks[0]["annotations"][0].update(result=None)), "the list 'result': train.json: task 1"),
        (edit(lambda tasks: tasks[0]["annotations"][0]["result"].append(3)), r"train.json: task 1: result\[3\]"),
        (value(rectanglelabels=[]), r"box without label: train.json: task 1: result\[1\]: \[\]"),
        (value(width=None), r"box without numbers \(expected x, y, width, height in percent\).*result\[1\]"),
        (value(width=640), r"above 100 \(expected percent of the image, not pixels\): train.json: task 1: result\[1\]"),
        (value(width=-3), r"negative width or height.*task 1: result\[1\]"),
        (value(rotation=12.5), r"rotated box.*train.json: task 1: result\[1\]: rotation 12.5"),
        (edit(fractions), r"file with all values in \[0, 1\] \(expected percent of the image\): train.json"),
        (edit(lambda tasks: tasks[0]["data"].update(image="https://a.org/none.png")), "URL.*train.json: task 1: https://a"),
        (edit(lambda tasks: tasks[0]["data"].update(image="/data/upload/1/none.png")), r"missing image.*none.png"),
        (edit(lambda tasks: tasks[0]["annotations"][0]["result"][0].update(original_width=98)), "97 x 61, not 98 x 61"),
    ],
)  # fmt: skip
def test_faults(studio: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(studio)
    text = error(studio)
    assert re.search(message, text), text


def test_images_of_the_same_name_in_several_folders(studio: Path) -> None:
    for folder in ("a", "b"):
        (studio / "images" / folder).mkdir()
        shutil.copy(studio / "images/train 0.png", studio / "images" / folder)
    edit(lambda tasks: tasks[0]["data"].update(image="/data/local-files/?d=images/b/train 0.png"))(studio)
    assert {image.path.parent.name for image in read(studio).images} == {"b", "images"}
    (studio / "images/train 0.png").unlink()
    assert {image.path.parent.name for image in read(studio).images} == {"b", "images"}
    edit(lambda tasks: tasks[0]["data"].update(image="train 0.png"))(studio)
    assert "task with several images of its name (keep one): train.json: task 1: " in error(studio)
