"""A dataset from samples in Python."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torchvision import tv_tensors

from detrs.data.images import decode_image
from detrs.data.sample import Sample
from detrs.errors import UserError
from detrs.structures import Classes


def make_sample(image: Any, boxes_xyxy: ArrayLike, labels: ArrayLike, image_id: int, path: str = "") -> Sample:
    """A sample from an image and its objects.

    Args:
        image: a file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W).
        boxes_xyxy: (N, 4), (x1, y1, x2, y2) in pixels of the upright image.
        labels: (N), class indices from 0.
        image_id: unique within the dataset.
        path: file of the image, for messages.

    Raises:
        UserError: the image cannot be read; boxes and labels differ in number, or a box has no area or is not finite.
    """
    pixels = decode_image(image)  # (3, H, W)
    size = (pixels.shape[-2], pixels.shape[-1])
    boxes = torch.as_tensor(np.asarray(boxes_xyxy, dtype=np.float32)).reshape(-1, 4)
    classes = torch.as_tensor(np.asarray(labels, dtype=np.int64)).reshape(-1)
    if len(boxes) != len(classes):
        raise UserError(f"Image {image_id} has {len(boxes)} boxes and {len(classes)} labels: expected as many labels.")
    if len(boxes) and not (boxes.isfinite().all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise UserError(f"Image {image_id} has a box without area: expected finite x1 < x2 and y1 < y2.")
    return Sample(
        image=tv_tensors.Image(pixels),
        boxes=tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        labels=classes,
        image_id=image_id,
        original_size=size,
        path=path or f"image {image_id}",
    )


class SampleDataset:
    """A dataset from a sequence of samples, with everything that training and evaluation need.

    Every sample is loaded once at the start, for sizes, boxes and labels.

    Args:
        samples: of ``make_sample``; any object with ``len`` and indexing, which may load images when indexed.
        names: name of each class; the index is the label.
        can_be_mirrored: False if a horizontal flip changes the class of objects.

    Raises:
        UserError: there are no samples, an image id occurs twice, or a label has no class.
    """

    def __init__(self, samples: Sequence[Sample], names: Sequence[str], *, can_be_mirrored: bool = True) -> None:
        self.samples = samples
        self.classes = Classes(tuple(names), tuple(range(len(names))))
        self.can_be_mirrored = can_be_mirrored
        self.notes: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._paths: list[str] = []
        self._annotations: list[dict[str, Any]] = []
        self.image_ids: list[int] = []
        self.max_objects = self.num_empty = 0
        pixels = hashlib.sha256()
        for index in range(len(samples)):
            sample = samples[index]
            self._add(sample)
            pixels.update(np.ascontiguousarray(sample.image.numpy()).data)
        self._pixels = pixels.hexdigest()
        if not self.image_ids:
            raise UserError("The dataset has no samples: expected at least one.")
        if len(set(self.image_ids)) < len(self.image_ids):
            raise UserError("An image_id occurs twice in the samples: expected a unique one for each image.")

    def _add(self, sample: Sample) -> None:
        labels = sample.labels.tolist()
        if labels and not 0 <= min(labels) <= max(labels) < len(self.classes.names):
            raise UserError(
                f"Image {sample.image_id} has the labels {sorted(set(labels))}: expected 0 to "
                f"{len(self.classes.names) - 1}, the classes {', '.join(self.classes.names)}."
            )
        self.image_ids.append(sample.image_id)
        self._sizes.append(sample.original_size)
        self._paths.append(sample.path)
        self.max_objects = max(self.max_objects, len(labels))
        self.num_empty += not labels
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), labels, strict=True):
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": sample.image_id,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def size_of(self, index: int) -> tuple[int, int]:
        return self._sizes[index]

    def path_of(self, index: int) -> str:
        return self._paths[index]

    def ground_truth(self) -> dict[str, Any]:
        images = [
            {"id": id_, "file_name": path, "height": height, "width": width}
            for id_, path, (height, width) in zip(self.image_ids, self._paths, self._sizes, strict=True)
        ]
        categories = [{"id": id_, "name": name} for id_, name in enumerate(self.classes.names)]
        return {"images": images, "annotations": list(self._annotations), "categories": categories}

    def fingerprint(self) -> str:
        content = json.dumps([self.classes.names, self.ground_truth(), self._pixels])
        return hashlib.sha256(content.encode()).hexdigest()
