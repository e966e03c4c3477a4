"""Datasets of image files with annotations, in any of the annotation formats."""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision import tv_tensors

from detrs.data.annotation_cache import prepare
from detrs.data.annotation_rows import AnnotationRows
from detrs.data.check import swapped
from detrs.data.content import Split
from detrs.data.fingerprint import fingerprint
from detrs.data.images import decode_image
from detrs.data.sample import Sample
from detrs.data.splits import held_out
from detrs.errors import UserError
from detrs.structures import Classes


class FolderDataset:
    """One split of a dataset: image files and their annotated objects.

    Samples contain no crowd regions, no boxes without area or outside their image, and no duplicates; boxes are clipped
    to their image. ``ground_truth`` returns all annotations as they are in the file, so that scores equal those of
    other evaluators on the same file; an area that is missing or not positive is that of the box.

    Annotations are arrays, which processes that open the same split share if they are cached on disk. Parts of a split
    (``select``) share them, too.
    """

    def __init__(
        self, split: Split, *, keep_empty: bool = True, cache_bytes: int = 0, cache_annotations: bool = False
    ) -> None:
        """Reads and validates all annotations of the split.

        Args:
            split: The files, from ``find_split``.
            keep_empty: Keep images without objects.
            cache_bytes: Memory for decoded images, which are cached until it is full. Not used in loader processes.
            cache_annotations: Use the checked annotations of an earlier opening if no file has changed since.

        Raises:
            UserError: The annotations or the images have errors; the message lists all of them.
        """
        self._prepared = prepare(split, cached=cache_annotations)
        self.classes: Classes = self._prepared.classes
        self.notes: list[str] = list(self._prepared.notes)
        self.num_skipped: int = self._prepared.num_skipped
        self._every_count: NDArray[Any] = np.diff(self._prepared.targets.starts)
        self.can_be_mirrored = True
        self._cache_bytes = cache_bytes
        self._keep(np.flatnonzero(keep_empty | (self._every_count > 0)))

    def _keep(self, positions: NDArray[Any]) -> None:
        """Removes all other images; ``positions`` (N,) are those in the annotations."""
        self._positions = positions
        self._counts = self._every_count[positions]
        self.image_ids: list[int] = self._prepared.images.ids[positions].tolist()
        self.max_objects = int(self._counts.max(initial=0))
        self.num_empty = int((self._counts == 0).sum())
        self._fingerprint = ""
        self._cache: dict[int, Tensor] = {}
        self._cache_bytes_left = self._cache_bytes

    def select(self, kept: NDArray[Any]) -> "FolderDataset":
        """The dataset with some of its images, in the same order; ``kept`` (N,) is a mask."""
        part = copy.copy(self)
        part._keep(self._positions[kept])
        return part

    def divide(self, fraction: float, *, keep_empty: bool = True) -> "tuple[FolderDataset, FolderDataset]":
        """The training part and the validation part; see ``held_out``.

        Args:
            fraction: Fraction of the images in the validation part.
            keep_empty: Keep images without objects in the training part.

        Raises:
            UserError: There are too few different images.
        """
        images, targets = self._prepared.images, self._prepared.targets
        of_object = np.full(len(images), -1)
        of_object[self._positions] = np.arange(len(self))
        of_object = np.repeat(of_object, self._every_count)
        contents = [images.content(position) or images.name(position) for position in self._positions.tolist()]
        labels = targets.labels[of_object >= 0]
        held = held_out(fraction, contents, of_object[of_object >= 0], labels, self.classes.names)
        if not held.any() or held.all():
            raise UserError(
                f"data.val_fraction is {fraction}, but no image can be held out for validation: {len(self)} images "
                "(without copies) are too few, or every class has only one. Add images, or train without validation: "
                "data.val_split none"
            )
        train, val = self.select(~held & (keep_empty | (self._counts > 0))), self.select(held)
        val.notes, val.num_skipped = [], 0  # of all images; reported once, by the training part
        return train, val

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        size, objects = self.size_of(index), self._objects_of(index)
        boxes = torch.tensor(self._prepared.targets.boxes[objects])
        return Sample(
            image=tv_tensors.Image(self._pixels(index)),
            boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            labels=self.labels_of(index),
            image_id=self.image_ids[index],
            original_size=size,
            path=self.path_of(index),
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}}  # loader processes start with an empty cache

    def size_of(self, index: int) -> tuple[int, int]:
        return self._prepared.images.size(int(self._positions[index]))

    def labels_of(self, index: int) -> Tensor:
        """(N,) int64, the class index of each object of the image at ``index``, without decoding it."""
        return torch.tensor(self._prepared.targets.labels[self._objects_of(index)], dtype=torch.int64)

    def path_of(self, index: int) -> str:
        return self._prepared.images.path(int(self._positions[index]))

    def fingerprint(self) -> str:
        if not self._fingerprint:
            images, positions = self._prepared.images, self._positions.tolist()
            names, contents = map(images.name, positions), map(images.content, positions)
            self._fingerprint = fingerprint(self._prepared.digest, names, contents)
        return self._fingerprint

    def _objects_of(self, index: int) -> slice:
        """The rows of an image in the targets."""
        starts, position = self._prepared.targets.starts, int(self._positions[index])
        return slice(int(starts[position]), int(starts[position + 1]))

    def ground_truth(self) -> dict[str, Any]:
        truth = self.ground_truth_rows()
        return truth | {"annotations": list(truth["annotations"])}

    def ground_truth_rows(self) -> dict[str, Any]:
        """``ground_truth`` with ``AnnotationRows`` as annotations, which are arrays."""
        names = (os.fsdecode(self._prepared.images.name(position)) for position in self._positions.tolist())
        sizes = self._prepared.images.sizes[self._positions]
        images = [
            {"id": id_, "file_name": name, "height": height, "width": width}
            for id_, name, (height, width) in zip(self.image_ids, names, sizes.tolist(), strict=True)
        ]
        kept = np.zeros(len(self._prepared.images), dtype=bool)
        kept[self._positions] = True
        objects = self._prepared.objects
        if not kept.all():
            objects = objects.select(np.flatnonzero(kept[objects.image]))
        return {
            "images": images,
            "annotations": AnnotationRows(objects),
            "categories": [
                {"id": id_, "name": name}
                for name, id_ in zip(self.classes.names, self.classes.category_ids, strict=True)
            ],
        }

    def _pixels(self, index: int) -> Tensor:
        if index in self._cache:
            return self._cache[index]
        path, annotated = Path(self.path_of(index)), self.size_of(index)
        image = decode_image(path)  # (3, H, W)
        size = (image.shape[1], image.shape[2])
        if size != annotated:
            sizes = f"{size[1]} x {size[0]} pixels, but annotated as {annotated[1]} x {annotated[0]}"
            raise UserError(f"{path} is {sizes}{swapped(path, size, annotated)}.")
        if get_worker_info() is None and image.nbytes <= self._cache_bytes_left:
            self._cache[index] = image
            self._cache_bytes_left -= image.nbytes
        return image
