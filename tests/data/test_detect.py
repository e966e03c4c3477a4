"""The supported folder layouts, and the messages for all others."""

import json
from pathlib import Path

import pytest

from detrs.data import open_dataset
from detrs.data.detect import find_split
from detrs.errors import UserError


def lay_out(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({}))
    return root


@pytest.mark.parametrize(
    ("files", "split", "annotations", "folder"),
    [
        (["annotations/instances_train2017.json", "train2017/a.jpg"], "train", 0, "train2017"),
        (["annotations/instances_train2017.json", "train2017/a.jpg"], "train2017", 0, "train2017"),
        (["annotations/instances_val2017.json", "images/val2017/a.jpg"], "val", 0, "images/val2017"),
        (["annotations/instances_val.json", "val/a.jpg"], "val", 0, "val"),
        (["annotations/train.json", "images/a.jpg"], "train", 0, "images"),
        (["annotations/train.json", "images/train/a.jpg", "images/b.jpg"], "train", 0, "images/train"),
        (["annotations/train.json", "train/a.jpg"], "train", 0, "train"),
        (["val.json", "images/a.jpg"], "val", 0, "images"),
        (["train.json", "a.jpg"], "train", 0, "."),
        (["train/_annotations.coco.json", "train/a.jpg"], "train", 0, "train"),
        (["valid/_annotations.coco.json", "valid/a.jpg"], "val", 0, "valid"),
        (["valid/_annotations.coco.json", "valid/a.jpg"], "validation", 0, "valid"),
        (["annotations/validation.json", "images/validation/a.jpg"], "val", 0, "images/validation"),
        (["annotations/val.json", "valid/a.jpg"], "val", 0, "valid"),
        (["test/_annotations.coco.json"], "test", 0, "test"),
        (["annotations/odd-name.json", "images/a.jpg"], "odd-name", 0, "images"),
        (["annotations/captions_train2017.json", "annotations/instances_train2017.json"], "train", 1, "."),
        (["annotations/instances_train2014.json", "annotations/instances_train.json"], "train", 1, "."),
    ],
)
def test_layouts(tmp_path: Path, files: list[str], split: str, annotations: int, folder: str) -> None:
    root = lay_out(tmp_path, *files)
    found = find_split(root, split)
    assert found.path == root / files[annotations]
    assert found.folders[0] == root / folder


def test_the_shared_sets(shared: Path) -> None:
    for split in ("train", "val", "valid", "test"):
        found = find_split(shared / "data" / "bccd", split)
        assert found.path.is_file() and found.folders[0].name == "images"


def test_a_folder_inside_of_a_dataset(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"Its files are 364 .jpg. Use --data {shared / 'data' / 'bccd'} for the"):
        find_split(shared / "data" / "bccd" / "images", "train")
    (tmp_path / "others" / "a").mkdir(parents=True)
    (tmp_path / "others" / "images").mkdir()
    lay_out(tmp_path / "others" / "a", "my.json", "a.jpg")
    with pytest.raises(UserError) as caught:
        find_split(tmp_path / "others" / "images", "train")
    assert "Use --data" not in str(caught.value) and "Supported layouts:\n  " in str(caught.value)


def test_an_archive(tmp_path: Path) -> None:
    (tmp_path / "cells.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"is an archive. Unpack it"):
        find_split(tmp_path / "cells.zip", "train")


def test_a_missing_folder_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "blood-cells").mkdir()
    with pytest.raises(UserError, match=r"does not exist. Did you mean 'blood-cells'?"):
        find_split(tmp_path / "blood-cell", "train")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a folder"):
        find_split(tmp_path / "file", "train")
    with pytest.raises(UserError, match="does not exist"):
        find_split(tmp_path / "no" / "where", "train")


def test_a_missing_split_lists_the_available_ones(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "annotations/train.json", "valid/_annotations.coco.json")
    with pytest.raises(UserError, match=r"has no split 'test'. Available splits: train, valid."):
        find_split(root, "test")
    with pytest.raises(UserError, match=r"Did you mean 'train'?"):
        find_split(root, "trian")


def test_an_empty_folder_lists_the_supported_layouts(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_split(tmp_path, "train")
    for layout in ("annotations/instances_train2017.json", "annotations/train.json", "train/_annotations.coco.json"):
        assert layout in str(caught.value)


def test_two_files_for_one_split(tmp_path: Path) -> None:
    root = lay_out(tmp_path, "annotations/instances_train2014.json", "annotations/instances_train2017.json")
    with pytest.raises(UserError, match=r"several.*instances_train2014\.json, .*instances_train2017\.json"):
        find_split(root, "train")
    assert find_split(root, "train2014").path.name == "instances_train2014.json"


@pytest.mark.parametrize("what", ["iterdir", "glob", "is_dir"])
def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, what, fail)
    root = tmp_path / "nowhere" if what == "iterdir" else tmp_path
    with pytest.raises(UserError, match=r"cannot be read: Permission denied\."):
        find_split(root, "train")


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-of-this-name/x"])
def test_invalid_folder_names(name: str) -> None:
    with pytest.raises(UserError, match="data folder"):
        open_dataset(name, "train")
