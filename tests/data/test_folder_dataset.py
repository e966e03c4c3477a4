"""Samples and ground truth of a COCO file: boxes, ids, and the same scores as with pycocotools."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from detrs.data import Classes, folder_dataset, open_dataset
from detrs.errors import UserError


def test_samples(folder: Any) -> None:
    dataset = folder.open()
    assert len(dataset) == 3 and dataset.image_ids == [10, 11, 12]
    assert dataset.classes == Classes(("dog", "cat"), (3, 7))
    assert dataset.max_objects == 3 and dataset.num_empty == 1 and dataset.notes == []
    first, second, third = dataset
    assert first.labels.tolist() == [1, 0, 1] and second.labels.tolist() == [0, 0, 1]
    assert first.boxes.tolist() == [[5.5, 7, 36.5, 30], [40, 11, 69, 48], [1, 2, 14, 19]]
    assert second.boxes.tolist()[1] == [17, 5, 46, 58.25]
    assert third.boxes.shape == (0, 4) and third.labels.shape == (0,) and third.labels.dtype == torch.int64
    for index, sample in enumerate(dataset):
        pixels = np.asarray(Image.open(sample.path).convert("RGB"))
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0).numpy(), pixels)
        assert sample.original_size == dataset.size_of(index) == pixels.shape[:2] == sample.boxes.canvas_size
        assert sample.path == dataset.path_of(index) and sample.boxes.dtype == torch.float32
    assert dataset[-1].image_id == 12 and len(dataset[-2].boxes) == 3


def test_boxes_are_clipped_for_training_only(folder: Any) -> None:
    folder.data["annotations"][0]["bbox"] = [-3.5, 50, 20, 30]
    dataset = folder.open()
    assert dataset[0].boxes[0].tolist() == [0, 50, 16.5, 61]
    assert dataset.ground_truth()["annotations"][0]["bbox"] == [-3.5, 50, 20, 30]


def test_crowd_is_for_evaluation_only(folder: Any) -> None:
    folder.data["annotations"][1]["iscrowd"] = 1
    dataset = folder.open()
    assert dataset[0].labels.tolist() == [1, 1] and dataset.max_objects == 3
    truth = dataset.ground_truth()["annotations"]
    assert [annotation["iscrowd"] for annotation in truth] == [0, 1, 0, 0, 0, 0]


def test_ignored_objects_are_crowd_regions_in_the_evaluation(folder: Any) -> None:
    folder.data["annotations"][1]["ignore"] = 1
    dataset = folder.open()
    assert dataset[0].labels.tolist() == [1, 1]
    assert [entry["iscrowd"] for entry in dataset.ground_truth()["annotations"]] == [0, 1, 0, 0, 0, 0]


def test_an_image_with_crowd_regions_only(folder: Any) -> None:
    for annotation in folder.data["annotations"][:3]:
        annotation["iscrowd"] = 1
    dataset = folder.open()
    assert len(dataset[0].boxes) == 0 and dataset.num_empty == 2 and len(dataset.ground_truth()["annotations"]) == 6


def test_empty_images_can_be_left_out(folder: Any) -> None:
    folder.data["annotations"][5]["image_id"] = 12
    folder.data["annotations"][5]["iscrowd"] = 1  # an image with crowd regions only is empty
    dataset = folder.open(keep_empty=False)
    assert dataset.image_ids == [10, 11] and dataset.num_empty == 0
    assert [len(sample.boxes) for sample in dataset] == [3, 2]
    truth = dataset.ground_truth()
    assert len(truth["images"]) == 2 and len(truth["annotations"]) == 5


def test_ground_truth_is_the_file_as_pycocotools_reads_it(folder: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """With what is not trained on: zero area, repetitions, crowd."""
    first = folder.data["annotations"][0]
    first["id"] = 0
    folder.data["annotations"] += [first | {"id": 1}, first | {"id": 2, "bbox": [5, 5, 0, 3], "iscrowd": 1}]
    dataset = folder.open()
    theirs = COCO(str(folder.root / "annotations" / "train.json"))
    ours = COCO()
    ours.dataset = dataset.ground_truth()
    ours.createIndex()
    json.dumps(ours.dataset)
    assert sorted(ours.anns) == list(range(1, 9))
    assert sorted(ours.imgs) == sorted(theirs.imgs) and sorted(ours.cats) == sorted(theirs.cats)
    for image_id in theirs.imgs:
        a, b = (
            [{k: v for k, v in annotation.items() if k != "id"} for annotation in index.imgToAnns[image_id]]
            for index in (ours, theirs)
        )
        assert a == b
    capsys.readouterr()


def test_ground_truth_of_real_files(shared: Path) -> None:
    for name, split in (("bccd", "val"), ("aerial_cars", "train")):
        original = json.loads((shared / "data" / name / "annotations" / f"{split}.json").read_text())
        truth = open_dataset(str(shared / "data" / name), split).ground_truth()
        assert truth["images"] == original["images"]
        strip = [{k: v for k, v in annotation.items() if k != "id"} for annotation in original["annotations"]]
        assert [{k: v for k, v in annotation.items() if k != "id"} for annotation in truth["annotations"]] == strip


def test_ground_truth_of_coco_itself(shared: Path, tmp_path: Path) -> None:
    """100 images of val2014 with 9 crowd regions and ids up to 90; the image files are blank."""
    source = shared / "data" / "coco_eval_reference" / "instances_val2014_100.json"
    original = json.loads(source.read_text())
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").write_bytes(source.read_bytes())
    (tmp_path / "val2014").mkdir()
    for image in original["images"]:
        blank = Image.new("1", (image["width"], image["height"]))
        blank.save(tmp_path / "val2014" / image["file_name"], format="PNG")
    dataset = open_dataset(str(tmp_path), "val")
    truth = dataset.ground_truth()["annotations"]
    assert len(dataset) == 100 and len(truth) == 839 and sum(entry["iscrowd"] for entry in truth) == 9
    assert len(dataset.classes.names) == 80 and max(dataset.classes.category_ids) == 90
    for key in ("image_id", "category_id", "bbox", "area", "iscrowd"):
        assert [entry[key] for entry in truth] == [entry[key] for entry in original["annotations"]]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_box_follows_exif_orientation(folder: Any, orientation: int) -> None:
    """Declared size and boxes are those of the upright image."""
    upright = np.zeros((61, 97, 3), np.uint8)
    upright[7:30, 6:36] = 255
    back = {5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(upright).transpose(Image.Transpose[back])
    assert stored.size == (61, 97)
    stored.save(folder.images / "photo 0.png", exif=exif)
    folder.data["annotations"][0]["bbox"] = [6, 7, 30, 23]
    sample = folder.open()[0]
    x1, y1, x2, y2 = sample.boxes[0].int().tolist()
    assert (sample.image[:, y1:y2, x1:x2] == 255).all() and sample.image.sum() == 255 * 3 * 30 * 23


def test_a_size_that_is_not_the_declared_one(folder: Any) -> None:
    dataset = folder.open()
    for size, hint in (((61, 97), ", width and height are swapped in the annotation file"), ((98, 61), r"\.")):
        Image.new("RGB", size).save(folder.images / "photo 0.png")  # after the check
        sizes = f"is {size[0]} x {size[1]} pixels, but annotated as 97 x 61"
        with pytest.raises(UserError, match=f"photo 0.png {sizes}{hint}"):
            dataset[0]


def test_an_image_that_disappears_is_named(folder: Any) -> None:
    dataset = folder.open()
    (folder.images / "photo 1.png").unlink()
    with pytest.raises(UserError, match=r"photo 1.png does not exist"):
        dataset[1]


def test_images_are_decoded_once_until_the_cache_is_full(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    decode = folder_dataset.decode_image

    def counted(path: Path) -> torch.Tensor:
        calls.append(path.name)
        return decode(path)

    monkeypatch.setattr(folder_dataset, "decode_image", counted)
    dataset = folder.open(cache_bytes=61 * 97 * 3 + 59 * 59 * 3)
    for _ in range(3):
        images = [sample.image for sample in dataset]
    assert calls.count("photo 0.png") == 1 and calls.count("photo 1.png") == 3 and calls.count("photo 2.png") == 1
    assert torch.equal(images[0], folder.open(cache_bytes=0)[0].image)


def test_the_cache_is_a_setting_in_gib(folder: Any) -> None:
    folder.write()
    for gib, kept in ((0.0, 0), (61 * 97 * 3 / 2**30, 1), (1.0, 3)):
        dataset = open_dataset(str(folder.root), "train", cache_gib=gib)
        list(dataset)
        assert len(dataset._cache) == kept


def test_fingerprint(make_folder: Callable[[str], Any]) -> None:
    first, same, other = make_folder("a"), make_folder("b"), make_folder("c")
    other.data["annotations"][0]["bbox"][0] += 0.25
    for path in same.images.iterdir():
        os.utime(path, (1, 1))  # a copy of the dataset
    prints = [each.open().fingerprint() for each in (first, same, other)]
    assert prints[0] == prints[1] != prints[2] and all(len(p) == 64 for p in prints)
    assert first.open(keep_empty=False).fingerprint() != prints[0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_the_fingerprint_depends_on_pixels(folder: Any, suffix: str) -> None:
    """A few changed pixels in the middle, in files of more than 32 KB; the size of the file is kept where possible."""
    path = folder.images / f"large.{suffix}"
    pixels = np.random.default_rng(8).integers(0, 256, (211, 307, 3), dtype=np.uint8)
    folder.data["images"][0] |= {"file_name": path.name, "height": 211, "width": 307}

    def fingerprint(pixels: np.ndarray, **options: Any) -> str:
        Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
        return str(folder.open().fingerprint())

    before = fingerprint(pixels)
    assert path.stat().st_size > 33_000 and fingerprint(pixels) == before
    pixels[104:107, 150:153] = 255 - pixels[104:107, 150:153]
    assert fingerprint(pixels) != before


def test_nothing_given() -> None:
    for path in (None, ""):
        with pytest.raises(UserError, match="No dataset was given: .* --data digits for the demo set"):
            open_dataset(path, "train")


def test_an_area_of_zero_is_that_of_the_box(folder: Any) -> None:
    for annotation in folder.data["annotations"]:
        annotation["area"] = 0
    data = folder.open()
    assert data.ground_truth()["annotations"][0]["area"] == 31 * 23
