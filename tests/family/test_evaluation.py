"""Evaluation scores what prediction returns, for every detector and batch size, on images of different shapes."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from shrunk import EVERY_MODEL, PIPELINES, shallow, shrunk
from torch import Tensor, nn

from detrs.checkpoints.detector import TrainedDetector, preprocessing_of
from detrs.config import EvaluationConfig, Experiment, RuntimeConfig
from detrs.data import Sample, SampleDataset, make_sample
from detrs.data.transforms import DataConfig
from detrs.engine.evaluate import evaluate
from detrs.engine.runtime import Runtime
from detrs.evaluation.coco import coco_report
from detrs.models import ModelConfig
from detrs.models.detector import Detector, Model
from detrs.postprocess import best_boxes
from detrs.predictor import Predictor
from detrs.structures import Boxes, Detections

SIZES = ((59, 83), (83, 59), (59, 83), (61, 97), (59, 83), (83, 59), (67, 67), (59, 83), (61, 97), (59, 83), (59, 83))
"""(height, width) of the images: one size six times, others in between."""
NAMES = ("a", "b", "c", "d", "e")
MAX_DETECTIONS = 20


class Double(Model):
    """A detector in float64, whose rounding cannot change the order of scores or the choice of proposals."""

    def __init__(self, detector: Model) -> None:
        super().__init__()
        self.detector = detector.double()

    def objective(self, config: Any) -> Any:
        raise NotImplementedError

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = 100) -> Boxes:
        return self.detector.detect(images.double(), padding, max_detections)


@cache
def images() -> list[Any]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def calibrated(detector: Detector) -> Detector:
    """With the BatchNorm statistics of noise; with random ones, all cells of all feature maps can be equal."""
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # plain averages
    detector.backbone.train()(torch.randn(4, 3, 67, 97, generator=torch.Generator().manual_seed(2)))
    return detector.eval()


def objects_of(found: Detections, image_id: int) -> Sample:
    """An image with every third of its detections as an object, some of them enlarged: AP is neither 0 nor 1."""
    large = (found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]).amin(1) > 2
    boxes, labels = found.boxes_xyxy[large][::3], found.labels[large][::3]
    boxes[::2, 2:] *= 1.15
    return make_sample(images()[image_id - 1], boxes.tolist(), labels.tolist(), image_id)


Case = tuple[TrainedDetector, SampleDataset, list[Detections]]


def case(config: ModelConfig, transform: Callable[[Model], Model]) -> Case:
    """A detector, a dataset, and what ``predict`` returns for each of its images alone."""
    experiment = Experiment(
        model=config,
        data=DataConfig(resize_to=(64, 96), augment="none"),
        evaluation=EvaluationConfig(max_detections=MAX_DETECTIONS),
    )
    detector = TrainedDetector(
        module=transform(calibrated(shallow(config))),
        classes=SampleDataset([make_sample(images()[0], [], [], 1)], NAMES).classes,
        preprocessing=preprocessing_of(experiment),
        experiment=experiment,
        scores={},
        step=0,
        epoch=1,
    )
    predict = Predictor(detector, "cpu")
    alone = [predict(image, threshold=0.0)[0] for image in images()]
    return detector, SampleDataset([objects_of(found, i + 1) for i, found in enumerate(alone)], NAMES), alone


def scores_of(detector: TrainedDetector, dataset: SampleDataset, **settings: Any) -> Any:
    experiment = replace(detector.experiment, evaluation=replace(detector.experiment.evaluation, **settings))
    return evaluate(replace(detector, experiment=experiment), dataset, Runtime(RuntimeConfig(device="cpu")))


def test_images_have_several_resized_sizes() -> None:
    assert len(set(SIZES)) == 4 and all(min(size) > 50 for size in SIZES)


@EVERY_MODEL
def test_evaluation_equals_prediction_at_any_batch_size(config: ModelConfig) -> None:
    detector, dataset, alone = case(config, Double)
    predicted = [result for i, found in enumerate(alone) for result in found.to_coco(i + 1)]
    expected = coco_report(dataset.ground_truth(), predicted, max_detections=MAX_DETECTIONS)
    assert expected.ap is not None and 0.05 < expected.ap < 0.95
    for batch_size in (1, 3, 8):
        scores = scores_of(detector, dataset, batch_size=batch_size)
        assert scores.report.ap == pytest.approx(expected.ap, abs=1e-12)
        for mine, other in zip(scores.results, predicted, strict=True):
            assert (mine["image_id"], mine["category_id"]) == (other["image_id"], other["category_id"])
            assert mine["bbox"] == pytest.approx(other["bbox"], abs=1e-4)
            assert mine["score"] == pytest.approx(other["score"], abs=1e-6)
        together = Predictor(detector, "cpu")(images(), threshold=0.0, batch_size=batch_size)
        for found, other_found in zip(together, alone, strict=True):
            torch.testing.assert_close(found.boxes_xyxy, other_found.boxes_xyxy, atol=1e-4, rtol=0)


class FirstLayer(Model):
    """A detector whose result is that of its first decoder layer."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def objective(self, config: Any) -> Any:
        raise NotImplementedError

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = 100) -> Boxes:
        first = self.detector(images, padding).layers[0]
        return best_boxes(first, self.detector.class_logits, max_detections)


def test_layers_are_scored_as_if_they_were_the_last() -> None:
    detector, dataset, _ = case(shrunk("deformable-detr-tiny"), lambda detector: detector)
    runtime, plain = Runtime(RuntimeConfig(device="cpu")), scores_of(detector, dataset)
    first = evaluate(replace(detector, module=FirstLayer(detector.module)), dataset, runtime).report  # type: ignore
    for batch_size in (1, 4):
        experiment = replace(
            detector.experiment, evaluation=EvaluationConfig(max_detections=MAX_DETECTIONS, batch_size=batch_size)
        )
        scores = evaluate(replace(detector, experiment=experiment), dataset, runtime, diagnose=True)
        layers = scores.diagnosis.layers
        assert [each.layer for each in layers] == [1, 2]
        assert (layers[-1].ap, layers[-1].ap50) == (scores.report.ap, scores.report.ap50)
        assert layers[0].ap == pytest.approx(first.ap, abs=1e-3) and first.ap != plain.report.ap
        assert len(scores.results) == len(plain.results) and scores.report.ap == pytest.approx(
            plain.report.ap, abs=1e-3
        )
        queries = scores.diagnosis.queries
        assert queries is not None and sum(queries.counts) == sum(
            result["score"] >= scores.diagnosis.threshold for result in scores.results
        )
    assert plain.diagnosis.layers == () and plain.diagnosis.queries is None


@EVERY_MODEL
def test_padding_of_the_authors_is_a_setting(config: ModelConfig) -> None:
    """And it changes boxes, so the test above compares something."""
    detector, dataset, _ = case(config, lambda detector: detector)
    plain = scores_of(detector, dataset, batch_size=8).results
    padded = scores_of(detector, dataset, batch_size=8, pad=True).results
    assert len(padded) == len(plain) or config not in PIPELINES  # others suppress overlapping boxes
    assert max(abs(a["score"] - b["score"]) for a, b in zip(plain, padded, strict=config in PIPELINES)) > 1e-5


def test_boxes_are_clipped_unless_set_otherwise() -> None:
    detector, dataset, _ = case(shrunk("deformable-detr-tiny"), lambda detector: detector)
    for clip in (True, False):
        results = scores_of(detector, dataset, batch_size=3, clip=clip).results
        inside = [
            min(x, y) >= 0
            and x + w <= SIZES[r["image_id"] - 1][1] + 1e-4
            and y + h <= SIZES[r["image_id"] - 1][0] + 1e-4
            for r in results
            for x, y, w, h in [r["bbox"]]
        ]
        assert all(inside) == clip
