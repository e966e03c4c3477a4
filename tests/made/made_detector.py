"""A stand-in for a detector whose detections are known: it finds rectangles of one color on a black image."""

from typing import Any

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from detrs.boxes import xyxy_to_cxcywh
from detrs.checkpoints.detector import TrainedDetector
from detrs.config import Experiment
from detrs.criterion.set_criterion import CriterionConfig
from detrs.data.preprocessing import Preprocessing
from detrs.models.detector import Model
from detrs.structures import Boxes, Classes

CLASSES = Classes(("red", "green", "blue"), (5, 2, 9))
WHOLE, CUT = 0.75, 0.875
"""Scores of rectangles inside of the image, and of those at its border, which are higher on purpose."""
NUM_BOXES = 100


class RectangleFinder(Model):
    """Finds connected regions of one color; the color channel is the class."""

    def __init__(self, border_score: float = CUT) -> None:
        super().__init__()
        self.border_score = border_score
        self.batches: list[tuple[int, ...]] = []

    def objective(self, config: CriterionConfig) -> Any:
        raise NotImplementedError

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = 100) -> Boxes:
        self.batches.append(tuple(images.shape))
        boxes = torch.zeros(len(images), NUM_BOXES, 4)
        scores, labels = torch.zeros(len(images), NUM_BOXES), torch.zeros(len(images), NUM_BOXES, dtype=torch.long)
        for index, (image, padded) in enumerate(zip(images, padding, strict=True)):
            height, width = int((~padded)[:, 0].sum()), int((~padded)[0].sum())
            found = self._rectangles(image[:, :height, :width].numpy())[:NUM_BOXES]
            for row, (label, score, box) in enumerate(found):
                scale = torch.tensor([width, height, width, height])
                boxes[index, row] = xyxy_to_cxcywh(torch.tensor(box, dtype=torch.float32)) / scale
                scores[index, row], labels[index, row] = score, label
        limit = min(max_detections, NUM_BOXES)
        return Boxes(boxes[:, :limit], scores[:, :limit], labels[:, :limit])

    def _rectangles(self, image: np.ndarray) -> list[tuple[int, float, tuple[float, ...]]]:
        """(label, score, box in pixels), best first; edges between pixels from their brightness."""
        found = []
        height, width = image.shape[1:]
        for label, channel in enumerate(image):
            regions, _ = scipy.ndimage.label(channel > 0.3)
            for rows, columns in scipy.ndimage.find_objects(regions):
                at_border = rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width
                box = (columns.start, rows.start, columns.stop, rows.stop)
                found.append((label, self.border_score if at_border else WHOLE, box))
        return sorted(found, key=lambda each: -each[1])


def finder(resize_to: int, module: Model | None = None, **changes: Any) -> TrainedDetector:
    """A detector whose images are resized to ``resize_to`` on both sides, without normalization."""
    preprocessing = Preprocessing(resize_to=(resize_to, resize_to), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    values: dict[str, Any] = {"module": module or RectangleFinder(), "classes": CLASSES, "preprocessing": preprocessing}
    values |= {"experiment": Experiment(), "scores": {}, "step": 1, "epoch": 1}
    return TrainedDetector(**(values | changes))


def painted(size: tuple[int, int], rectangles: list[tuple[int, tuple[int, int, int, int]]]) -> Tensor:
    """A black image (3, H, W) with rectangles (label, (x1, y1, x2, y2))."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    for label, (x1, y1, x2, y2) in rectangles:
        image[label, y1:y2, x1:x2] = 255
    return image
