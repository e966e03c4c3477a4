"""A dataset from samples in Python."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from detrs.data.images import decode_image
from detrs.data.sample import Sample, check_boxes
from detrs.errors import UserError
from detrs.structures import Classes


def make_sample(
    image: Any,
    boxes_xyxy: Any,
    labels: Any,
    image_id: Any,
    path: str = "",
) -> Sample:
    """A sample from an image and its objects. Boxes are clipped to the image.

    Args:
        image: a file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W).
        boxes_xyxy: array or sequence (N, 4), (x1, y1, x2, y2) in pixels of the upright image; empty without objects.
        labels: array or sequence (N), class indices from 0.
        image_id: an integer, unique within the dataset.
        path: file of the image, for messages; by default ``image`` if that is a file.

    Raises:
        UserError: the image cannot be read; boxes or labels have another shape or type, or a box has no area inside
            the image.
    """
    if isinstance(image_id, bool) or not isinstance(image_id, int | np.integer):
        raise UserError(f"image_id: expected an integer, got {image_id!r:.80}.")
    pixels = decode_image(image)  # (3, H, W)
    height, width = pixels.shape[-2], pixels.shape[-1]
    name = f"image {image_id}"
    if isinstance(boxes_xyxy, tv_tensors.BoundingBoxes) and boxes_xyxy.format != tv_tensors.BoundingBoxFormat.XYXY:
        raise UserError(
            f"boxes_xyxy of {name}: expected the format XYXY, got {boxes_xyxy.format.name}: convert them with "
            "torchvision.transforms.v2.ConvertBoundingBoxFormat('XYXY')."
        )
    boxes, classes = _array(boxes_xyxy, f"boxes_xyxy of {name}"), _array(labels, f"labels of {name}")
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UserError(f"boxes_xyxy of {name}: expected the shape (N, 4), got {boxes.shape}.")
    if classes.shape != (len(boxes),) or (classes.size and not np.issubdtype(classes.dtype, np.integer)):
        raise UserError(f"labels of {name}: expected {len(boxes)} integers, got {classes.size} of {classes.dtype}.")
    clipped = (
        torch.as_tensor(boxes.astype(np.float32))
        .clamp(min=0)
        .minimum(torch.tensor([width, height, width, height], dtype=torch.float32))
    )
    if len(boxes) and (boxes >= 0).all() and (boxes <= 1).all() and min(height, width) > 1:
        raise UserError(f"boxes_xyxy of {name}: expected pixels, got boxes in [0, 1] only.")
    if not (np.isfinite(boxes).all() and (clipped[:, 2:] > clipped[:, :2]).all()):
        raise UserError(
            f"boxes_xyxy of {name}: expected finite x1 < x2 and y1 < y2 inside the image ({width} x {height} pixels), "
            "got a box without area there (x, y, width, height must be converted)."
        )
    return Sample(
        image=tv_tensors.Image(pixels),
        boxes=tv_tensors.BoundingBoxes(clipped, format="XYXY", canvas_size=(height, width)),
        labels=torch.as_tensor(classes.astype(np.int64)),
        image_id=int(image_id),
        original_size=(height, width),
        path=path or (str(image) if isinstance(image, str | Path) else name),
    )


def _array(values: Any, what: str) -> NDArray[Any]:
    """``values`` as an array of numbers."""
    try:
        array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    except ValueError:
        raise UserError(f"{what}: expected an array of numbers, got rows of different lengths.") from None
    except (TypeError, RuntimeError):  # a type that NumPy does not have, such as bfloat16, or a sparse tensor
        kind = getattr(values, "dtype", type(values).__name__)
        raise UserError(f"{what}: expected an array of numbers, got {kind}. Convert it to float32 or int64.") from None
    if array.size and not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise UserError(f"{what}: expected numbers, got {array.dtype}.")
    return array


class SampleDataset:
    """A dataset from a sequence of samples, with everything that training and evaluation need.

    Every sample is loaded once at the start, for sizes, boxes and labels.

    Args:
        samples: of ``make_sample``; any object with ``len`` and indexing, which may load images when indexed.
        names: name of each class; the index is the label.
        can_be_mirrored: False if a horizontal flip changes the class of objects.

    Raises:
        UserError: there are no samples, names or image ids are not unique, a label has no class, or a sample is not of
            the size of its image.
    """

    def __init__(self, samples: Any, names: Any, *, can_be_mirrored: bool = True) -> None:
        given = [] if isinstance(names, str | dict) or not isinstance(names, Iterable) else list(names)
        if not given or not all(isinstance(name, str) and name for name in given) or len({*given}) < len(given):
            raise UserError(f"names: expected a sequence of unique class names, got {names!r:.80}.")
        names = [str(name) for name in given]
        if not (hasattr(samples, "__len__") and hasattr(samples, "__getitem__")) or isinstance(samples, Sample):
            raise UserError(f"samples: expected a sequence of samples (see make_sample), got {type(samples).__name__}.")
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
        if not self.image_ids:
            raise UserError("The dataset has no samples: expected at least one.")
        if len(set(self.image_ids)) < len(self.image_ids):
            raise UserError("An image_id occurs twice in the samples: expected a unique one for each image.")
        content = json.dumps([self.classes.names, self.ground_truth(), pixels.hexdigest()])
        self._fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def _add(self, sample: Any) -> None:
        if not isinstance(sample, Sample):
            raise UserError(f"samples: expected detrs.data.Sample (see make_sample), got {type(sample).__name__}.")
        labels = sample.labels.tolist()
        if labels and not 0 <= min(labels) <= max(labels) < len(self.classes.names):
            raise UserError(
                f"Image {sample.image_id} has the labels {sorted(set(labels))}: expected 0 to "
                f"{len(self.classes.names) - 1}, the classes {', '.join(self.classes.names)}."
            )
        check_boxes(sample, f"image {sample.image_id}")
        size = (sample.image.shape[-2], sample.image.shape[-1])
        if sample.original_size != size:
            raise UserError(f"Image {sample.image_id} has original_size {sample.original_size}: expected {size}.")
        self.image_ids.append(int(sample.image_id))
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
        return self._fingerprint
