"""Facts about datasets against numpy and the annotation file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrs.data.check import examine, read_annotations
from detrs.data.detect import find_split
from detrs.data.doctor import examine_dataset, quantiles
from detrs.errors import UserError


def test_numbers_of_real_data_equal_those_of_the_file(shared: Path) -> None:
    root = shared / "data" / "bccd"
    facts = examine_dataset(root).to_json()
    assert facts["format"] == "COCO" and [split["name"] for split in facts["splits"]] == ["train", "val", "test"]
    assert facts["num_errors"] == 0 and facts["copies"] == [] and facts["similar"] is None
    for split in facts["splits"]:
        data = json.loads((root / "annotations" / f"{split['name']}.json").read_text())
        boxes = np.array([entry["bbox"] for entry in data["annotations"]])
        labels = np.array([entry["category_id"] for entry in data["annotations"]])
        images = np.array([entry["image_id"] for entry in data["annotations"]])
        assert (split["num_images"], split["num_empty"], split["num_crowd"]) == (len(data["images"]), 0, 0)
        assert split["num_objects"] == len(boxes)
        for category in data["categories"]:
            assert split["objects_per_class"][category["name"]] == (labels == category["id"]).sum()
            assert split["images_per_class"][category["name"]] == len({*images[labels == category["id"]]})
        sides = np.sqrt(boxes[:, 2] * boxes[:, 3])
        for name, fraction in (("min", 0), ("5%", 0.05), ("50%", 0.5), ("95%", 0.95), ("max", 1)):
            assert split["box_side"][name] == pytest.approx(np.quantile(sides, fraction))
            assert split["box_aspect_ratio"][name] == pytest.approx(np.quantile(boxes[:, 2] / boxes[:, 3], fraction))
            counts = np.unique(images, return_counts=True)[1]
            assert split["objects_per_image"][name] == pytest.approx(np.quantile(counts, fraction))
        areas = boxes[:, 2] * boxes[:, 3]
        assert split["box_shares"]["small"] == pytest.approx((areas < 32**2).mean())
        assert split["box_shares"]["large"] == pytest.approx((areas > 96**2).mean())
        assert sum(split["box_shares"].values()) == pytest.approx(1)
        assert split["image_height"]["max"] == 480 and split["image_width"]["min"] == 640
    json.dumps(facts, allow_nan=False)


def test_examine_finds_what_read_annotations_raises(folder: Any) -> None:
    folder.data["annotations"][0]["bbox"] = [1, 2, float("nan"), 3]
    folder.data["annotations"][1]["category_id"] = 99
    folder.data["annotations"].append(dict(folder.data["annotations"][2], id=999))  # a duplicate
    folder.write()
    split = find_split(folder.root, "train")
    found = examine(split)
    with pytest.raises(UserError) as caught:
        read_annotations(split)
    assert found.failure is not None and str(caught.value) == str(found.failure)
    assert len(found.errors) == 3 and all(str(error) in str(caught.value) for error in found.errors)
    assert found.annotations is not None and len(found.annotations.images) == 3  # the usable part
    assert any("duplicate box" in note.kind for note in found.notes)
    assert set(found.annotations.notes) == {str(note) for note in found.notes}


def test_an_unreadable_file_is_an_error_of_its_split(folder: Any) -> None:
    folder.write()
    (folder.root / "annotations" / "val.json").write_text('{"images": [')
    facts = examine_dataset(folder.root)
    assert [split.name for split in facts.splits] == ["train", "val"]
    assert not facts.splits[0].errors and facts.num_errors == 1
    assert "line 1" in str(facts.splits[1].errors[0]) and facts.to_json()["splits"][1]["num_images"] == 0


def test_errors_of_all_splits_are_reported(folder: Any) -> None:
    path = folder.write()
    folder.data["annotations"][0]["category_id"] = 99
    folder.write()
    shutil.copy(path, path.with_name("val.json"))
    facts = examine_dataset(folder.root)
    assert [len(split.errors) for split in facts.splits] == [1, 1] and facts.num_errors == 2


def test_copies_and_classes_over_splits(folder: Any) -> None:
    path = folder.write()
    folder.data["images"] = folder.data["images"][:2]
    folder.data["annotations"] = [entry for entry in folder.data["annotations"] if entry["category_id"] == 3]
    path.with_name("val.json").write_text(json.dumps(folder.data))
    facts = examine_dataset(folder.root)
    assert len(facts.copies) == len(facts.leaks) == 2
    assert {place.split for place in facts.leaks[0]} == {"train", "val"}
    assert facts.missing_classes == {"val": ["cat"]} and facts.errors == []
    folder.data["categories"][0]["name"] = "lion"
    path.with_name("val.json").write_text(json.dumps(folder.data))
    (error,) = examine_dataset(folder.root).errors
    assert "other classes" in error.kind and "train has no 'lion'" in str(error)
    assert [split.name for split in examine_dataset(folder.root, split="valid").splits] == ["val"]


def test_other_classes_of_the_test_split_are_a_note(folder: Any) -> None:
    """Training compares the classes of ``train`` and ``val``."""
    path = folder.write()
    shutil.copy(path, path.with_name("val.json"))
    folder.data["annotations"] = [entry for entry in folder.data["annotations"] if entry["category_id"] == 3]
    folder.data["categories"] = folder.data["categories"][1:]
    path.with_name("test.json").write_text(json.dumps(folder.data))
    facts = examine_dataset(folder.root)
    assert facts.num_errors == 0 and facts.errors == []
    assert [str(note) for note in facts.notes] == ["1 x split with other classes than the others: test has no 'cat'"]
    assert facts.notes[0] in [each for kind, _, each in facts.findings if kind == "note"]
    assert facts.to_json()["notes"] == [
        {"kind": "split with other classes than the others", "count": 1, "places": ["test has no 'cat'"]}
    ]
    shutil.copy(path.with_name("test.json"), path.with_name("val.json"))
    facts = examine_dataset(folder.root)
    assert facts.num_errors == 1 and "val has no 'cat'" in str(facts.errors[0]) and facts.notes == []


def test_a_folder_that_may_not_be_read_is_an_error_of_its_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (tmp_path / folder / split).mkdir(parents=True)
        Image.new("RGB", (30, 20)).save(tmp_path / "images" / split / "a.png")
        (tmp_path / "labels" / split / "a.txt").write_text("0 .5 .5 .5 .5\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    listdir, locked = os.listdir, str(tmp_path / "labels" / "train")

    def checked(path: Any = ".") -> list[str]:
        if str(path) == locked:
            raise PermissionError(13, "Permission denied", locked)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", checked)
    train, val = examine_dataset(tmp_path).splits
    assert [str(error) for error in train.errors] == [f"The data folder '{locked}' cannot be read: Permission denied."]
    assert val.errors == [] and len(val.objects) == 1


def test_files_that_are_not_splits_are_ignored(folder: Any) -> None:
    path = folder.write()
    (folder.root / "notes.json").write_text('{"images": 3, "annotations": 5}')
    shutil.copy(path, path.with_name("captions_train.json"))
    facts = examine_dataset(folder.root)
    assert [split.name for split in facts.splits] == ["train"] and facts.num_errors == 0
    assert "notes.json" in str(facts.other_files[0])


def test_a_split_may_have_the_name_of_another_as_its_end(folder: Any) -> None:
    path = folder.write()
    shutil.copy(path, path.with_name("night_train.json"))
    facts = examine_dataset(folder.root)
    assert [split.name for split in facts.splits] == ["train", "night_train"] and facts.other_files == []


def test_nothing_to_examine(tmp_path: Path, make_folder: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match=r"has no annotations for the split 'train'. Supported layouts"):
        examine_dataset(tmp_path)
    folder = make_folder("set")
    folder.write()
    with pytest.raises(UserError, match=r"has no split 'test'"):
        examine_dataset(folder.root, split="test")
    assert quantiles(np.zeros(0)) is None
