"""The demo set is deterministic, has tight boxes on visible digits, and its splits share nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from detrs.data import DigitsDataset, digits, open_dataset
from detrs.data.digits import SIZE, export_coco
from detrs.errors import UserError

N = 40


@pytest.fixture(scope="module", params=["train", "val"])
def dataset(request: pytest.FixtureRequest) -> DigitsDataset:
    return DigitsDataset(request.param, N)


def background(dataset: DigitsDataset, index: int) -> torch.Tensor:
    """The image before any digit is drawn, (3, H, W)."""
    stream = np.random.default_rng((digits.VERSION, ["train", "val"].index(dataset.split), index + 1))
    canvas = digits._background(digits._material(dataset.split).photographs, stream)
    return torch.from_numpy(canvas).permute(2, 0, 1)


def test_two_openings_are_the_same(dataset: DigitsDataset) -> None:
    again = DigitsDataset(dataset.split, N)
    for index in (N - 1, 0, 7):  # in any order
        assert torch.equal(dataset[index].image, again[index].image)
        assert torch.equal(dataset[index].boxes, again[index].boxes)
    assert dataset.fingerprint() == again.fingerprint()
    assert dataset.fingerprint() != DigitsDataset(dataset.split, N - 1).fingerprint()
    assert len(DigitsDataset("train")) == 2000 and len(DigitsDataset("val")) == 200


def test_shape_and_types(dataset: DigitsDataset) -> None:
    for index in range(N):
        sample = dataset[index]
        assert sample.image.shape == (3, *SIZE) and sample.image.dtype == torch.uint8
        assert 1 <= len(sample.boxes) == len(sample.labels) <= dataset.max_objects
        assert sample.original_size == dataset.size_of(index) == SIZE
        assert sample.image_id == dataset.image_ids[index]
    with pytest.raises(IndexError):
        dataset[N]
    assert dataset[-1].image_id == N


def test_ink_lies_inside_the_boxes_and_reaches_their_edges(dataset: DigitsDataset) -> None:
    touching, edges = 0, 0
    for index in range(N):
        sample = dataset[index]
        changed = (sample.image.as_subclass(torch.Tensor).float() - background(dataset, index)).abs().amax(0)
        outside = torch.ones(SIZE, dtype=torch.bool)
        for x1, y1, x2, y2 in sample.boxes.int().tolist():
            outside[y1:y2, x1:x2] = False
            region = changed[y1:y2, x1:x2]
            for edge in (region[0], region[-1], region[:, 0], region[:, -1]):
                touching += bool(edge.max() > 20)
                edges += 1
            assert region.max() > 60  # visible
        assert changed[outside].max() <= 1  # rounding
    assert touching > 0.97 * edges


def test_sizes_classes_and_overlaps() -> None:
    heights, counts = [], np.zeros(10)
    train = DigitsDataset("train", 150)
    for index in range(len(train)):
        boxes, labels = train[index].boxes.tolist(), train[index].labels.tolist()
        heights += [y2 - y1 for _, y1, _, y2 in boxes]
        counts += np.bincount(labels, minlength=10)
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
                assert max(0, width) * max(0, height) <= 0.1 * smaller
    assert 9 <= min(heights) < 18 and 65 < max(heights) <= 80
    assert counts.min() > 0.05 * counts.sum() and counts.max() < 0.15 * counts.sum()
    expected = (1 + train.max_objects) / 2  # uniform; a few attempts are dropped
    assert 0.85 * expected < counts.sum() / len(train) < 1.1 * expected


def test_splits_share_no_digit_and_no_photograph() -> None:
    train, val = digits._material("train"), digits._material("val")
    assert len(train.digits) + len(val.digits) == 1797
    scans = {scan.tobytes() for scan in train.digits}
    assert not any(scan.tobytes() in scans for scan in val.digits)
    for left, right in zip(train.photographs, val.photographs, strict=True):
        assert left.width + right.width == 640 and min(left.width, right.width) > 150
        halves = np.concatenate([np.asarray(left), np.asarray(right)], axis=1)
        assert any(np.array_equal(halves, whole) for whole in load_sample_images().images)  # side by side, no overlap


def test_the_right_digit_is_where_the_label_says() -> None:
    """A nearest-neighbour reader trained on the scans reads the images far above chance."""
    train = DigitsDataset("train", 40)
    material = digits._material("train")
    scans = torch.from_numpy(material.digits)[:, None]
    visible = torch.stack([_trimmed(scan[0]) for scan in scans]).flatten(1)
    right, total = 0, 0
    for index in range(len(train)):
        sample = train[index]
        difference = (sample.image.as_subclass(torch.Tensor).float() - background(train, index)).abs().amax(0)
        for (x1, y1, x2, y2), label in zip(sample.boxes.int().tolist(), sample.labels.tolist(), strict=True):
            ink = difference[y1:y2, x1:x2]
            if ink.shape[0] >= 24:
                ink = torch.nn.functional.interpolate(ink[None, None], (12, 8), mode="area").flatten() / ink.max()
                nearest = (visible - ink).pow(2).sum(1).argmin()
                right += int(material.labels[nearest] == label)
                total += 1
    assert total > 100 and right / total > 0.8


def _trimmed(scan: torch.Tensor) -> torch.Tensor:
    rows, columns = (scan > 0.5).any(1).nonzero(), (scan > 0.5).any(0).nonzero()
    scan = scan[rows[0, 0] : rows[-1, 0] + 1, columns[0, 0] : columns[-1, 0] + 1]
    return torch.nn.functional.interpolate(scan[None, None], (12, 8), mode="bilinear")[0, 0]


def test_ground_truth_equals_the_samples(dataset: DigitsDataset) -> None:
    truth = dataset.ground_truth()
    assert [annotation["id"] for annotation in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    names = {category["id"]: category["name"] for category in truth["categories"]}
    for index, image in enumerate(truth["images"]):
        own = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        sample = dataset[index]
        assert [names[a["category_id"]] for a in own] == [dataset.classes.names[i] for i in sample.labels]
        for annotation, (x1, y1, x2, y2) in zip(own, sample.boxes.tolist(), strict=True):
            assert annotation["bbox"] == [x1, y1, x2 - x1, y2 - y1]
            assert annotation["area"] == (x2 - x1) * (y2 - y1) and annotation["iscrowd"] == 0


def test_export_reads_back_as_the_same_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "NUM_IMAGES", {"train": 7, "val": 5})
    export_coco(tmp_path / "digits")
    for split in ("train", "val"):
        original, read = open_dataset("digits", split), open_dataset(str(tmp_path / "digits"), split)
        assert len(original) == len(read) == {"train": 7, "val": 5}[split]
        assert original.classes == read.classes and original.image_ids == read.image_ids
        for index in range(len(read)):
            assert torch.equal(original[index].image, read[index].image)
            assert torch.equal(original[index].boxes, read[index].boxes)
            assert torch.equal(original[index].labels, read[index].labels)
        assert original.ground_truth() == read.ground_truth()


def test_an_unknown_split() -> None:
    with pytest.raises(UserError, match="no split 'test'. Available splits: train, val"):
        open_dataset("digits", "test")


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    digits._material.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'detrs\[demo\]'"):
        open_dataset("digits", "train")


def test_synonyms_of_the_splits() -> None:
    assert open_dataset("digits", "valid").fingerprint() == open_dataset("digits", "val").fingerprint()
    assert len(open_dataset("digits", "training")) == len(open_dataset("digits", "train"))
    with pytest.raises(UserError, match="The demo set has no split 'test'"):
        open_dataset("digits", "test")
