"""Advice at its thresholds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detrs.data.advice import Plan, advise, oriented_classes, scales
from detrs.data.check import Annotations, Examination
from detrs.data.doctor import DatasetFacts, Place, SplitFacts
from detrs.data.image_table import image_table
from detrs.data.objects import Objects
from detrs.structures import Classes

PLAN = Plan(preset="some-detr", resize_to=(200, 400), stride=8, capacity=None, max_detections=100)
NUM_IMAGES = 150


def split(
    name: str,
    *,
    side: Any = 50.0,
    label: Any = 0,
    image: Any = None,
    names: tuple[str, ...] = ("ant", "bee"),
    num_images: int = NUM_IMAGES,
) -> SplitFacts:
    """Images of 100 x 150 pixels, by default with one object each."""
    image = np.arange(num_images) if image is None else np.asarray(image)
    ones = np.ones(len(image))
    objects = Objects(
        np.arange(num_images),
        tuple(range(len(names))),
        image.astype(np.int32),
        (ones * label).astype(np.int32),
        np.stack([ones, ones, ones * side, ones * side], axis=1),
        ones,
        ones < 0,
        ones > 0,
    )
    paths = [f"{name}{number}.jpg" for number in range(num_images)]
    sizes, contents = np.tile(np.int32([100, 150]), (num_images, 1)), np.zeros((num_images, 32), np.uint8)
    images = image_table(range(num_images), paths, sizes, contents)
    annotations = Annotations(Classes(names, objects.category_ids), images, objects, [], b"", 0)
    return SplitFacts(name=name, path=Path("x"), examination=Examination(annotations, [], [], None))


def facts(*splits: SplitFacts, **changes: Any) -> DatasetFacts:
    known = DatasetFacts(
        root=Path("data"),
        format="COCO",
        splits=list(splits),
        available=[one.name for one in splits],
        copies=[],
        similar=None,
        other_files=[],
    )
    return replace(known, **changes)


def topics(*splits: SplitFacts, plan: Plan = PLAN, **changes: Any) -> dict[str, str]:
    return dict(advise(facts(*splits, **changes), plan))


def balanced(name: str = "train", **options: Any) -> SplitFacts:
    return split(name, **{"label": np.arange(NUM_IMAGES) % 2, **options})


def test_a_good_dataset_needs_no_advice() -> None:
    assert topics(balanced(), balanced("val")) == {}
    assert topics(balanced("train2017"), balanced("valid")) == {}


@pytest.mark.parametrize(("num_small", "advised"), [(15, False), (16, True)])
def test_small_objects(num_small: int, advised: bool) -> None:
    """Images are doubled: a side of 3.9 pixels becomes 7.8, below the stride of 8."""
    sides = np.full(NUM_IMAGES, 50.0)
    sides[:num_small] = 3.9
    train = balanced(side=sides)
    assert scales(train, PLAN.resize_to) == pytest.approx(2)
    found = topics(train, balanced("val"))
    assert ("image size" in found) == advised
    if advised:
        assert "11% of the objects are smaller than 8 pixels" in found["image size"]
        assert found["image size"].endswith("train at data.resize_to 224 416.")


def test_recommended_image_size_is_enough() -> None:
    sides = np.random.default_rng(0).uniform(1, 20, NUM_IMAGES)
    train = balanced(side=sides)
    size = topics(train, balanced("val"))["image size"].rpartition("data.resize_to ")[2].rstrip(".").split()
    plan = replace(PLAN, resize_to=(int(size[0]), int(size[1])))
    assert "image size" not in topics(train, balanced("val"), plan=plan)
    assert "cut the images into tiles" in topics(balanced(side=0.5), balanced("val"))["image size"]


def test_many_objects_in_one_image() -> None:
    image = np.concatenate([np.arange(NUM_IMAGES), np.zeros(100, int)])
    train = balanced(image=image, label=np.arange(250) % 2)
    found = topics(train, balanced("val"), plan=replace(PLAN, capacity="add model.num_queries 300"))
    assert found["queries"] == "add model.num_queries 300"
    assert found["detections"].startswith("101 objects in one image, but 100") and "200" in found["detections"]
    assert "detections" not in topics(train, balanced("val"), plan=replace(PLAN, max_detections=101))


def test_missing_validation() -> None:
    assert topics(balanced())["validation"].endswith("with data.val_fraction 0.2.")
    assert topics(balanced(""))["validation"].endswith("with data.val_fraction 0.2.")
    assert "or evaluate on another split with data.val_split test" in topics(balanced(), balanced("test"))["validation"]


def test_splits_with_training_images_are_not_advised_for_validation() -> None:
    """``trainval`` of Pascal VOC, and names with years."""
    for names in (["train2017"], ["training2014"], ["train", "trainval"], ["trainval2012"]):
        found = topics(*map(balanced, names))["validation"]
        assert found.endswith("with data.val_fraction 0.2."), names
    found = topics(balanced("train2017"), balanced("test2017"))["validation"]
    assert found.endswith("with data.val_split test2017.")


def test_copies() -> None:
    places = [Place(name, Path(f"{name}.jpg")) for name in ("train", "val", "train")]
    pair = balanced(), balanced("val")
    assert topics(*pair, copies=[places[:2]])["copies"].startswith("1 image is in several splits (train, val)")
    assert topics(*pair, copies=[places[::2]] * 2)["copies"].startswith("2 images are several times in the same split")
    assert "1 pair is of similar images" in topics(*pair, similar=[(places[0], places[1], 0.99)])["copies"]
    assert "copies" not in topics(*pair, similar=[(places[0], places[2], 0.99)])


@pytest.mark.parametrize(("rare", "expected"), [(10, ""), (9, "Fewer than 10 training objects of 'bee'")])
def test_rare_classes(rare: int, expected: str) -> None:
    label = np.zeros(NUM_IMAGES)
    label[:rare] = 1
    found = topics(split("train", label=label), balanced("val"))
    assert found.get("classes", "").startswith(expected) and ("classes" in found) == bool(expected)


def test_imbalance_and_missing_classes() -> None:
    image, label = np.arange(1011) % NUM_IMAGES, np.zeros(1011)
    label[:10] = 1
    texts = [each.text for each in advise(facts(split("train", image=image, label=label), split("val")), PLAN)]
    assert any("1,001 objects of 'ant', but 10 of 'bee'" in text for text in texts)
    assert any("The split 'val' has no objects of 'bee'" in text for text in texts)


def test_few_and_empty_images() -> None:
    assert topics(balanced(num_images=99, image=np.arange(99), label=np.arange(99) % 2), balanced("val")).keys() == {
        "images"
    }
    half = np.arange(NUM_IMAGES) % (NUM_IMAGES // 2)
    assert "empty images" not in topics(balanced(image=half), balanced("val"))
    assert topics(balanced(image=half[half > 0], label=half[half > 0] % 2), balanced("val"))["empty images"].startswith(
        "51%"
    )


@pytest.mark.parametrize(
    ("names", "oriented"),
    [
        (["left arrow", "right arrow", "stop"], ["left arrow", "right arrow"]),
        (["turnLeft", "turn_right"], ["turnLeft", "turn_right"]),
        (["bright light", "cleft"], []),
        (list("0123456789"), list("0123456789")),
        (["a"], []),
    ],
)
def test_names_of_oriented_classes(names: list[str], oriented: list[str]) -> None:
    assert oriented_classes(names) == oriented


def test_mirroring() -> None:
    pair = [balanced(name, names=("left", "right")) for name in ("train", "val")]
    assert topics(*pair)["mirroring"].endswith("'left', 'right': set data.mirror False.")
