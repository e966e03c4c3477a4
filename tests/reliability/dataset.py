"""A valid COCO dataset on disk, to be damaged. Reading it gives no notes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from run_tiny import experiment, training

from detrs.config import Experiment
from detrs.data import open_dataset

HEIGHT, WIDTH = 47, 61
FEW, MANY = 4, 100
"""Images: with few, one unusable item is more than 1 %; with many it is not."""
Change = Callable[[dict[str, Any]], None]


class Folder:
    """A dataset with two objects in each image. ``data`` is the content of its annotation file.

    Args:
        root: a new folder.
        images: number of images.
        split: name of the split.
    """

    def __init__(self, root: Path, images: int = FEW, split: str = "train") -> None:
        self.root, self.split = root, split
        self.images = root / "images"
        self.images.mkdir(parents=True, exist_ok=True)
        categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
        self.data: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for number in range(images):
            pixels = np.full((HEIGHT, WIDTH, 3), 40 + number, np.uint8)
            pixels[:, :, len(split) % 3] += 60  # the images of two splits differ
            Image.fromarray(pixels).save(self.images / f"{split} {number}.png")
            entry = {"id": 10 + number, "file_name": f"{split} {number}.png", "height": HEIGHT, "width": WIDTH}
            self.data["images"].append(entry)
            for category, bbox in ((7, [5.5, 7, 31, 23]), (3, [29, 11, 19 + number % 7, 30])):
                self.data["annotations"].append(
                    {"id": 100 + len(self.data["annotations"]), "image_id": 10 + number, "category_id": category}
                    | {"bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0}
                )

    @property
    def annotations(self) -> Path:
        return self.root / "annotations" / f"{self.split}.json"

    @property
    def first(self) -> Path:
        """The first image file."""
        return self.images / self.data["images"][0]["file_name"]

    def write(self, content: str | bytes | None = None) -> None:
        """Write the annotation file: ``data``, or some other content."""
        self.annotations.parent.mkdir(exist_ok=True)
        content = json.dumps(self.data) if content is None else content
        self.annotations.write_bytes(content if isinstance(content, bytes) else content.encode())

    def declare(self, height: int, width: int) -> None:
        """Set the size of the first image, which then has one object that fits."""
        self.data["images"][0] |= {"height": height, "width": width}
        self.data["annotations"][0]["bbox"] = [0, 0, min(width, 9), min(height, 7)]
        del self.data["annotations"][1]

    def read(self) -> Any:
        """Open the split and decode all its images."""
        dataset = open_dataset(str(self.root), self.split)
        for index in range(len(dataset)):
            sample = dataset[index]
            assert sample.image.dtype == torch.uint8 and len(sample.boxes) == len(sample.labels)
            assert bool(torch.isfinite(sample.boxes).all()) and sample.image.shape[1:] == sample.original_size
        return dataset


Check = Callable[[Any, Folder], None]


def reads(change: Change | None = None, *, images: int = FEW, check: Check | None = None) -> Any:
    """``make`` of a case with a changed annotation file."""

    def make(root: Path) -> Callable[[], list[str]]:
        folder = Folder(root / "set", images)
        if change:
            change(folder.data)
        folder.write()
        return reading(folder, check)

    return make


def content(data: bytes | Callable[[str], str | bytes]) -> Any:
    """``make`` of a case whose annotation file has other bytes."""

    def make(root: Path) -> Callable[[], list[str]]:
        folder = Folder(root / "set")
        folder.write(data if isinstance(data, bytes) else data(json.dumps(folder.data, indent=1)))
        return reading(folder)

    return make


def prepared(prepare: Callable[[Folder], None], *, images: int = FEW, check: Check | None = None) -> Any:
    """``make`` of a case that also changes files."""

    def make(root: Path) -> Callable[[], list[str]]:
        folder = Folder(root / "set", images)
        folder.write()
        prepare(folder)
        return reading(folder, check)

    return make


def reading(folder: Folder, check: Check | None = None) -> Callable[[], list[str]]:
    """The call that reads a dataset: its notes."""

    def call() -> list[str]:
        dataset = folder.read()
        if check:
            check(dataset, folder)
        return dataset.notes

    return call


def trains(
    prepare: Callable[[Folder, Folder], None],
    settings: dict[str, Any] | Callable[[Path], dict[str, Any]] | None = None,
    images: int = 6,
) -> Any:
    """``make`` of a case that takes one training step; ``prepare`` changes the train and the val split.

    Notes and warnings are those that are logged.
    """

    def make(root: Path) -> Callable[[], list[str]]:
        train, val = Folder(root / "set", images), Folder(root / "set", 3, "val")
        prepare(train, val)
        train.write()
        val.write()
        values = settings(root) if callable(settings) else settings or {}
        return lambda: one_step(train.root, root / "run", values)

    return make


def one_step(data: Path, output: Path, settings: dict[str, Any]) -> list[str]:
    """Take one training step on a folder."""
    values = {"data": {"batch_size": 2, "cache_gib": 0}, **settings}
    values["data"] = {"path": str(data), "batch_size": 2} | settings.get("data", {})
    whole = {name: values.pop(name) for name in ("initial", "seed") if name in values}
    chosen: Experiment = experiment(**values)
    if whole:
        import dataclasses

        chosen = dataclasses.replace(chosen, **whole)
    steps = training(chosen, output, train_set=None, val_set=None)
    report = next(steps)
    steps.close()
    assert report.loss == report.loss and not report.skipped, "the loss is not finite"
    return []
