"""Facts about a dataset: everything that ``detrs check`` reports."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detrs.data.check import Examination, examine
from detrs.data.content import SYNONYMS, UNION, Split, split_of
from detrs.data.copies import exact_copies, similar_images
from detrs.data.detect import choose_split, find_splits
from detrs.data.findings import Finding
from detrs.data.formats import FORMATS
from detrs.data.image_table import ImageEntry
from detrs.data.objects import Objects

QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "50%": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
SMALL, LARGE = 32**2, 96**2
"""Limits of the area of medium objects in square pixels, as in COCO."""

DIFFERENT = "split with other classes than the others"


class Place(NamedTuple):
    """An image file of a split."""

    split: str
    path: Path

    def __str__(self) -> str:
        return f"{self.split}/{self.path.name}" if self.split else self.path.name


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitFacts:
    """Facts about one split. Objects are those that are trained on: no crowd regions, duplicates or empty boxes."""

    name: str
    path: Path
    examination: Examination

    @property
    def errors(self) -> list[Finding]:
        return self.examination.errors

    @property
    def notes(self) -> list[Finding]:
        return self.examination.notes

    @property
    def classes(self) -> tuple[str, ...]:
        annotations = self.examination.annotations
        return () if annotations is None else annotations.classes.names

    @property
    def images(self) -> Sequence[ImageEntry]:
        annotations = self.examination.annotations
        return [] if annotations is None else annotations.images

    @cached_property
    def every_object(self) -> Objects:
        """Including those that are not trained on."""
        annotations = self.examination.annotations
        if annotations is not None:
            return annotations.objects
        none = np.zeros(0)
        return Objects(none, (), none.astype(int), none.astype(int), none.reshape(0, 4), none, none > 0, none > 0)

    @cached_property
    def objects(self) -> Objects:
        return self.every_object.select(np.flatnonzero(self.every_object.trainable))

    @cached_property
    def image_sizes(self) -> NDArray[Any]:
        """(M, 2) height and width in pixels."""
        return np.array([image.size for image in self.images], dtype=np.int64).reshape(-1, 2)

    @cached_property
    def sides(self) -> NDArray[Any]:
        """(N,) square root of the area of each box in pixels."""
        return np.sqrt(self.objects.boxes[:, 2:].prod(1))

    @cached_property
    def per_image(self) -> NDArray[Any]:
        """(M,) number of objects."""
        return np.bincount(self.objects.image, minlength=len(self.images))

    @cached_property
    def per_class(self) -> dict[str, int]:
        """Number of objects."""
        counts = np.bincount(self.objects.label, minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    @cached_property
    def images_per_class(self) -> dict[str, int]:
        pairs = np.unique(np.stack([self.objects.image, self.objects.label]), axis=1)
        return dict(zip(self.classes, np.bincount(pairs[1], minlength=len(self.classes)).tolist(), strict=True))

    @property
    def num_empty(self) -> int:
        return int((self.per_image == 0).sum())

    @property
    def shares(self) -> dict[str, float | None]:
        """Fraction of small, medium and large boxes by the limits of COCO, in pixels of the original image."""
        areas = self.sides**2
        masks = {"small": areas < SMALL, "medium": (areas >= SMALL) & (areas <= LARGE), "large": areas > LARGE}
        return {name: float(mask.mean()) if len(areas) else None for name, mask in masks.items()}

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable dictionary."""
        boxes, sizes = self.objects.boxes, self.image_sizes
        annotations = self.examination.annotations
        return {
            "name": self.name,
            "path": str(self.path),
            "errors": [asdict(finding) for finding in self.errors],
            "notes": [asdict(finding) for finding in self.notes],
            "num_images": len(self.images),
            "num_skipped": 0 if annotations is None else annotations.num_skipped,
            "num_empty": self.num_empty,
            "num_objects": len(self.objects),
            "num_crowd": int(self.every_object.crowd.sum()),
            "objects_per_class": self.per_class,
            "images_per_class": self.images_per_class,
            "objects_per_image": quantiles(self.per_image),
            "box_side": quantiles(self.sides),
            "box_aspect_ratio": quantiles(boxes[:, 2] / boxes[:, 3]),
            "box_shares": self.shares,
            "image_height": quantiles(sizes[:, 0]),
            "image_width": quantiles(sizes[:, 1]),
            "image_aspect_ratio": quantiles(sizes[:, 1] / sizes[:, 0]),
        }


@dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """Facts about a dataset."""

    root: Path
    format: str
    """Name of the annotation format."""
    splits: list[SplitFacts]
    available: list[str]
    """Names of all splits, including those that were not examined."""
    copies: list[list[Place]]
    """Groups of equal image files."""
    other_files: list[Finding]
    """Files beside the splits that are not annotations."""
    similar: list[tuple[Place, Place, float]] | None
    """Pairs of similar images with their correlation; ``None``: not searched."""

    @property
    def errors(self) -> list[Finding]:
        """Errors that concern several splits: training compares the classes of ``train`` and ``val``."""
        found = _different_classes([split for split in self.splits if split_of(split.name) in ("train", "val")])
        return [Finding(DIFFERENT, len(found), found)] if found else []

    @property
    def notes(self) -> list[Finding]:
        """Notes that concern several splits, or files beside them."""
        found = _different_classes(self.splits)
        return (
            self.other_files if self.errors or not found else [*self.other_files, Finding(DIFFERENT, len(found), found)]
        )

    @property
    def findings(self) -> list[tuple[str, str, Finding]]:
        """(``error`` or ``note``, names of its splits, finding), errors first; equal ones of several splits once."""
        found: dict[tuple[str, str], tuple[list[str], Finding]] = {}
        for kind, own in (("error", self.errors), ("note", self.notes)):
            found |= {(kind, str(each)): ([], each) for each in own}
        for split in self.splits:
            for kind, each in [*(("error", each) for each in split.errors), *(("note", each) for each in split.notes)]:
                found.setdefault((kind, str(each)), ([], each))[0].append(split.name)
        rows = [(kind, ", ".join(names), each) for (kind, _), (names, each) in found.items()]
        return sorted(rows, key=lambda row: row[0] == "note")

    @property
    def num_errors(self) -> int:
        """Kinds of errors, over all splits."""
        return len(self.errors) + sum(len(split.errors) for split in self.splits)

    @cached_property
    def leaks(self) -> list[list[Place]]:
        """Groups of equal image files in several splits."""
        return [group for group in self.copies if len({place.split for place in group}) > 1]

    @property
    def missing_classes(self) -> dict[str, list[str]]:
        """Split -> classes without objects in it that have objects in another split."""
        used = {name for split in self.splits for name, count in split.per_class.items() if count}
        missing = {
            split.name: [name for name, count in split.per_class.items() if not count and name in used]
            for split in self.splits
        }
        return {name: classes for name, classes in missing.items() if classes}

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable dictionary."""
        similar = None
        if self.similar is not None:
            similar = [{"images": [*map(_named, (a, b))], "correlation": value} for a, b, value in self.similar]
        return {
            "data": str(self.root),
            "format": self.format,
            "num_errors": self.num_errors,
            "errors": [asdict(finding) for finding in self.errors],
            "notes": [asdict(finding) for finding in self.notes],
            "splits": [split.to_json() for split in self.splits],
            "missing_classes": self.missing_classes,
            "copies": [[_named(place) for place in group] for group in self.copies],
            "similar": similar,
        }


def examine_dataset(root: Path, *, split: str | None = None, near_duplicates: bool = False) -> DatasetFacts:
    """Examines all splits of a dataset; errors in one do not prevent the others from being examined.

    Args:
        root: The dataset.
        split: Examine only this split.
        near_duplicates: Also search similar images, which decodes all of them.

    Raises:
        UserError: There is no such dataset or split.
    """
    found = find_splits(root)
    chosen = without_union(found) if found and split is None else [choose_split(found, root, split or "train")]
    examined = [SplitFacts(name=each.name, path=each.path, examination=examine(each)) for each in chosen]
    facts = [one for one in examined if order(one.name) < len(SYNONYMS) or one.examination.annotations is not None]
    facts = sorted(facts, key=lambda one: order(one.name)) or examined
    others = [f"{one.path.name}: {one.errors[0]}" for one in examined if one not in facts]
    places = [Place(one.name, image.path) for one in facts for image in one.images]
    paths = [place.path for place in places]
    similar = None
    if near_duplicates:
        similar = [(places[a], places[b], correlation) for a, b, correlation in similar_images(paths)]
    return DatasetFacts(
        root=root,
        format=next((each.NAME for each in FORMATS if getattr(each, "__name__", "") == type(chosen[0]).__module__), ""),
        splits=facts,
        available=[each.name for each in found],
        copies=[[places[position] for position in group] for group in exact_copies(paths)],
        other_files=[Finding("file that is not a split of the dataset, ignored", len(others), others)]
        if others
        else [],
        similar=similar,
    )


def order(split: str) -> int:
    """Position of a split among train, val and test; other names are the last."""
    return next((number for number, names in enumerate(SYNONYMS) if split_of(split) == names[0]), len(SYNONYMS))


def without_union(found: list[Split]) -> list[Split]:
    """The splits without ``trainval`` of Pascal VOC, the union of ``train`` and ``val``, if all three exist."""
    has_parts = {"train", "val"} <= {each.name for each in found}
    return [each for each in found if not (has_parts and each.name == UNION)]


def _different_classes(splits: list[SplitFacts]) -> list[str]:
    """What the classes of some splits lack; empty if all of them have the same classes."""
    names = {split.name: set(split.classes) for split in splits if split.classes}
    every = set().union(*names.values())
    lacking = {name: sorted(every - own) for name, own in names.items() if every - own}
    return [f"{name} has no {', '.join(map(repr, missing[:3]))}" for name, missing in lacking.items()]


def quantiles(values: NDArray[Any]) -> dict[str, float] | None:
    """``QUANTILES`` of some values; ``None`` if there are none."""
    if not len(values):
        return None
    return dict(zip(QUANTILES, np.quantile(values, [*QUANTILES.values()]).tolist(), strict=True))


def _named(place: Place) -> dict[str, str]:
    return {"split": place.split, "path": str(place.path)}
