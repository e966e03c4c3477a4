"""Datasets of image files with annotations, in any of the annotation formats."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision import tv_tensors

from detrs.data.check import ImageEntry, read_annotations, swapped
from detrs.data.content import Split
from detrs.data.fingerprint import fingerprint
from detrs.data.images import decode_image
from detrs.data.sample import Sample
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
        every, trainable = annotations.objects, annotations.objects.trainable
        num_images = len(annotations.images)
        counts = np.bincount(every.image[trainable], minlength=num_images)
        kept = np.full(num_images, True) if keep_empty else counts > 0
        self._images: list[ImageEntry] = [image for image, keep in zip(annotations.images, kept, strict=True) if keep]
        self._objects = every.select(np.flatnonzero(kept[every.image]))
        counts = counts[kept]
        self._starts = np.concatenate(([0], counts.cumsum())).tolist()
        rows = np.flatnonzero(trainable)
        rows = rows[np.argsort(every.image[rows], kind="stable")]  # (T,), by image, in the order of the file
        sizes = torch.tensor([image.size for image in annotations.images], dtype=torch.float64)
        limits = sizes.flip(1).repeat(1, 2)[torch.from_numpy(every.image[rows]).long()]  # (T, 4)
        boxes = torch.from_numpy(every.boxes[rows])  # (T, 4) xywh
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
        self._boxes = boxes.clamp(min=0).minimum(limits).float()  # (T, 4) xyxy in pixels, of all images
        self._labels = torch.from_numpy(every.label[rows]).long()  # (T,)
        self.image_ids = [image.id for image in self._images]
        self.max_objects = int(counts.max())
        self.num_empty = int((counts == 0).sum())
        self.can_be_mirrored = True
        self._fingerprint = fingerprint(annotations.digest, [image.path for image in self._images])
        self._cache: dict[int, Tensor] = {}
        self._cache_bytes_left = cache_bytes

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
