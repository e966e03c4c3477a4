"""A detector whose detections are the colors of the first pixel, and which stops or fails on request."""

import io
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detrs.checkpoints.detector import TrainedDetector
from detrs.config import Experiment
from detrs.criterion.set_criterion import CriterionConfig
from detrs.data.preprocessing import Preprocessing
from detrs.models.detector import Model
from detrs.predictor import Predictor
from detrs.structures import Boxes, Classes

CLASSES = Classes(("cat", "dog, wet", "bird"), (7, 3, 5))
RESIZE_TO = (23, 41)


class StandIn(Model):
    """One detection per class and image: its score is the color channel of the first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.is_open = threading.Event()
        """Cleared: ``detect`` waits until it is set."""
        self.is_open.set()
        self.started = threading.Event()
        self.fail: Callable[[Tensor], None] = lambda images: None
        """Called with each batch; raises to fail."""

    def objective(self, config: CriterionConfig) -> Any:
        raise NotImplementedError

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = 100) -> Boxes:
        assert not padding.any()
        self.batches.append(len(images))
        self.started.set()
        assert self.is_open.wait(30)
        self.fail(images)
        scores, labels = images[:, :, 0, 0].sort(dim=1, descending=True)
        boxes = torch.stack([scores, 1 - scores, scores / 2, scores / 3], dim=-1)
        return Boxes(boxes[:, :max_detections], scores[:, :max_detections], labels[:, :max_detections])


def stand_in() -> tuple[StandIn, Predictor]:
    """A stand-in, and its predictor."""
    module = StandIn()
    preprocessing = Preprocessing(resize_to=RESIZE_TO, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    detector = TrainedDetector(
        module=module, classes=CLASSES, preprocessing=preprocessing, experiment=Experiment(name="stand-in"),
        scores={}, step=1, epoch=1, threshold=0.3,
    )  # fmt: skip
    return module, Predictor(detector, "cpu")


def image_file(color: tuple[int, int, int], size: tuple[int, int] = (31, 47), format: str = "PNG") -> bytes:
    """An image of one color as a file; ``size`` is (height, width)."""
    pixels = np.empty((*size, 3), np.uint8)
    pixels[:] = color
    return encoded(pixels, format)


def encoded(pixels: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()
