"""Training and validation part of a dataset: by its splits, and held out of one."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrs.data import open_dataset, opening
from detrs.data.content import Split
from detrs.data.detect import find_splits
from detrs.data.folder_dataset import FolderDataset
from detrs.data.opening import open_splits, open_validation_part
from detrs.data.sample import Dataset
from detrs.data.transforms import DataConfig
from detrs.errors import UserError

NUM_IMAGES = 30


def write(root: Path, split: str = "train", num_images: int = NUM_IMAGES, order: Any = None) -> DataConfig:
    """A COCO dataset: every image has class 1 or 2, one in five has none; the last two are equal files."""
    random = np.random.default_rng(num_images)
    images = root / split
    images.mkdir(parents=True)
    data: dict[str, Any] = {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]}
    data["images"], data["annotations"] = [], []
    for number in range(num_images):
        name = f"{number:03}.png"
        Image.fromarray(random.integers(0, 256, (37, 53, 3), dtype=np.uint8)).save(images / name)
        data["images"].append({"id": 7 + number, "file_name": name, "height": 37, "width": 53})
        if number % 5:
            bbox = [3, 5, 11 + number / 4, 13]
            data["annotations"].append({"image_id": 7 + number, "category_id": 1 + number % 2, "bbox": bbox})
    shutil.copy(images / f"{num_images - 2:03}.png", images / f"{num_images - 1:03}.png")
    for key, places in (order or {}).items():
        data[key] = [data[key][place] for place in places]
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{split}.json").write_text(json.dumps(data))
    return DataConfig(path=str(root))


def parts(data: DataConfig) -> tuple[Dataset, Dataset]:
    train, val = open_splits(data)
    assert val is not None
    return train, val


def test_held_out_images_are_a_partition_with_their_objects(tmp_path: Path) -> None:
    data = write(tmp_path)
    whole, none = open_splits(replace(data, val_split="none"))
    assert none is None
    train, val = parts(replace(data, val_fraction=0.3))
    assert sorted([*train.image_ids, *val.image_ids]) == whole.image_ids and 7 <= len(val) <= 11
    assert train.image_ids == sorted(train.image_ids)  # in the order of the file
    for part in (train, val):
        for index in range(len(part)):
            mine, theirs = part[index], whole[whole.image_ids.index(part.image_ids[index])]
            assert mine.path == theirs.path and part.size_of(index) == theirs.original_size
            assert mine.boxes.equal(theirs.boxes) and mine.labels.equal(theirs.labels)
            assert mine.image.equal(theirs.image)
        truth = part.ground_truth()
        assert [image["id"] for image in truth["images"]] == part.image_ids
        assert {entry["image_id"] for entry in truth["annotations"]} <= set(part.image_ids)
        assert part.num_empty == sum(not len(part[index].labels) for index in range(len(part))) > 0
    counts = [len(part.ground_truth()["annotations"]) for part in (train, val, whole)]
    assert counts[0] + counts[1] == counts[2]
    last = [whole.image_ids[-2], whole.image_ids[-1]]  # equal files
    assert set(last) <= set(train.image_ids) or set(last) <= set(val.image_ids)


def test_the_same_images_are_held_out_again_from_files_in_another_order(tmp_path: Path) -> None:
    one = replace(write(tmp_path / "one"), val_fraction=0.2)
    order = {"images": range(NUM_IMAGES - 1, -1, -1), "categories": (1, 0), "annotations": range(23, -1, -1)}
    other = replace(write(tmp_path / "other", order=order), val_fraction=0.2)
    expected = parts(one)[1].image_ids
    assert parts(one)[1].image_ids == expected == sorted(parts(other)[1].image_ids)
    assert open_validation_part(one).image_ids == expected
    assert open_validation_part(one).ground_truth() == parts(one)[1].ground_truth()


def test_fingerprints_cover_the_division(tmp_path: Path) -> None:
    data = write(tmp_path)
    prints = [part.fingerprint() for f in (0.2, 0.4) for part in parts(replace(data, val_fraction=f))]
    assert len({*prints, open_splits(replace(data, val_split="none"))[0].fingerprint()}) == 5
    assert prints[:2] == [part.fingerprint() for part in parts(replace(data, val_fraction=0.2))]


def test_images_without_objects_are_dropped_from_the_training_part_only(tmp_path: Path) -> None:
    data = replace(write(tmp_path), val_fraction=0.3)
    train, val = parts(data)
    without, same = parts(replace(data, keep_empty=False))
    assert same.fingerprint() == val.fingerprint() and val.num_empty > 0
    assert without.num_empty == 0 and len(without) == len(train) - train.num_empty
    assert all(len(without[index].labels) for index in range(len(without)))


def test_annotations_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = replace(write(tmp_path), val_fraction=0.3)
    read: list[Any] = []
    real = opening.FolderDataset.__init__

    def count(self: FolderDataset, *arguments: Any, **options: Any) -> None:
        read.append(arguments)
        real(self, *arguments, **options)

    monkeypatch.setattr(opening.FolderDataset, "__init__", count)
    open_splits(data)
    assert len(read) == 1


def test_notes_are_those_of_the_training_part(tmp_path: Path) -> None:
    data = write(tmp_path)
    path = tmp_path / "annotations" / "train.json"
    content = json.loads(path.read_text())
    content["annotations"].append(content["annotations"][0])
    path.write_text(json.dumps(content))
    train, val = parts(replace(data, val_fraction=0.3))
    assert "duplicate box" in train.notes[0] and val.notes == []


def test_a_validation_split_and_a_fraction_exclude_each_other(tmp_path: Path) -> None:
    write(tmp_path)
    data = replace(write(tmp_path, "valid", 9), val_fraction=0.2)
    assert len(parts(replace(data, val_fraction=None))[1]) == 9
    with pytest.raises(UserError, match=r"data.val_fraction holds out .* has the split 'val' for validation: remove"):
        open_splits(data)
    with pytest.raises(UserError, match=r"digits has the split 'val'"):
        open_splits(replace(data, path="digits"))


def test_missing_splits_are_hinted_at(tmp_path: Path) -> None:
    data = write(tmp_path)
    with pytest.raises(UserError) as caught:
        open_splits(data)
    message = str(caught.value)
    assert "has no split 'val'. Available splits: train. Set data.val_fraction 0.2 to hold out" in message
    assert "data.val_split none" in message and "data.val_split NAME" not in message
    write(tmp_path, "fold3", 9)
    with pytest.raises(UserError, match=r"evaluate on another split with data.val_split NAME"):
        open_splits(data)
    with pytest.raises(UserError, match=r"has no split 'fold1'. Available .* set data.train_split NAME"):
        open_splits(replace(data, train_split="fold1"))
    assert len(parts(replace(data, val_split="fold3"))[1]) == 9


def test_too_few_images(tmp_path: Path) -> None:
    data = write(tmp_path, num_images=2)  # two equal files
    with pytest.raises(UserError, match=r"data.val_fraction is 0.5, but no image can be held out for validation: 2"):
        open_splits(replace(data, val_fraction=0.5))


@pytest.fixture
def undivided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """A dataset of a format without splits."""
    data = write(tmp_path)
    (split,) = find_splits(tmp_path)

    @dataclass(frozen=True)
    class Undivided(Split):
        name: str = ""
        path: Path = split.path
        read: Callable[..., Any] = split.read

    monkeypatch.setattr(opening, "find_splits", lambda root: [Undivided()])
    return data


def test_a_dataset_that_is_not_divided_into_splits(undivided: DataConfig) -> None:
    with pytest.raises(UserError, match=r"is not divided into splits, .* 'val'. Set data.val_fraction 0.2 to hold out"):
        open_splits(undivided)
    train, val = parts(replace(undivided, val_fraction=0.2))
    assert len(train) + len(val) == NUM_IMAGES == len(open_splits(replace(undivided, val_split="none"))[0])
    assert open_validation_part(replace(undivided, val_fraction=0.2)).image_ids == val.image_ids
    assert len(open_validation_part(undivided)) == NUM_IMAGES  # evaluated as a whole


def test_a_dataset_that_is_called_val_is_not_its_own_validation_split(tmp_path: Path) -> None:
    data = write(tmp_path, "val")
    data = replace(data, path=str(tmp_path / "annotations" / "val.json"))
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=r"val\.json is not divided into splits, so it has no split 'val'\. Set"):
        open_splits(data)
    train, val = parts(replace(data, val_fraction=0.2))
    assert len(train) + len(val) == NUM_IMAGES
    assert open_validation_part(replace(data, val_fraction=0.2)).image_ids == val.image_ids
    assert len(open_validation_part(data)) == len(open_dataset(data.path, "val")) == NUM_IMAGES


def test_a_split_by_the_name_of_its_file(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "annotations" / "train.json").rename(tmp_path / "annotations.json")
    (tmp_path / "train").rename(tmp_path / "images")
    data = DataConfig(path=str(tmp_path), train_split="annotations", val_split="none")
    assert len(open_splits(data)[0]) == len(open_dataset(data.path, "annotations")) == NUM_IMAGES


def test_real_data(shared: Path) -> None:
    data = DataConfig(path=str(shared / "data" / "bccd"), val_split="other", val_fraction=0.2)
    train, val = parts(data)
    for name in train.classes.names:
        counts = [sum(name in _names(part, index) for index in range(len(part))) for part in (train, val)]
        assert abs(counts[1] - 0.2 * sum(counts)) < 2
    assert abs(len(val) - 0.2 * (len(train) + len(val))) < 3


def _names(part: Dataset, index: int) -> set[str]:
    assert isinstance(part, FolderDataset)
    labels = part.labels_of(index)
    return {part.classes.names[label] for label in labels}
