"""Advice for a dataset and the settings with which a detector is trained on it."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detrs.data.content import has_training_images, split_of
from detrs.data.doctor import DatasetFacts, SplitFacts
from detrs.data.opening import SUGGESTED_FRACTION
from detrs.data.preprocessing import resized_size

MAX_BELOW_STRIDE = 0.1
"""Fraction of objects that may be smaller than the stride of the finest feature map."""
SIZE_STEP = 32
"""Recommended image sizes are multiples of this."""
MAX_SIZE = 2048
"""Largest recommended image size in pixels; above, images should be cut into tiles."""
MAX_IMBALANCE = 100
"""Ratio of the numbers of objects of two classes."""
FEW_OBJECTS = 10
"""Objects of a class in the training split, below which it can hardly be learned."""
FEW_IMAGES = 100
"""Training images below which the weights of a trained detector help most."""
MAX_EMPTY = 0.5
"""Fraction of images without objects."""
MAX_NAMES = 5
"""Classes that are listed."""


class Advice(NamedTuple):
    topic: str
    text: str
    """Settings are named as in ``Experiment``, such as ``data.resize_to``."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the training with a preset determines."""

    preset: str
    resize_to: tuple[int, int]
    """(short, long) in pixels."""
    stride: int
    """Of the finest feature map, in pixels."""
    capacity: str | None
    """What to change if an image has more objects than the detector can detect; ``None`` if none has."""
    max_detections: int
    """Detections per image that are evaluated."""


def advise(facts: DatasetFacts, plan: Plan) -> list[Advice]:
    """All advice, the most important first."""
    train = training_split(facts)
    return [
        *_splits(facts),
        *_copies(facts),
        *([] if train is None or not len(train.objects) else _training(train, plan)),
        *_classes(facts),
    ]


def training_split(facts: DatasetFacts) -> SplitFacts | None:
    """The split ``train``, or the only one."""
    found = [split for name in ("train", "") for split in facts.splits if split_of(split.name) == name]
    return found[0] if found else facts.splits[0] if len(facts.splits) == 1 else None


def _splits(facts: DatasetFacts) -> Iterator[Advice]:
    names = facts.available
    if any(split_of(name) == "val" for name in names):
        return
    text = "There is no validation split: hold out"
    others = [name for name in names if name and not has_training_images(name)]
    other = f", or evaluate on another split with data.val_split {others[0]}" if others else ""
    yield Advice("validation", f"{text} training images with data.val_fraction {SUGGESTED_FRACTION}{other}.")


def _copies(facts: DatasetFacts) -> Iterator[Advice]:
    if facts.leaks:
        splits = sorted({place.split for group in facts.leaks for place in group})
        yield Advice(
            "copies",
            f"{_count(len(facts.leaks), 'image')} in several splits ({', '.join(splits)}), which makes the scores too "
            "high: remove the copies from all but one.",
        )
    if within := len(facts.copies) - len(facts.leaks):
        yield Advice(
            "copies",
            f"{_count(within, 'image')} several times in the same split: remove the copies, which have more "
            "weight in training.",
        )
    if facts.similar and (across := sum(a.split != b.split for a, b, _ in facts.similar)):
        yield Advice(
            "copies",
            f"{_count(across, 'pair')} of similar images in different splits: if they show the same scene, move both "
            "images to the same split, since the scores are too high otherwise.",
        )


def _training(train: SplitFacts, plan: Plan) -> Iterator[Advice]:
    most = int(train.per_image.max())
    if plan.capacity is not None:
        yield Advice("queries", plan.capacity)
    if most > plan.max_detections:
        yield Advice(
            "detections",
            f"{most} objects in one image, but {plan.max_detections} detections per image are evaluated: set "
            f"evaluation.max_detections {_round_up(most, 100)}.",
        )
    yield from _sizes(train, plan)
    if len(train.images) < FEW_IMAGES:
        yield Advice(
            "images",
            f"{len(train.images)} training images are few: start from the weights of a trained detector (--weights).",
        )
    if train.num_empty > MAX_EMPTY * len(train.images):
        share = train.num_empty / len(train.images)
        yield Advice(
            "empty images",
            f"{share:.0%} of the training images have no objects: if they slow training down, drop them with "
            "data.keep_empty False.",
        )


def _sizes(train: SplitFacts, plan: Plan) -> Iterator[Advice]:
    sides, (short, long) = train.sides * scales(train, plan.resize_to), plan.resize_to
    below = float((sides < plan.stride).mean())
    if below <= MAX_BELOW_STRIDE:
        return
    size = f"{short}" if short == long else f"{short} {long}"
    typical = float(np.quantile(sides, MAX_BELOW_STRIDE))
    factor = plan.stride / max(typical, 1e-6)
    wanted = _round_up(short * factor, SIZE_STEP), _round_up(long * factor, SIZE_STEP)
    start = (
        f"{below:.0%} of the objects are smaller than {plan.stride} pixels, the stride of the finest feature map, at "
        f"data.resize_to {size} (10% are below {typical:.1f}, the median is {np.median(sides):.1f})"
    )
    if max(wanted) > MAX_SIZE:
        needed = plan.stride / max(float(np.quantile(train.sides, MAX_BELOW_STRIDE)), 1e-6)
        enlarged = f" enlarged by {needed:.1f}" if needed > 1 else ""
        yield Advice("image size", f"{start}: cut the images into tiles{enlarged}.")
    else:
        sizes = f"{wanted[0]}" if wanted[0] == wanted[1] else f"{wanted[0]} {wanted[1]}"
        yield Advice("image size", f"{start}: train at data.resize_to {sizes}.")


def scales(split: SplitFacts, resize_to: tuple[int, int]) -> NDArray[Any]:
    """(N,) factor by which the image of each object is resized."""
    sizes, inverse = np.unique(split.image_sizes, axis=0, return_inverse=True)
    factors = [resized_size((h, w), resize_to)[0] / h for h, w in sizes.tolist()]
    return np.array(factors)[inverse.ravel()][split.objects.image]


def _classes(facts: DatasetFacts) -> Iterator[Advice]:
    for split, names in facts.missing_classes.items():
        yield Advice("classes", f"The split '{split}' has no objects of {_listed(names)}, which other splits have.")
    train = training_split(facts)
    counts = {} if train is None else {name: count for name, count in train.per_class.items() if count}
    if counts:
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        few = sorted((name for name in counts if counts[name] < FEW_OBJECTS), key=counts.__getitem__)
        if counts[most] > MAX_IMBALANCE * counts[least]:
            yield Advice(
                "classes",
                f"Classes are imbalanced: {counts[most]:,} objects of '{most}', but {counts[least]:,} of '{least}' in "
                "training. Compare AP per class, and collect more images of rare classes.",
            )
        if few:
            yield Advice(
                "classes",
                f"Fewer than {FEW_OBJECTS} training objects of {_listed(few)}: collect more, or remove "
                f"{'the class' if len(few) == 1 else 'these classes'}.",
            )
    longest = max((split.classes for split in facts.splits), key=len)
    if oriented := oriented_classes(longest):
        yield Advice(
            "mirroring",
            f"A mirrored image shows another class for {_listed(oriented)}: set data.mirror False.",
        )


def oriented_classes(names: Sequence[str]) -> list[str]:
    """Names of classes whose objects belong to another class, or none, when they are mirrored.

    These are names with the word left or right, and all names of a dataset of single letters or digits.

    >>> oriented_classes(["turn-left", "turn-right", "stop"])
    ['turn-left', 'turn-right']
    """
    if len(names) > 1 and all(len(name) == 1 and name.isalnum() for name in names):
        return list(names)
    words = re.compile(r"(?<![a-z])(left|right)(?![a-z])")
    return [name for name in names if words.search(re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())]


def _count(number: int, noun: str) -> str:
    return f"1 {noun} is" if number == 1 else f"{number:,} {noun}s are"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - MAX_NAMES
    return ", ".join(f"'{name}'" for name in names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def _round_up(value: int | float, step: int) -> int:
    return math.ceil(value / step) * step
