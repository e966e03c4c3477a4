"""Where annotation files and images of COCO datasets are, beside the layouts in ``tests/data/test_detect.py``."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from detrs.cli import main
from detrs.data.check import read_annotations
from detrs.data.detect import find_split, find_splits
from detrs.data.formats import coco
from detrs.data.formats.json_head import top_level_keys
from detrs.errors import UserError

COCO: dict[str, Any] = {"info": {}, "images": [], "annotations": [], "categories": []}
OTHERS: dict[str, Any] = {
    "samples": {"samples": []},
    "labels": {"classes": [], "labels": {}},
    "labelme": {"version": "5", "shapes": []},
    "labelme with image": {"imageData": "A" * 70000, "shapes": [], "images": 3},
    "tasks": [{"id": 1, "annotations": [{"result": []}], "data": {"image": "a.jpg"}}],
    "notes": {"categories": [], "info": {}},
    "results": [{"image_id": 1, "score": 0.5, "bbox": [1, 2, 3, 4]}],
}


def lay_out(root: Path, *files: str, content: Any = COCO) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("image", ["train/a.jpg", "train/images/a.jpg", "train/data/a.jpg", "images/train/a.jpg"])
@pytest.mark.parametrize(
    "file",
    [
        *("annotations.json", "_annotations.coco.json", "annotations.coco.json", "labels.json", "instances.json"),
        *("anything.json", "annotations/instances.json", "annotations/anything.json"),
    ],
)
def test_annotations_in_the_folder_of_a_split(tmp_path: Path, file: str, image: str) -> None:
    root = lay_out(tmp_path, f"train/{file}", f"valid/{file}", f"my split/{file}", image)
    found = {split.name: split for split in find_splits(root)}
    assert [*found] == ["my split", "train", "valid"]
    assert found["train"].path == root / "train" / file
    assert (root / image).parent in found["train"].folders  # type: ignore[attr-defined]
    assert find_split(root, "val").name == "valid"


@pytest.mark.parametrize("image", ["a.jpg", "images/a.jpg", "data/a.jpg"])
@pytest.mark.parametrize(
    "file",
    [
        *("labels.json", "annotations.json", "_annotations.coco.json", "instances.json"),
        *("annotations/annotations.json", "annotations/instances.json"),
    ],
)
def test_a_dataset_that_is_not_divided(tmp_path: Path, file: str, image: str) -> None:
    root = lay_out(tmp_path, file, image)
    (split,) = find_splits(root)
    assert split.name == "" and (root / image).parent in split.folders  # type: ignore[attr-defined]
    assert find_split(root, Path(file).stem) == split  # the name of the file is accepted, too


def test_files_of_other_tasks_and_formats_are_not_splits(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "annotations/instances_train2017.json", "annotations/instances_val2017.json")
    for task in ("person_keypoints", "captions", "panoptic", "stuff"):
        lay_out(root / "annotations", f"{task}_train2017.json")
    lay_out(root / "annotations", "image_info_test2017.json")
    for name, content in OTHERS.items():
        lay_out(root, f"{name}.json", content=content)
    assert [split.name for split in find_splits(root)] == ["train2017", "val2017"]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("folder", ["", "train/"])
def test_other_json_files_are_not_coco(tmp_path: Path, name: str, folder: str) -> None:
    lay_out(tmp_path, f"{folder}{name}.json", content=OTHERS[name])
    assert coco.splits(tmp_path) == []


def test_a_folder_of_one_file_per_image_is_not_read_completely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, *(f"{number}.json" for number in range(200)), content=OTHERS["labelme"])
    lay_out(tmp_path, "train.json")
    opened = []

    def record(path: Path) -> list[str] | None:
        opened.append(path)
        return top_level_keys(path)

    monkeypatch.setattr("detrs.data.formats.coco_layouts.top_level_keys", record)
    assert [split.name for split in coco.splits(tmp_path)] == ["train"]
    assert len(opened) <= 30


@pytest.mark.parametrize("file", ["export.json", "annotations/project-1.json", "images/project-1.json"])
def test_an_export_of_label_studio_beside_the_dataset(tmp_path: Path, file: str) -> None:
    lay_out(tmp_path, "annotations/train.json", "annotations/val.json", "images/a.jpg")
    lay_out(tmp_path, file, content=OTHERS["tasks"])
    assert [(split.name, type(split)) for split in find_splits(tmp_path)] == [
        ("train", coco.CocoSplit),
        ("val", coco.CocoSplit),
    ]
    lay_out(tmp_path, "train.json", content=OTHERS["tasks"])
    (tmp_path / "annotations" / "train.json").unlink()
    (tmp_path / "annotations" / "val.json").unlink()
    assert not any(isinstance(split, coco.CocoSplit) for split in find_splits(tmp_path))


def test_the_former_layouts_have_priority(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "annotations/instances_train2017.json", "train/labels.json", "test/labels.json")
    assert find_split(root, "train").path == root / "annotations" / "instances_train2017.json"
    assert find_split(root, "test").path == root / "test" / "labels.json"


@pytest.mark.parametrize(
    ("files", "given", "names"),
    [
        (("annotations/train.json", "annotations/val.json"), "annotations/train.json", ["train", "val"]),
        (("annotations/train.json", "annotations/val.json"), "annotations/val.json", [""]),
        (("annotations/instances_train2017.json", "annotations/instances_train2014.json"),
         "annotations/instances_train2017.json", ["train2017"]),
        (("train.json", "val.json"), "train.json", ["train", "val"]),
        (("train/labels.json", "val/labels.json"), "train/labels.json", ["train", "val"]),
        (("train/_annotations.coco.json", "valid/_annotations.coco.json"), "valid/_annotations.coco.json", [""]),
        (("labels.json",), "labels.json", [""]),
        (("annotations/person_keypoints_train2017.json",), "annotations/person_keypoints_train2017.json", [""]),
        (("somewhere/else.json",), "somewhere/else.json", [""]),
    ],
)  # fmt: skip
def test_a_path_to_an_annotation_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], given: str, names: list[str]
) -> None:
    root = lay_out(tmp_path, *files)
    for path in (root / given, Path(given)):
        monkeypatch.chdir(root)
        splits = find_splits(path)
        assert [split.name for split in splits] == names
        assert splits[0].path == root / given


def test_the_images_of_an_annotation_file(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "bccd" / "annotations" / "train.json"
    expected = read_annotations(find_split(shared / "data" / "bccd", "train"))
    assert read_annotations(find_split(path, "train")).images[:] == expected.images[:]
    root = tmp_path / "export"
    shutil.copytree(shared / "data" / "bccd" / "images", root / "data")
    shutil.copy(path, root / "labels.json")
    (split,) = find_splits(root)
    found = read_annotations(split)
    assert [image.path.name for image in found.images] == [image.path.name for image in expected.images]
    assert (found.objects.boxes == expected.objects.boxes).all() and found.digest == expected.digest


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("data.txt", "", "is not a folder, and not a file of a dataset"),
        ("list.json", "[1, 2]", "is not a folder, and not a file of a dataset"),
        ("boxes.json", json.dumps(OTHERS["results"]), "looks like detections, not annotations"),
        ("damaged.json", '{"images": [', "invalid JSON at line 1, column 13"),
        ("empty.json", "", "is empty"),
    ],
)
def test_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, message: str) -> None:
    path = tmp_path / file
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_annotations(find_splits(path)[0])
    assert main(["train", "deformable-detr-tiny", "--data", str(path), "--output", str(tmp_path / "run")]) == 2
