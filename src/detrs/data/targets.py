"""The objects that are trained on, as arrays in the order of the images."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detrs.data.image_table import Images
from detrs.data.objects import Objects


class Targets(NamedTuple):
    """T objects of N images."""

    boxes: NDArray[Any]
    """(T, 4) float32, (x1, y1, x2, y2) in pixels, clipped to the image."""
    labels: NDArray[Any]
    """(T,) int32."""
    starts: NDArray[Any]
    """(N + 1,) int64: the objects of image ``i`` are the rows from ``starts[i]`` to ``starts[i + 1]``."""


def trainable_objects(images: Images, objects: Objects) -> Targets:
    """The trainable ones among ``objects``; within an image in the order of the annotations."""
    rows = np.flatnonzero(objects.trainable)
    rows = rows[np.argsort(objects.image[rows], kind="stable")]
    image, boxes = objects.image[rows], objects.boxes[rows]
    boxes[:, 2:] += boxes[:, :2]
    np.maximum(boxes, 0, out=boxes)
    np.minimum(boxes, np.tile(images.sizes[image, ::-1], 2), out=boxes)
    counts = np.bincount(image, minlength=len(images))
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])
    return Targets(boxes.astype(np.float32), objects.label[rows], starts)
