"""Datasets of image files with annotations, in any of the annotation formats."""

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision import tv_tensors

from detrs.data.check import ImageEntry, read_annotations, swapped
from detrs.data.content import Split
from detrs.data.fingerprint import fingerprint, hash_files
from detrs.data.images import decode_image
from detrs.data.sample import Sample
from detrs.data.splits import held_out
from detrs.errors import UserError
from detrs.structures import Classes


class FolderDataset:
    """One split of a dataset: image files and the their annotated objects.

    Samples contain no crowd regions, no boxes without area or outside their image, and no duplicates; boxes are clipped
    to their image. ``ground_truth`` returns all annotations as they are in the file, so that scores equal those of
    other evaluators on the same file.
    """

    def __init__(self, split: Split, *, keep_empty: bool = True, cache_bytes: int = 0) -> None:
        """Reads and validates all annotations of the split.

        Args:
            split: The files, from ``find_split``.
            keep_empty: Keep images without objects.
            cache_bytes: Memory for decoded images, which are cached until it is full. Not used in loader processes.

        Raises:
            UserError: The annotations or the images have errors; the message lists all of them.
        """
        annotations = read_annotations(split)
        self.classes: Classes = annotations.classes
        self.notes: list[str] = annotations.notes
        self.num_skipped: int = annotations.num_skipped
        every = annotations.objects
        self._digest = annotations.digest
        self._images: list[ImageEntry] = annotations.images
        self._contents: list[bytes] = hash_files([image.path for image in self._images])
        self._positions = np.arange(len(self._images))  # of the images in the annotations
        self._objects = every
        rows = np.flatnonzero(every.trainable)
        rows = rows[np.argsort(every.image[rows], kind="stable")]  # (T,), by image, in the order of the file
        sizes = torch.tensor([image.size for image in annotations.images], dtype=torch.float64)
        limits = sizes.flip(1).repeat(1, 2)[torch.from_numpy(every.image[rows]).long()]  # (T, 4)
        boxes = torch.from_numpy(every.boxes[rows])  # (T, 4) xywh
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        self._boxes = boxes.clamp(min=0).minimum(limits).float()  # (T, 4) xyxy in pixels, of all images
        self._labels = torch.from_numpy(every.label[rows]).long()  # (T,)
        self._counts = np.bincount(every.image[rows], minlength=len(self._images))
        self.can_be_mirrored = True
        self._cache_bytes = cache_bytes
        self._keep(np.full(len(self), True) if keep_empty else self._counts > 0)

    def _keep(self, kept: NDArray[Any]) -> None:
        """Removes all other images; ``kept`` (N,) is a mask."""
        self._images = [image for image, keep in zip(self._images, kept, strict=True) if keep]
        self._contents = [content for content, keep in zip(self._contents, kept, strict=True) if keep]
        rows = torch.from_numpy(np.repeat(kept, self._counts))
        self._boxes, self._labels = self._boxes[rows], self._labels[rows]
        self._positions, self._counts = self._positions[kept], self._counts[kept]
        is_kept = np.zeros(len(self._objects.image_ids), dtype=bool)
        is_kept[self._positions] = True
        self._objects = self._objects.select(np.flatnonzero(is_kept[self._objects.image]))
        self._starts = np.concatenate(([0], self._counts.cumsum())).tolist()
        self.image_ids = [image.id for image in self._images]
        self.max_objects = int(self._counts.max(initial=0))
        self.num_empty = int((self._counts == 0).sum())
        self._fingerprint = fingerprint(self._digest, [image.path for image in self._images], self._contents)
        self._cache: dict[int, Tensor] = {}
        self._cache_bytes_left = self._cache_bytes

    def select(self, kept: NDArray[Any]) -> "FolderDataset":
        """The dataset with some of its images, in the same order; ``kept`` (N,) is a mask."""
        part = copy.copy(self)
        part._keep(kept)
        return part

    def divide(self, fraction: float, *, keep_empty: bool = True) -> "tuple[FolderDataset, FolderDataset]":
        """The training part and the validation part; see ``held_out``.

        Args:
            fraction: Fraction of the images in the validation part.
            keep_empty: Keep images without objects in the training part.

        Raises:
            UserError: There are too few different images.
        """
        images = np.repeat(np.arange(len(self)), self._counts)
        files = zip(self._contents, self._images, strict=True)
        contents = [content or image.path.name.encode() for content, image in files]
        held = held_out(fraction, contents, images, self._labels.numpy(), self.classes.names)
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
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        entry = self._images[index]
        objects = slice(self._starts[index], self._starts[index + 1])
        return Sample(
            image=tv_tensors.Image(self._pixels(index)),
            boxes=tv_tensors.BoundingBoxes(self._boxes[objects], format="XYXY", canvas_size=entry.size),
            labels=self._labels[objects],
            image_id=entry.id,
            original_size=entry.size,
            path=str(entry.path),
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}}  # loader processes start with an empty cache

    def size_of(self, index: int) -> tuple[int, int]:
        return self._images[index].size

    def path_of(self, index: int) -> str:
        return str(self._images[index].path)

    def fingerprint(self) -> str:
        return self._fingerprint

    def ground_truth(self) -> dict[str, Any]:
        return {
            "images": [
                {"id": image.id, "file_name": image.path.name, "height": image.size[0], "width": image.size[1]}
                for image in self._images
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": entry.image_id,
                    "category_id": entry.category_id,
                    "bbox": list(entry.bbox),
                    "area": entry.area,
                    "iscrowd": int(entry.crowd),
                }
                for number, entry in enumerate(self._objects, 1)
            ],
            "categories": [
                {"id": id_, "name": name}
                for name, id_ in zip(self.classes.names, self.classes.category_ids, strict=True)
            ],
        }

    def _pixels(self, index: int) -> Tensor:
        if index in self._cache:
            return self._cache[index]
        entry = self._images[index]
        image = decode_image(entry.path)  # (3, H, W)
        size = (image.shape[1], image.shape[2])
        if size != entry.size:
            sizes = f"{size[1]} x {size[0]} pixels, but annotated as {entry.size[1]} x {entry.size[0]}"
            raise UserError(f"{entry.path} is {sizes}{swapped(entry.path, size, entry.size)}.")
        if get_worker_info() is None and image.nbytes <= self._cache_bytes_left:
            self._cache[index] = image
            self._cache_bytes_left -= image.nbytes
        return image
