"""Evaluation with tiles and non-maximum suppression scores what prediction returns with them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from made_detector import CLASSES, WHOLE, RectangleFinder, finder, painted
from torch import Tensor

from detrs.checkpoints.detector import TrainedDetector
from detrs.config import EvaluationConfig, Experiment, RuntimeConfig
from detrs.data.samples import SampleDataset, make_sample
from detrs.engine.evaluate import evaluate
from detrs.engine.runtime import Runtime
from detrs.predictor import Predictor
from detrs.structures import Boxes
from detrs.tiling import Tiling

SIZES = ((131, 257), (97, 64), (200, 300), (131, 257), (60, 97))
TILE = 97


class Repeating(RectangleFinder):
    """Finds every rectangle twice, the second time with a lower score and one pixel less."""

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = 100) -> Boxes:
        boxes, scores, labels = super().detect(images, padding, max_detections)
        smaller = boxes * torch.tensor([1, 1, 0.9, 0.9])
        twice = torch.cat([boxes, smaller], 1), torch.cat([scores, 0.5 * scores], 1), torch.cat([labels, labels], 1)
        return Boxes(*twice)


def grid(size: tuple[int, int]) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Rectangles of 6 x 5 pixels, and a large one below them."""
    height, width = size
    small = [
        ((x + y) % 3, (x, y, x + 6, y + 5)) for y in range(3, height // 2 - 8, 11) for x in range(3, width - 8, 13)
    ]
    return [*small, (1, (5, height // 2 + 3, width - 7, height - 5))]


@pytest.fixture(scope="module")
def dataset() -> SampleDataset:
    samples = []
    for number, size in enumerate(SIZES):
        rectangles = grid(size)
        labels, boxes = [label for label, _ in rectangles], [box for _, box in rectangles]
        samples.append(make_sample(painted(size, rectangles), np.array(boxes), labels, number))
    return SampleDataset(samples, CLASSES.names)


def detector(module: RectangleFinder, **evaluation: Any) -> TrainedDetector:
    return finder(TILE, module, experiment=Experiment(evaluation=EvaluationConfig(**evaluation)))


def predicted(detector: TrainedDetector, dataset: SampleDataset, **arguments: Any) -> list[dict[str, Any]]:
    images = [sample.image.as_subclass(Tensor) for sample in map(dataset.__getitem__, range(len(dataset)))]
    detector = replace(detector, classes=dataset.classes)  # the ids of the dataset
    found = Predictor(detector, "cpu")(images, threshold=0.0, **arguments)
    return [result for number, each in enumerate(found) for result in each.to_coco(number)]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("whole_image", [True, False])
def test_tiles(dataset: SampleDataset, batch_size: int, whole_image: bool) -> None:
    runtime = Runtime(RuntimeConfig(device="cpu"))
    own = detector(RectangleFinder(border_score=WHOLE), batch_size=batch_size, pad=True)
    tiling = Tiling(size=TILE, overlap=0.25, whole_image=whole_image)
    scores = evaluate(own, dataset, runtime, tiling=tiling)
    assert scores.results == predicted(own, dataset, tile=TILE, overlap=0.25, whole_image=whole_image)
    if not whole_image:  # else some boxes are those of the resized image
        assert scores.report.ap == 1.0
    plain = evaluate(own, dataset, runtime)
    assert plain.report.ap is not None and plain.report.ap < 0.5
    assert scores.max_detections == 100 * (12 + whole_image) and plain.max_detections == 100


def test_more_objects_than_detections_of_a_tile(dataset: SampleDataset) -> None:
    own = detector(RectangleFinder(), max_detections=80)
    scores = evaluate(own, dataset, Runtime(RuntimeConfig(device="cpu")), tiling=Tiling(size=TILE, whole_image=False))
    assert max(len(grid(size)) for size in SIZES) > 150
    assert scores.report.ap == 1.0 and scores.report.ar100 == 1.0
    assert scores.diagnosis.to_json()["per_class"]  # with the same limit


@pytest.mark.parametrize("tile", [None, TILE])
def test_suppression(dataset: SampleDataset, tile: int | None) -> None:
    runtime = Runtime(RuntimeConfig(device="cpu"))
    own = detector(Repeating(), batch_size=2)
    tiling = tile and Tiling(size=tile)
    counts = []
    for nms in (None, 0.7):
        scores = evaluate(own.suppressing(nms), dataset, runtime, tiling=tiling)
        assert scores.results == predicted(own, dataset, tile=tile, nms=nms)
        counts.append(len(scores.results))
    assert counts[0] > 1.8 * counts[1]
    if tile is None:
        layers = evaluate(own.suppressing(0.7), dataset, runtime, diagnose=True)
        assert layers.results == scores.results and len(layers.layers) == len(dataset)
        assert sum(len(each.layers[-1]) for each in layers.layers) == counts[1]
    else:
        assert not evaluate(own, dataset, runtime, tiling=tiling, diagnose=True).layers
