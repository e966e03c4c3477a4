"""The images of a dataset that should be checked by eye, drawn with their boxes."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from detrs.data.doctor import DatasetFacts, SplitFacts
from detrs.data.images import decode_image
from detrs.data.object_checks import ROUNDING_TOLERANCE, excess, repeats
from detrs.errors import UserError
from detrs.visualization.draw import draw_boxes
from detrs.visualization.page import Shown

MAX_IMAGES = 6
"""Images of each kind."""
SIDE = 360
"""Long side in pixels of an image on the page."""
CONTEXT = 5
"""Side of the part around a small object that is shown, relative to the object."""
MIN_PART = 96
"""Minimum side of this part in pixels."""


def suspects(facts: DatasetFacts) -> dict[str, list[Shown]]:
    """Kind -> images, for every kind of which there are any."""
    kinds = {
        "Smallest objects": _smallest(facts),
        "Largest objects": _largest(facts),
        "Most objects in one image": _most(facts),
        "Boxes that exceed their image": _outside(facts),
        "Boxes with several classes": _several(facts),
        "Copies of images": _copies(facts),
        "Similar images": _similar(facts),
    }
    found = {kind: [suspect for suspect in each if suspect is not None] for kind, each in kinds.items()}
    return {kind: each for kind, each in found.items() if each}


def _smallest(facts: DatasetFacts) -> Iterator[Shown | None]:
    sides = [
        (float(split.sides[row]), split, int(row))
        for split in facts.splits
        for row in _first_of_images(split.sides, split.objects.image)
    ]
    for _, split, row in sorted(sides, key=lambda each: each[0])[:MAX_IMAGES]:
        x, y, width, height = split.objects.boxes[row].tolist()
        part = max(MIN_PART, CONTEXT * max(width, height))
        window = (x + width / 2 - part / 2, y + height / 2 - part / 2, part)
        yield _drawn(split, int(split.objects.image[row]), f"{width:.4g} x {height:.4g} pixels", window=window)


def _largest(facts: DatasetFacts) -> Iterator[Shown | None]:
    found = []
    for split in facts.splits:
        areas = split.image_sizes.prod(1)[split.objects.image]
        shares = split.sides**2 / areas
        rows = _first_of_images(-shares, split.objects.image)
        found += [(float(shares[row]), split, int(row)) for row in rows]
    for share, split, row in sorted(found, key=lambda each: -each[0])[:MAX_IMAGES]:
        yield _drawn(split, int(split.objects.image[row]), f"{share:.0%} of the image", rows=np.array([row]))


def _most(facts: DatasetFacts) -> Iterator[Shown | None]:
    found = [(int(split.per_image[i]), split, int(i)) for split in facts.splits for i in _first(-split.per_image)]
    for count, split, image in sorted(found, key=lambda each: -each[0])[:MAX_IMAGES]:
        yield _drawn(split, image, f"{count} objects") if count else None


def _outside(facts: DatasetFacts) -> Iterator[Shown | None]:
    found = []
    for split in facts.splits:
        every = split.every_object
        beyond = excess(every.boxes, split.image_sizes.astype(float)[every.image])
        found += [(float(beyond[row]), split, int(row)) for row in _first(-beyond) if beyond[row] > ROUNDING_TOLERANCE]
    for pixels, split, row in sorted(found, key=lambda each: -each[0])[:MAX_IMAGES]:
        image, rows = int(split.every_object.image[row]), np.array([row])
        yield _drawn(split, image, f"{pixels:.4g} pixels outside", rows=rows, every=True)


def _several(facts: DatasetFacts) -> Iterator[Shown | None]:
    num_left = MAX_IMAGES
    for split in facts.splits:
        rows = np.flatnonzero(repeats((split.objects.image, *split.objects.boxes.T)))
        for image in np.unique(split.objects.image[rows])[:num_left].tolist():
            boxes = split.objects.boxes[rows[split.objects.image[rows] == image]]
            same = (split.objects.boxes[:, None] == boxes).all(2).any(1) & (split.objects.image == image)
            num_left -= 1
            yield _drawn(split, image, f"{len(boxes)} boxes", rows=np.flatnonzero(same))


def _copies(facts: DatasetFacts) -> Iterator[Shown | None]:
    groups = [*facts.leaks, *(group for group in facts.copies if group not in facts.leaks)]
    for group in groups[: MAX_IMAGES // 2]:
        for place in group[:2]:
            yield _file(place.path, str(place))


def _similar(facts: DatasetFacts) -> Iterator[Shown | None]:
    for first, second, correlation in (facts.similar or ())[: MAX_IMAGES // 2]:
        for place in (first, second):
            yield _file(place.path, f"{place} (correlation {correlation:.3f})")


def _first(values: NDArray[Any]) -> NDArray[Any]:
    """Rows of the smallest values."""
    return np.argsort(values, kind="stable")[:MAX_IMAGES]


def _first_of_images(values: NDArray[Any], image: NDArray[Any]) -> NDArray[Any]:
    """Rows of the smallest values, one of each image at most, so that they show different images."""
    order = np.argsort(values, kind="stable")
    firsts = np.sort(np.unique(image[order], return_index=True)[1])
    return order[firsts[:MAX_IMAGES]]


def _drawn(
    split: SplitFacts,
    image: int,
    caption: str,
    *,
    rows: NDArray[Any] | None = None,
    every: bool = False,
    window: tuple[float, float, float] | None = None,
) -> Shown | None:
    """An image with its boxes; ``None`` if it cannot be decoded.

    Args:
        split: Its split.
        image: Its position.
        caption: Text below the image, after its name.
        rows: The objects that are drawn; by default all of the image.
        every: ``rows`` are rows of ``every_object``, not of ``objects``.
        window: Left, top and side in pixels of the part that is drawn.
    """
    path = split.images[image].path
    try:
        pixels = decode_image(path)  # (3, H, W)
    except UserError:
        return None
    objects = split.every_object if every else split.objects
    chosen = np.flatnonzero(objects.image == image) if rows is None else rows
    boxes = torch.from_numpy(objects.boxes[chosen]).float()  # (N, 4) xywh
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    if window is not None:
        pixels, boxes = _part(pixels, boxes, window)
    factor = SIDE / max(pixels.shape[1:])
    size = [max(1, round(side * factor)) for side in pixels.shape[1:]]
    small = functional.resize_image(pixels, size, antialias=True)
    labels = torch.from_numpy(objects.label[chosen]).long()
    names = split.classes if len(chosen) <= 30 else ("",) * len(split.classes)  # too many to be read
    drawn = draw_boxes(small, boxes * factor, labels, names, min_size=0)
    return Shown(f"{split.name or 'image'}: {path.name}, {caption}", data_uri(drawn))


def _part(pixels: Tensor, boxes: Tensor, window: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """The part of an image in a window, moved into the image, and the boxes relative to it."""
    left, top, side = window
    height, width = pixels.shape[1:]
    x, y = (int(max(0, min(start, extent - side))) for start, extent in ((left, width), (top, height)))
    part = pixels[:, y : y + round(side), x : x + round(side)]
    return part, boxes - torch.tensor([x, y, x, y], dtype=torch.float32)


def _file(path: Path, caption: str) -> Shown | None:
    try:
        pixels = decode_image(path)
    except UserError:
        return None
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((SIDE, SIDE))
    return Shown(caption, data_uri(image))


def data_uri(image: Image.Image, format: str = "JPEG") -> str:
    """An image as a data URI."""
    stream = io.BytesIO()
    image.save(stream, format=format, **({"quality": 82} if format == "JPEG" else {}))
    return f"data:image/{format.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
