"""The built-in demo set: real handwritten digits on crops of real photographs.

Digits and photographs are included in scikit-learn: 8 x 8 scans from the UCI collection "Optical Recognition of
Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998; CC BY 4.0) and two photographs (CC BY). The images are generated in
memory, on demand and without a network, from fixed random seeds. Training and validation split share neither digits nor
regions of the photographs.
"""

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from detrs.data.content import synonyms
from detrs.data.sample import Sample
from detrs.errors import UserError
from detrs.structures import Classes

SIZE = (128, 160)
"""(height, width) of every image in pixels."""
NUM_IMAGES = {"train": 2000, "val": 200}
MAX_OBJECTS = 10
HEIGHTS = (14.0, 76.0)
"""Range of the height of the 8 x 8 scan in pixels; log-uniform."""
ASPECTS = (0.8, 1.15)
"""Range of the width of the scan relative to its height; the digit itself is narrower."""
MIN_CONTRAST = 90.0
"""Minimum difference in brightness (0 to 255) between a digit and its background."""
MAX_OVERLAP = 0.1
"""Maximum intersection of two boxes, relative to the smaller one."""
VERSION = 1
"""Part of the fingerprint and of the random seeds. Increase it with every change of the images."""


class _Material(NamedTuple):
    """The digits and photographs of one split."""

    digits: NDArray[np.float32]
    """(N, 10, 10) ink in [0, 1], with an empty margin."""
    labels: NDArray[np.int64]
    photographs: list[Image.Image]


@lru_cache(maxsize=2)
def _material(split: str) -> _Material:
    try:
        from sklearn.datasets import load_digits, load_sample_images  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise UserError("The demo set requires scikit-learn. Install it with: pip install 'detrs[demo]'") from error
    digits = load_digits()
    num_train = len(digits.images) * 4 // 5  # the scans are ordered by writer
    part = slice(0, num_train) if split == "train" else slice(num_train, None)
    photographs = []
    for photograph in load_sample_images().images:
        boundary = photograph.shape[1] * 7 // 10
        photographs.append(Image.fromarray(photograph[:, :boundary] if split == "train" else photograph[:, boundary:]))
    scans = np.pad(digits.images[part].astype(np.float32) / 16, ((0, 0), (1, 1), (1, 1)))
    return _Material(scans, digits.target[part].astype(np.int64), photographs)


class DigitsDataset:
    """One split of the demo set. Images are generated on first access and cached."""

    def __init__(self, split: str, num_images: int | None = None) -> None:
        """Prepares the split without generating images.

        Args:
            split: ``train``, ``val`` or a synonym.
            num_images: Number of images. Default: 2000 for ``train``, 200 for ``val``.

        Raises:
            UserError: The split does not exist, or scikit-learn is not installed.
        """
        split = next((name for name in synonyms(split) if name in NUM_IMAGES), split)
        if split not in NUM_IMAGES:
            raise UserError(f"The demo set has no split '{split}'. Available splits: train, val.")
        self.split = split
        self.classes = Classes(tuple(map(str, range(10))), tuple(range(10)))
        self.image_ids = list(range(1, (num_images or NUM_IMAGES[split]) + 1))
        self.max_objects = MAX_OBJECTS
        self.num_empty = 0
        self.can_be_mirrored = False
        self.notes: list[str] = []
        self._samples: dict[int, Sample] = {}
        _material(split)  # raises now if scikit-learn is not installed

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        if index not in self._samples:
            self._samples[index] = self._make(index)
        return self._samples[index]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_samples": {}}  # loader processes generate their own

    def size_of(self, index: int) -> tuple[int, int]:
        return SIZE

    def path_of(self, index: int) -> str:
        return f"{self.split}_{self.image_ids[index]:05d}.png"

    def fingerprint(self) -> str:
        material = _material(self.split)
        digest = hashlib.sha256(f"digits {VERSION} {self.split} {len(self)}".encode())
        for array in (material.digits, material.labels, *map(np.asarray, material.photographs)):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def ground_truth(self) -> dict[str, Any]:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, image_id in enumerate(self.image_ids):
            sample = self[index]
            images.append({"id": image_id, "file_name": self.path_of(index), "height": SIZE[0], "width": SIZE[1]})
            for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": self.classes.category_ids[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                    }
                )
        categories = [
            {"id": id_, "name": name} for id_, name in zip(self.classes.category_ids, self.classes.names, strict=True)
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _make(self, index: int) -> Sample:
        material = _material(self.split)
        random = np.random.default_rng((VERSION, list(NUM_IMAGES).index(self.split), index + 1))
        canvas = _background(material.photographs, random)  # (H, W, 3) float32
        boxes: list[tuple[int, int, int, int]] = []
        labels: list[int] = []
        num_objects = int(random.integers(1, MAX_OBJECTS, endpoint=True))
        for _ in range(4 * num_objects):  # attempts without free space are dropped
            if len(boxes) == num_objects:
                break
            number = int(random.integers(len(material.digits)))
            ink = _ink(material.digits[number], random)  # (h, w, 1)
            height, width, _ = ink.shape
            top = int(random.integers(0, SIZE[0] - height, endpoint=True))
            left = int(random.integers(0, SIZE[1] - width, endpoint=True))
            box = (left, top, left + width, top + height)
            if any(_overlap(box, other) > MAX_OVERLAP for other in boxes):
                continue
            region = canvas[top : top + height, left : left + width]
            color = _color(region, ink, random)
            region += (color - region) * ink
            boxes.append(box)
            labels.append(int(material.labels[number]))
        image = torch.from_numpy(np.ascontiguousarray(canvas.astype(np.uint8).transpose(2, 0, 1)))
        return Sample(
            tv_tensors.Image(image),
            tv_tensors.BoundingBoxes(torch.tensor(boxes, dtype=torch.float32), format="XYXY", canvas_size=SIZE),
            torch.tensor(labels, dtype=torch.int64),
            self.image_ids[index],
            SIZE,
            self.path_of(index),
        )


def _background(photographs: list[Image.Image], random: np.random.Generator) -> NDArray[np.float32]:
    """A random window of a photograph, resized to the image and mirrored with probability 0.5: (H, W, 3), 0 to 255."""
    photograph = photographs[random.integers(len(photographs))]
    height, width = SIZE
    widest = min(photograph.width, photograph.height * width / height)
    window_width = random.uniform(min(0.5 * width, widest), widest)
    window_height = window_width * height / width
    left = random.uniform(0, photograph.width - window_width)
    top = random.uniform(0, photograph.height - window_height)
    window = photograph.resize(
        (width, height), Image.Resampling.BILINEAR, (left, top, left + window_width, top + window_height)
    )
    if random.random() < 0.5:
        window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(window).astype(np.float32)


def _ink(digit: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """The opacity of a digit at a random size, cropped to its visible part: (h, w, 1) in [0, 1]."""
    height = float(np.exp(random.uniform(*np.log(HEIGHTS)))) * len(digit) / (len(digit) - 2)
    size = round(height * random.uniform(*ASPECTS)), round(height)
    large = np.asarray(Image.fromarray(digit).resize(size, Image.Resampling.BICUBIC))
    visible = large > 0.5
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    cropped = large[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, None]
    return ((cropped - 0.3) / 0.4).clip(0, 1)


def _color(region: NDArray[np.float32], ink: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """A random color that contrasts with the background under ``ink``."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    covered = float((region * ink).sum((0, 1)) @ weights) / float(ink.sum())
    colors = random.uniform(0, 255, (64, 3)).astype(np.float32)
    difference = np.abs(colors @ weights - covered)
    chosen: NDArray[np.float32] = colors[np.argmax(difference >= MIN_CONTRAST)]
    return chosen


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection of two xyxy boxes, relative to the area of the smaller one."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0, width) * max(0, height) / min(areas)


def export_coco(root: Path) -> None:
    """Writes the demo set in COCO format: ``annotations/{train,val}.json`` and ``images/``."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    for split in NUM_IMAGES:
        dataset = DigitsDataset(split)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(dataset.ground_truth()))
        for index in range(len(dataset)):
            pixels = dataset[index].image.permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(root / "images" / dataset.path_of(index), compress_level=1)
