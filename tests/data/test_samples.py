"""Datasets made of samples in Python, and the protocol that training and evaluation need."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.tv_tensors import wrap

from detrs.data import Dataset, DigitsDataset, Sample, SampleDataset, make_sample
from detrs.data.loader import evaluation_batches, training_batches
from detrs.data.protocol import MEMBERS, check_protocol, check_sample, checked_ground_truth
from detrs.data.transforms import DataConfig
from detrs.errors import UserError
from detrs.evaluation.coco import coco_report

NAMES = ("cat", "dog", "bird")
SIZES = ((61, 97), (83, 47), (59, 59))  # (height, width)
BOXES = ([[5.5, 7, 36.5, 30], [40, 11, 69, 48]], [[3, 19, 14, 60.25]], [])
LABELS = ([2, 0], [1], [])


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*SIZES[number], 3), dtype=np.uint8)


def samples(**changes: Any) -> list[Sample]:
    made = [make_sample(pixels(i), BOXES[i], LABELS[i], 10 + i, f"photo {i}.png") for i in range(3)]
    return [made[0], made[1]._replace(**changes), made[2]]


class TestMakeSample:
    def test_every_kind_of_image(self, tmp_path: Path) -> None:
        array = pixels(0)
        Image.fromarray(array).save(tmp_path / "a.png")
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        for image in (array, tensor, Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png")):
            sample = make_sample(image, BOXES[0], LABELS[0], 7)
            assert torch.equal(sample.image.as_subclass(torch.Tensor), tensor)
            assert sample.image.dtype == torch.uint8 and sample.original_size == SIZES[0]

    def test_boxes_and_labels(self) -> None:
        tensors = (torch.tensor(BOXES[0]), torch.tensor(LABELS[0]))
        arrays = (np.array(BOXES[0], dtype=np.float64), np.array(LABELS[0], dtype=np.int32))
        for boxes, labels in ((BOXES[0], LABELS[0]), arrays, tensors):
            sample = make_sample(pixels(0), boxes, labels, 7, "a.png")
            assert sample.boxes.dtype == torch.float32 and sample.boxes.tolist() == BOXES[0]
            assert (sample.boxes.format.value, sample.boxes.canvas_size) == ("XYXY", SIZES[0])
            assert sample.labels.dtype == torch.int64 and sample.labels.tolist() == LABELS[0]
            assert (sample.image_id, sample.path) == (7, "a.png")

    def test_boxes_are_clipped_to_the_image(self) -> None:
        sample = make_sample(pixels(0), [[-5, 50, 30, 70.5]], [0], np.int64(7))  # 97 x 61 pixels
        assert sample.boxes.tolist() == [[0, 50, 30, 61]] and type(sample.image_id) is int

    def test_a_file_is_its_own_path(self, tmp_path: Path) -> None:
        Image.fromarray(pixels(0)).save(tmp_path / "a.png")
        assert make_sample(tmp_path / "a.png", [], [], 7).path == str(tmp_path / "a.png")

    def test_without_objects_and_path(self) -> None:
        sample = make_sample(pixels(2), [], [], 12)
        assert (sample.boxes.shape, sample.labels.shape, sample.labels.dtype) == ((0, 4), (0,), torch.int64)
        assert sample.path == "image 12"

    @pytest.mark.parametrize(
        ("boxes", "labels", "message"),
        [
            ([[1, 2, 3, 4]], [0, 1], "labels of image 7: expected 1 integers, got 2 of int64."),
            ([[1, 2, 3, 4]], [], "labels of image 7: expected 1 integers, got 0"),
            ([], [0], "labels of image 7: expected 0 integers, got 1"),
            (
                [[1, 2, 1, 4]],
                [0],
                "boxes_xyxy of image 7: expected finite x1 < x2 and y1 < y2 inside the image (97 x 61",
            ),
            ([[1, 2, 3, 4], [5, 9, 8, 6]], [0, 1], "boxes_xyxy of image 7: expected finite"),
            ([[1, 2, float("nan"), 4]], [0], "boxes_xyxy of image 7: expected finite"),
            ([[98, 2, 120, 4]], [0], "boxes_xyxy of image 7: expected finite"),
            ([1, 2, 3, 4], [0], "boxes_xyxy of image 7: expected the shape (N, 4), got (4,)"),
            ([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 2, 3]], [0], "boxes_xyxy of image 7: expected the shape (N, 4)"),
            ([[1, 2, 3, 4], [1]], [0], "boxes_xyxy of image 7: expected an array of numbers"),
            ([["a", "b", "c", "d"]], [0], "boxes_xyxy of image 7: expected numbers"),
            ([[1, 2, 3, 4]], [0.7], "labels of image 7: expected 1 integers, got 1 of float64"),
            ([[1, 2, 3, 4]], ["cat"], "labels of image 7: expected numbers"),
            ([[1, 2, 3, 4]], [True], "labels of image 7: expected numbers, got bool"),
            ([[0.1, 0.2, 0.5, 0.6]], [0], "boxes_xyxy of image 7: expected pixels, got boxes in [0, 1] only."),
            ([[1, 2, float("inf"), 4]], [0], "boxes_xyxy of image 7: expected finite"),
        ],
    )
    def test_refusals(self, boxes: list, labels: list, message: str) -> None:
        with pytest.raises(UserError) as error:
            make_sample(pixels(0), boxes, labels, 7)
        assert str(error.value).startswith(message) and is_one_sentence(error.value)

    def test_an_image_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="does not exist"):
            make_sample(tmp_path / "nowhere.png", [], [], 1)


def is_one_sentence(error: UserError) -> bool:
    text = str(error)
    return text.endswith(".") and ". " not in text and "\n" not in text


def test_the_protocol_is_complete() -> None:
    dataset = SampleDataset(samples(), NAMES)
    assert isinstance(dataset, Dataset)
    check_protocol(dataset, "train_set")
    assert dataset.classes == (NAMES, (0, 1, 2))
    assert (len(dataset), dataset.image_ids) == (3, [10, 11, 12])
    assert (dataset.max_objects, dataset.num_empty, dataset.notes) == (2, 1, [])
    assert [dataset.size_of(index) for index in range(3)] == list(SIZES)
    assert [dataset.path_of(index) for index in range(3)] == ["photo 0.png", "photo 1.png", "photo 2.png"]
    for index, sample in enumerate(samples()):
        assert torch.equal(dataset[index].image, sample.image) and dataset[index].boxes.tolist() == BOXES[index]
    assert dataset.can_be_mirrored and not SampleDataset(samples(), NAMES, can_be_mirrored=False).can_be_mirrored


def test_every_member_of_the_protocol_is_checked() -> None:
    declared = {name for name in vars(Dataset) if not name.startswith("_")} | set(Dataset.__annotations__)
    assert set(MEMBERS) == declared | {"__len__", "__getitem__"}


def test_ground_truth_is_that_of_coco() -> None:
    truth = SampleDataset(samples(), NAMES).ground_truth()
    assert truth["categories"] == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 2, "name": "bird"}]
    assert truth["images"][1] == {"id": 11, "file_name": "photo 1.png", "height": 83, "width": 47}
    assert [(a["id"], a["image_id"], a["category_id"]) for a in truth["annotations"]] == [
        (1, 10, 2),
        (2, 10, 0),
        (3, 11, 1),
    ]
    assert truth["annotations"][0] == {
        "id": 1,
        "image_id": 10,
        "category_id": 2,
        "bbox": [5.5, 7.0, 31.0, 23.0],
        "area": 31.0 * 23,
        "iscrowd": 0,
    }


def test_perfect_detections_have_an_ap_of_one() -> None:
    truth = SampleDataset(samples(), NAMES).ground_truth()
    keys = ("image_id", "category_id", "bbox")
    results = [{"score": 0.9, **{key: a[key] for key in keys}} for a in truth["annotations"]]
    report = coco_report(truth, results, max_detections=100)
    assert report.ap == pytest.approx(1.0) and set(report.to_json()["per_class"]) == set(NAMES)


def test_it_is_trained_and_evaluated_on() -> None:
    dataset = SampleDataset(samples(), NAMES)
    config = DataConfig(resize_to=(64, 96), augment="crop", batch_size=3)
    ((batch,),) = training_batches(dataset, config, seed=0, epoch=0)
    assert sorted(target.image_id for target in batch.targets) == [10, 11, 12]
    targets = [target for batch in evaluation_batches(dataset, (64, 96), 3) for target in batch.targets]
    assert [target.labels.tolist() for target in targets] == list(LABELS)
    assert [target.original_size for target in targets] == list(SIZES)


class Lazy(Sequence[Sample]):
    """Loads when indexed."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: Any) -> Any:
        self.loaded.append(index)
        return samples()[index]


def test_samples_may_be_loaded_when_indexed() -> None:
    lazy = Lazy()
    dataset = SampleDataset(lazy, NAMES)
    assert set(lazy.loaded) == {0, 1, 2}
    lazy.loaded.clear()  # the type checker of these tests has loaded some, too
    dataset.ground_truth(), dataset.fingerprint(), dataset.size_of(1), dataset.path_of(1)
    assert lazy.loaded == []
    assert dataset[1].image_id == 11 and lazy.loaded == [1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SampleDataset([], NAMES), "The dataset has no samples: expected at least one"),
        (
            lambda: SampleDataset(samples(labels=torch.tensor([3])), NAMES),
            "Image 11 has the labels [3]: expected 0 to 2, the classes cat, dog, bird",
        ),
        (
            lambda: SampleDataset(samples(labels=torch.tensor([1, -1]), boxes=samples()[0].boxes), NAMES),
            "Image 11 has the labels [-1, 1]: expected 0 to 2",
        ),
        (lambda: SampleDataset(samples(), ("cat",)), "Image 10 has the labels [0, 2]: expected 0 to 0"),
        (lambda: SampleDataset(samples(image_id=10), NAMES), "An image_id occurs twice in the samples"),
    ],
)
def test_samples_that_do_not_fit(make: Callable[[], SampleDataset], message: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(message) and is_one_sentence(error.value)


def brighter(sample: Sample) -> Any:
    image = sample.image.clone()
    image[0, 5, 7] ^= 1
    return image


@pytest.mark.parametrize(
    "other",
    [
        lambda: SampleDataset(samples(image=brighter(samples()[1])), NAMES),
        lambda: SampleDataset(samples(boxes=wrap(samples()[1].boxes + 1, like=samples()[1].boxes)), NAMES),
        lambda: SampleDataset(samples(labels=torch.tensor([0])), NAMES),
        lambda: SampleDataset(samples(image_id=99), NAMES),
        lambda: SampleDataset(samples()[::-1], NAMES),
        lambda: SampleDataset(samples()[:2], NAMES),
        lambda: SampleDataset(samples(), ("cat", "dog", "fish")),
    ],
    ids=["pixels", "boxes", "labels", "ids", "order", "number", "names"],
)
def test_equal_fingerprints_mean_equal_data(other: Callable[[], SampleDataset]) -> None:
    first = SampleDataset(samples(), NAMES).fingerprint()
    assert first == SampleDataset(tuple(samples()), list(NAMES)).fingerprint()
    assert len(first) == 64 and int(first, 16) > 0
    assert other().fingerprint() != first


class Incomplete:
    def __init__(self) -> None:
        self.classes, self.image_ids = (NAMES, (0, 1, 2)), [1]

    def __len__(self) -> int:
        return 1


def test_what_is_missing_in_a_data_set_is_named() -> None:
    with pytest.raises(UserError) as error:
        check_protocol(Incomplete(), "val_set")
    assert str(error.value).startswith(
        "val_set: expected a dataset, for example detrs.data.SampleDataset(samples, names), got Incomplete "
        "without max_objects, num_empty, can_be_mirrored, notes, __getitem__, size_of, path_of, ground_truth, "
    )
    assert "detrs.data.SampleDataset" in str(error.value)
    with pytest.raises(UserError, match="got list without classes, image_ids, "):
        check_protocol(samples(), "train_set")
    check_protocol(DigitsDataset("val", 2), "val_set")


@pytest.mark.parametrize("member", MEMBERS)
def test_each_member_is_needed(member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = SampleDataset(samples(), NAMES)
    if member in vars(dataset):
        delattr(dataset, member)
    else:
        monkeypatch.delattr(SampleDataset, member)
    with pytest.raises(UserError, match=rf"^train_set: .* got SampleDataset without {member} of"):
        check_protocol(dataset, "train_set")


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("classes", ["a"], r"train_set\.classes: expected a detrs.data.Classes"),
        ("max_objects", None, "max_objects: expected an integer, got None"),
        ("num_empty", "0", "num_empty: expected an integer"),
        ("can_be_mirrored", None, "can_be_mirrored: expected a bool"),
        ("notes", None, "notes: expected a list"),
        ("image_ids", [1], "one of image_ids per image, got 3 images and 1 image_ids"),
        ("image_ids", [], "got 0 images and 0 image_ids"),
        ("fingerprint", lambda: None, r"fingerprint\(\): expected a string, got None"),
    ],
)
def test_members_with_wrong_values(member: str, value: Any, message: str) -> None:
    class Other(SampleDataset):
        def __len__(self) -> int:
            return 3 if self.image_ids else 0

    dataset = Other(samples(), NAMES)
    setattr(dataset, member, value)
    with pytest.raises(UserError, match=message):
        check_protocol(dataset, "train_set")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda sample: sample._replace(labels=torch.tensor([3])), r"labels: expected 0 to 2, got \[3\]"),
        (lambda sample: sample._replace(labels=torch.tensor([1, 1])), "BoundingBoxes row per label"),
        (lambda sample: sample._replace(boxes=sample.boxes.as_subclass(torch.Tensor)), "got Tensor"),
        (lambda sample: sample._replace(image=sample.image.float()), "expected a uint8 tensor"),
        (lambda sample: sample._replace(original_size=(47, 83)), r"one \(height, width\), got \(83, 47\)"),
    ],
)
def test_samples_with_wrong_values(changed: Callable[[Sample], Any], message: str) -> None:
    """Found when they are loaded."""
    dataset = SampleDataset(samples(), NAMES)
    good = dataset.samples
    dataset.samples = [good[0], changed(good[1]), good[2]]
    with pytest.raises(UserError, match=message):
        list(evaluation_batches(dataset, (32, 48), 2))


@pytest.mark.parametrize("truth", [{}, None, {"images": []}])
def test_ground_truth_of_another_kind(truth: Any) -> None:
    dataset = SampleDataset(samples(), NAMES)
    dataset.ground_truth = lambda: truth
    with pytest.raises(UserError, match=r"ground_truth\(\) of the dataset: expected a COCO dictionary"):
        checked_ground_truth(dataset)


def test_a_tuple_is_not_a_sample() -> None:
    with pytest.raises(UserError, match=r"sample 1 .*expected a detrs.data.Sample \(see make_sample\), got tuple"):
        check_sample(tuple(samples()[1]), SampleDataset(samples(), NAMES), 1)


def test_more_objects_than_declared() -> None:
    dataset = SampleDataset(samples(), NAMES)
    dataset.max_objects = 1
    with pytest.raises(UserError, match="2 objects, but max_objects is 1"):
        check_sample(dataset[0], dataset, 0)


@pytest.mark.parametrize("wrong", [[("a",)], [{}], None, 3, (number for number in range(2))])
def test_samples_that_are_not_samples(wrong: Any) -> None:
    with pytest.raises(UserError, match="samples: expected"):
        SampleDataset(wrong, NAMES)


def test_data_needs_no_models(tmp_path: Path) -> None:
    """Loader processes that are spawned import what their dataset needs, and nothing more."""
    code = (
        "import detrs.data, detrs.data.loader, sys\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('timm', 'accelerate') or "
        "name.startswith(('detrs.models', 'detrs.layers', 'detrs.backbones', 'detrs.engine'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("names", ["cat", [], ["cat", "cat", "dog"], None, [1, 2], [""], {0: "cat"}, [["a"], ["b"]]])
def test_names_that_are_not_unique_classes(names: Any) -> None:
    with pytest.raises(UserError, match="names: expected a sequence of unique class names, got"):
        SampleDataset(samples(), names)


def test_a_sample_of_another_size_than_its_image() -> None:
    with pytest.raises(UserError, match=r"Image 11 has original_size \(5, 7\): expected \(83, 47\)"):
        SampleDataset(samples(original_size=(5, 7)), NAMES)


@pytest.mark.parametrize("image_id", [1.7, True, "a", None])
def test_image_ids_that_are_not_integers(image_id: Any) -> None:
    with pytest.raises(UserError, match="image_id: expected an integer"):
        make_sample(pixels(0), [], [], image_id)


def test_names_as_an_array_and_boxes_with_a_gradient() -> None:
    box = torch.tensor([[1.0, 2, 3, 4]], requires_grad=True)
    sample = make_sample(pixels(0), box, [0], 7)
    assert sample.boxes.tolist() == [[1, 2, 3, 4]] and not sample.boxes.requires_grad
    assert SampleDataset([sample], np.array(["a", "b"])).classes.names == ("a", "b")
