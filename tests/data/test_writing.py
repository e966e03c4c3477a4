"""Datasets written as COCO and YOLO have the boxes and labels of the source."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from convert import assert_equal_targets, targets
from PIL import Image
from small import write_coco

from detrs import files
from detrs.data import FolderDataset, writing
from detrs.data.detect import find_split, find_splits
from detrs.data.image_table import ImageEntry
from detrs.data.writing import convert_dataset
from detrs.errors import UserError


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


def edit(root: Path, split: str = "train") -> Any:
    """The content of an annotation file, which is written by ``json.dump`` to the second value."""
    path = root / "annotations" / f"{split}.json"
    return json.loads(path.read_text()), path


def truth(path: Path, split: str = "train") -> list[Any]:
    """File name, class, box and crowd flag of all annotations."""
    data = FolderDataset(find_split(path, split)).ground_truth()
    files = {image["id"]: image["file_name"] for image in data["images"]}
    names = {each["id"]: each["name"] for each in data["categories"]}
    return sorted(
        (files[each["image_id"]], names[each["category_id"]], *np.round(each["bbox"], 6).tolist(), each["iscrowd"])
        for each in data["annotations"]
    )


def test_from_coco_to_yolo_and_back(coco: Path, tmp_path: Path) -> None:
    written = convert_dataset(coco, "yolo", tmp_path / "yolo")
    assert [(each.name, each.num_images, each.num_objects) for each in written] == [("train", 3, 5), ("val", 2, 5)]
    assert convert_dataset(tmp_path / "yolo" / "data.yaml", "coco", tmp_path / "back")[0].num_objects == 5
    for split in ("train", "val"):
        for other in (tmp_path / "yolo", tmp_path / "back"):
            assert_equal_targets(other, split, coco)
            assert truth(other, split) == truth(coco, split)
    assert not list(tmp_path.glob(".*.tmp")) and not list((tmp_path / "yolo").glob(".*"))


def test_bccd(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "bccd"
    convert_dataset(source, "yolo", tmp_path / "a" / "yolo", names=["train", "val", "train"])
    convert_dataset(tmp_path / "a" / "yolo", "coco", tmp_path / "coco")
    convert_dataset(tmp_path / "coco", "yolo", tmp_path / "again")
    for split in ("train", "val"):
        for folder in ("a/yolo", "coco", "again"):
            assert_equal_targets(tmp_path / folder, split, source)
    assert [each.name for each in find_splits(tmp_path / "again")] == ["train", "val"]


def test_layout_for_ultralytics(coco: Path, tmp_path: Path) -> None:
    convert_dataset(coco, "yolo", tmp_path / "yolo")
    content = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert content == {"train": "images/train", "val": "images/val", "names": {0: "cat", 1: "dog"}}
    lines = (tmp_path / "yolo" / "labels" / "train" / "train 0.txt").read_text().splitlines()
    x, y, width, height = map(float, lines[1].split()[1:])
    assert lines[1].startswith("0 ") and (x * 97, y * 61) == (1 + 13.25 / 2, pytest.approx(2 + 17 / 2))
    assert (width * 97, height * 61) == (pytest.approx(13.25), pytest.approx(17))
    assert (tmp_path / "yolo" / "labels" / "train" / "train 2.txt").read_text() == ""


def test_images_are_hard_links_or_copies(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = coco / "images" / "train 0.png"
    (coco / "images" / "real.png").symlink_to("train 1.png")
    data, path = edit(coco)
    data["images"][1]["file_name"] = "real.png"
    path.write_text(json.dumps(data))
    convert_dataset(coco, "coco", tmp_path / "linked")
    convert_dataset(coco, "coco", tmp_path / "copied", copy=True)

    def fail(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", fail)
    convert_dataset(coco, "coco", tmp_path / "elsewhere")
    for folder, same in (("linked", True), ("copied", False), ("elsewhere", False)):
        image = tmp_path / folder / "images" / "train" / "train 0.png"
        assert image.samefile(source) == same and image.read_bytes() == source.read_bytes()
        assert not (tmp_path / folder / "images" / "train" / "real.png").is_symlink()
    shutil.rmtree(coco)
    FolderDataset(find_split(tmp_path / "linked", "train"))[1]


def test_crowd_regions_are_kept_in_coco_and_left_out_in_yolo(coco: Path, tmp_path: Path) -> None:
    data, path = edit(coco)
    data["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(data))
    train, val = convert_dataset(coco, "coco", tmp_path / "kept")
    assert truth(tmp_path / "kept") == truth(coco) and not val.notes
    assert train.num_objects == 5 and not any("left out" in note for note in train.notes)
    train, _ = convert_dataset(coco, "yolo", tmp_path / "yolo")
    assert train.num_objects == 4 and "1 x crowd region or ignored object, left out (YOLO has none)" in train.notes
    assert_equal_targets(tmp_path / "yolo", "train", coco)


def test_boxes_that_exceed_their_image(coco: Path, tmp_path: Path) -> None:
    """Boxes are equal where YOLO can represent them; the others are clipped, as in training."""
    data, path = edit(coco)
    boxes = [[-20, 5, 30, 11], [-5, 7, 130, 9], [60, 41, 200, 200]]
    extra = [{"id": 90 + number, "image_id": 0, "category_id": 3, "bbox": box} for number, box in enumerate(boxes)]
    many = [{"id": n, "image_id": 2, "category_id": 7, "bbox": [n / 9, 1, 7, 7]} for n in range(200, 400)]
    outside = [{"id": 99, "image_id": 0, "category_id": 7, "bbox": [-20, 5, 10, 11]}]  # 1 of more than 100
    kept = [{"id": 98, "image_id": 2, "category_id": 3, "bbox": [-3, 41, 30, 25]}]
    data["annotations"] += [*extra, *many, *outside, *kept]
    path.write_text(json.dumps(data))
    train, _ = convert_dataset(coco, "yolo", tmp_path / "yolo")
    assert any(note.startswith("3 x box that exceeds its image, clipped") for note in train.notes)
    assert any(note.startswith("1 x box without area in its image, left out") for note in train.notes)
    assert_equal_targets(tmp_path / "yolo", "train", coco)
    assert ("train 2.png", "cat", -3, 41, 30, 25, 0) in truth(tmp_path / "yolo")
    convert_dataset(coco, "coco", tmp_path / "again")
    assert truth(tmp_path / "again") == truth(coco)


def test_names_are_unique(tmp_path: Path) -> None:
    """Images of several folders with one name, stems that differ in suffix or case only, and odd names."""
    root = tmp_path / "set"
    names = [
        "a/1.png",
        "b/1.png",
        "b/1.jpg",
        "A.png",
        "a.PNG",
        "c.png",
        "C.png",
        "classes.png",
        "without suffix",
        "x.1.png",
    ]
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": 'no: "ä" # 1'}]}
    (root / "annotations").mkdir(parents=True)
    for number, name in enumerate(names):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((31 + number, 47, 3), 9 * number, np.uint8)
        Image.fromarray(pixels).save(path, format="JPEG" if "jpg" in name else "PNG")
        data["images"].append({"id": number, "file_name": name})
        data["annotations"].append({"id": number, "image_id": number, "category_id": 1, "bbox": [3, 4, 9, 5 + number]})
    (root / "annotations" / "train.json").write_text(json.dumps(data))
    for to in ("coco", "yolo"):
        convert_dataset(root, to, tmp_path / to)
        dataset = FolderDataset(find_split(tmp_path / to, "train"))
        assert dataset.classes.names == ('no: "ä" # 1',) and len(dataset) == len(names)
        assert max(Counter(Path(name).stem.casefold() for name in targets(dataset)).values()) == 1
        for index in range(len(names)):  # each object is that of its image
            height = dataset.size_of(index)[0]
            x, y, right, bottom = dataset[index].boxes[0].tolist()
            assert (x, y, right) == pytest.approx((3, 4, 12), rel=1e-6) and bottom == pytest.approx(9 + height - 31)
    assert (tmp_path / "yolo" / "images" / "train" / "without suffix.png").exists()
    assert (tmp_path / "yolo" / "images" / "train" / "classes-2.png").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["train", "val"], ["train", "val"]),
        (["train2017", "val2017"], ["train", "val"]),
        (["train", "valid", "testing"], ["test", "train", "val"]),
        (["fold 1", "2019"], ["2019", "fold-1"]),
        (["train2014", "train2017"], ["train2014", "train2017"]),
    ],
)
def test_names_of_splits(coco: Path, tmp_path: Path, before: list[str], after: list[str]) -> None:
    content = (coco / "annotations" / "train.json").read_text()
    for path in (coco / "annotations").iterdir():
        path.unlink()
    for name in before:
        (coco / "annotations" / f"{name}.json").write_text(content)
    for to in ("coco", "yolo"):
        convert_dataset(coco, to, tmp_path / "as" / to)
        assert sorted(each.name for each in find_splits(tmp_path / "as" / to)) == after


def test_classes_of_several_splits_are_one_list_in_yolo(coco: Path, tmp_path: Path) -> None:
    """Labels are the same for all splits, also if the annotation files number the classes differently."""
    data, path = edit(coco, "val")
    data["categories"] = [{"id": 7, "name": "cat"}, {"id": 3, "name": "cow"}]
    path.write_text(json.dumps(data))
    convert_dataset(coco, "yolo", tmp_path / "yolo")
    convert_dataset(coco, "coco", tmp_path / "again")
    for split in ("train", "val"):
        assert truth(tmp_path / "yolo", split) == truth(coco, split) == truth(tmp_path / "again", split)
    assert FolderDataset(find_split(tmp_path / "yolo", "val")).classes.names == ("cat", "dog", "cow")


def test_an_undivided_dataset_becomes_train(coco: Path, tmp_path: Path) -> None:
    convert_dataset(coco, "yolo", tmp_path / "yolo", names=["train"])
    flat = tmp_path / "flat"
    for folder in ("images", "labels"):
        shutil.copytree(tmp_path / "yolo" / folder / "train", flat / folder)
    (flat / "classes.txt").write_text("cat\ndog\n")
    assert [each.name for each in convert_dataset(flat, "coco", tmp_path / "out")] == ["train"]
    assert_equal_targets(tmp_path / "out", "train", coco)


def test_nothing_is_written_after_an_error(coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    (coco / "annotations" / "val.json").write_text("{}")
    with pytest.raises(UserError, match=r"(?s)val.json: 'images' is missing.*list them with --split\."):
        convert_dataset(coco, "yolo", output)
    with pytest.raises(UserError, match=r"'images' is missing[^\n]*\Z"):
        convert_dataset(coco, "yolo", output, names=["val"])
    with pytest.raises(UserError, match=r"has no split 'test'\. Available splits: train, val\."):
        convert_dataset(coco, "yolo", output, names=["train", "test"])
    with pytest.raises(UserError, match=f"images has no annotations for the split 'train'.* Use --data {coco} for"):
        convert_dataset(coco / "images", "yolo", output)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "a.png")

    for existing in (False, True):
        if existing:
            output.mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(files, "copy", fail)
            message = r"Cannot write the dataset to '.*out': No space left on device \(a.png\)\."
            with pytest.raises(UserError, match=message):
                convert_dataset(coco, "yolo", output, names=["train"], copy=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", *(["out"] if existing else [])]
        assert not existing or not any(output.iterdir())
    convert_dataset(coco, "yolo", output, names=["train"])  # into the empty folder
    assert sorted(path.name for path in output.iterdir()) == ["data.yaml", "images", "labels"]
    with pytest.raises(UserError, match="is not empty: choose another one"):
        convert_dataset(coco, "coco", output, names=["train"])
    with pytest.raises(UserError, match=r"is a file. Expected a new or empty folder\."):
        convert_dataset(coco, "coco", output / "data.yaml", names=["train"])


def test_many_images_of_one_name_are_written_in_linear_time(tmp_path: Path) -> None:
    import time

    images = [ImageEntry(number, Path(f"{number}/rgb.png"), (5, 7)) for number in range(20_000)]
    start = time.process_time()
    names = writing._write_images(tmp_path / "images", images, lambda source, target: None)
    assert time.process_time() - start < 5  # 0.2 s; minutes if each name is searched from the first
    assert len({*names}) == len(images) and names[:3] == ["rgb.png", "rgb-2.png", "rgb-3.png"]
