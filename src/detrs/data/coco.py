"""A data set in COCO's format."""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision import tv_tensors

from detrs.data.check import ImageEntry, read_annotations
from detrs.data.detect import Split
from detrs.data.images import decode_image
from detrs.data.sample import Sample
from detrs.errors import UserError
from detrs.structures import Classes


class CocoDataset:
    """One split: pictures on disk, objects from an annotation file.

    Crowd regions, boxes without area or outside their image, and exact repetitions are not trained on, and boxes are
    clipped to their image. ``ground_truth`` keeps all of them as the file has them, so that scores agree with those of
    other evaluators on the same file.
    """

    def __init__(self, split: Split, *, keep_empty: bool = True, cache_bytes: int = 0) -> None:
        """Read and check the whole annotation file.

        Args:
            split: where the files are, from ``find_split``.
            keep_empty: keep pictures without objects.
            cache_bytes: memory for decoded pictures; they are kept until it is full. Loader processes keep none.

        Raises:
            UserError: listing everything that is wrong with the file.
        """
        annotations = read_annotations(split)
        self.classes: Classes = annotations.classes
        self.notes: list[str] = annotations.notes
        labels = {id_: label for label, id_ in enumerate(self.classes.category_ids)}
        objects: dict[int, list[tuple[float, ...]]] = {entry.id: [] for entry in annotations.images}
        for thing in annotations.objects:
            if thing.trainable:
                x, y, width, height = thing.bbox
                objects[thing.image_id].append((x, y, x + width, y + height, labels[thing.category_id]))
        self._images: list[ImageEntry] = [entry for entry in annotations.images if keep_empty or objects[entry.id]]
        counts = [len(objects[entry.id]) for entry in self._images]
        self._starts = list(accumulate(counts, initial=0))
        rows = torch.tensor([row for entry in self._images for row in objects[entry.id]], dtype=torch.float64)  # (T, 5)
        sizes = torch.tensor([entry.size for entry in self._images], dtype=torch.float64)
        limits = sizes.flip(1).repeat(1, 2).repeat_interleave(torch.tensor(counts), dim=0)  # (T, 4)
        self._boxes = rows[:, :4].clamp(min=0).minimum(limits).float()  # (T, 4) xyxy in pixels, of all pictures
        self._labels = rows[:, 4].long()  # (T,)
        kept = {entry.id for entry in self._images}
        self._objects = [thing for thing in annotations.objects if thing.image_id in kept]
        self.image_ids = [entry.id for entry in self._images]
        self.max_objects = max(counts)
        self.num_empty = counts.count(0)
        self.can_be_mirrored = True
        digest = annotations.content.copy()
        digest.update("\0".join(entry.path.name for entry in self._images).encode(errors="surrogateescape"))
        self._fingerprint = digest.hexdigest()
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
        return self.__dict__ | {"_cache": {}}  # a loader process keeps no pictures

    def size_of(self, index: int) -> tuple[int, int]:
        return self._images[index].size

    def path_of(self, index: int) -> str:
        return str(self._images[index].path)

    def fingerprint(self) -> str:
        return self._fingerprint

    def ground_truth(self) -> dict[str, Any]:
        return {
            "images": [
                {"id": entry.id, "file_name": entry.path.name, "height": entry.size[0], "width": entry.size[1]}
                for entry in self._images
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": thing.image_id,
                    "category_id": thing.category_id,
                    "bbox": list(thing.bbox),
                    "area": thing.area,
                    "iscrowd": int(thing.crowd),
                }
                for number, thing in enumerate(self._objects, 1)
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
            turned = ": it was annotated without its EXIF rotation" if size == entry.size[::-1] else ""
            raise UserError(f"{entry.path} is {sizes}{turned}.")
        if get_worker_info() is None and image.nbytes <= self._cache_bytes_left:
            self._cache[index] = image
            self._cache_bytes_left -= image.nbytes
        return image
