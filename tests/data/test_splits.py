"""Properties of the division of a dataset into a training and a validation part."""

import hashlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from detrs.data.splits import held_out

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
SHARES = (0.9, 0.5, 0.2, 0.05, 0.02, 0.01)
"""Fraction of the images with each class."""


def content(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


class Case:
    """Random images with several classes each, and images without objects."""

    def __init__(self, seed: int, num_images: int = 500) -> None:
        random = np.random.default_rng(seed)
        self.contents = [content(number) for number in range(num_images)]
        has = random.random((num_images, len(NAMES))) < SHARES
        has[random.random(num_images) < 0.1] = False
        self.image, self.label = np.nonzero(has)
        repeats = random.integers(1, 4, len(self.image))  # several objects of a class
        self.image, self.label = np.repeat(self.image, repeats), np.repeat(self.label, repeats)

    def held(self, fraction: float = 0.2) -> NDArray[np.bool_]:
        return held_out(fraction, self.contents, self.image, self.label, NAMES)

    def table(self) -> NDArray[Any]:
        """(N, K + 1) whether an image has objects of a class, or none."""
        has = np.zeros((len(self.contents), len(NAMES) + 1), dtype=bool)
        has[self.image, self.label] = True
        has[:, -1] = ~has.any(1)
        return has


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.8])
def test_every_class_has_its_fraction(seed: int, fraction: float) -> None:
    case = Case(seed)
    held, has = case.held(fraction), case.table()
    total, found = has.sum(0), has[held].sum(0)
    wanted = np.clip(fraction * total, 1, total - 1)
    assert (np.abs(found - wanted) <= np.maximum(2, 0.03 * total)).all()
    assert abs(held.sum() - fraction * len(held)) <= 0.03 * len(held)
    assert (found[total > 1] >= 1).all() and (found < total).all()


def test_it_does_not_depend_on_the_order_of_images_objects_and_classes() -> None:
    case = Case(3)
    held = case.held()
    random = np.random.default_rng(1)
    images, objects, classes = (random.permutation(n) for n in (500, len(case.image), len(NAMES)))
    position, rank = np.argsort(images), np.argsort(classes)
    again = held_out(
        0.2,
        [case.contents[number] for number in images],
        position[case.image][objects],
        rank[case.label][objects],
        [NAMES[number] for number in classes],
    )
    assert np.array_equal(again, held[images]) and 0 < held.sum() < 500


def test_equal_images_are_in_the_same_part() -> None:
    case = Case(4)
    for number in range(0, 200, 2):
        case.contents[number + 1] = case.contents[number]
    held = case.held()
    assert np.array_equal(held[0:200:2], held[1:200:2]) and 0 < held[:200].sum() < 200
    assert abs(held.mean() - 0.2) < 0.03


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.6, 0.99])
def test_rare_classes(fraction: float) -> None:
    """200 images of a class; among them three of one class, two of another, and one of a third."""
    contents = [content(number) for number in range(200)]
    image, label = np.r_[np.arange(200), 0:3, 3:5, 5], np.r_[np.zeros(200, int), [1] * 3, [2] * 2, 3]
    held = held_out(fraction, contents, image, label, NAMES[:4])
    assert 1 <= held[0:3].sum() <= 2 and held[3:5].sum() == 1
    assert not held[5]  # the only image of a class is trained on
    assert abs(held.sum() - fraction * 200) <= 5


def test_rare_classes_that_share_their_images() -> None:
    """Each of 40 images has two of 40 classes: every class is in two images."""
    contents = [content(number) for number in range(40)]
    image = np.arange(40).repeat(2)
    label = (image + np.tile([0, 1], 40)) % 40
    held = held_out(0.3, contents, image, label, [f"class {k:02}" for k in range(40)])
    for part in (held, ~held):
        assert len(np.unique(label[part[image]])) >= 30  # a ring of classes cannot always have both
    assert 0.2 < held.mean() < 0.6


@pytest.mark.parametrize("seed", range(40))
def test_small_datasets(seed: int) -> None:
    """Few images with ties between classes: the same division in any order, and no class without validation image."""
    random = np.random.default_rng(seed)
    contents = [content(number) for number in range(12)]
    has = random.random((12, 6)) < 0.35
    image, label = np.nonzero(has)
    held = held_out(0.2, contents, image, label, NAMES)
    images, classes = random.permutation(12), random.permutation(6)
    again = held_out(
        0.2,
        [contents[number] for number in images],
        np.argsort(images)[image],
        np.argsort(classes)[label],
        [NAMES[number] for number in classes],
    )
    assert np.array_equal(again, held[images])
    counts = np.stack([has[~held].sum(0), has[held].sum(0)])
    for class_ in np.flatnonzero((counts == 0).any(0) & (has.sum(0) > 1)):
        lacking = int(counts[1, class_] == 0)
        own = np.flatnonzero(has[:, class_])  # moving any of its images would leave the other part without a class
        assert all((counts[1 - lacking, has[one]] == 1).any() for one in own), class_


@pytest.mark.parametrize(
    ("contents", "label"),
    [([content(1)] * 3, [0, 0, 0]), ([content(1)], [0]), ([content(1), content(2)], [0, 1])],
    ids=["copies", "one", "classes"],
)
def test_nothing_can_be_held_out(contents: list[bytes], label: list[int]) -> None:
    held = held_out(0.5, contents, np.arange(len(label)), np.array(label), NAMES)
    assert not held.any()


def test_100_000_images_take_seconds() -> None:
    import time

    case = Case(0, num_images=100_000)
    began = time.monotonic()
    assert abs(case.held().mean() - 0.2) < 0.001
    assert time.monotonic() - began < 60
