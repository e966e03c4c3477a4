"""What a checkpoint detects, for the comparison with an exported file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from detrs.checkpoints.detector import TrainedDetector
from detrs.config.criterion import CriterionConfig
from detrs.criterion.objective import Objective
from detrs.exporting.inputs import GateInput
from detrs.models.detector import Model
from detrs.structures import Boxes, Detections


class Expected(NamedTuple):
    """The detections of the checkpoint in one image."""

    detections: Detections
    """Up to twice as many as in the exported file, not clipped. Two whose scores are almost equal can change places, so
    that a detection at the end of the exported file's may be a later one of these."""
    num_expected: int
    """The first of them that the exported file should return: non-maximum suppression makes them fewer, and later ones
    are not in the place of those that it removes."""
    last: float
    """The score of the last one that can be returned; 0 if all can."""


class Reference:
    """The detections of a checkpoint.

    Args:
        detector: the checkpoint.
        most: largest number of detections per image.
    """

    def __init__(self, detector: TrainedDetector, most: int) -> None:
        self.detector, self.most = limited(detector, 2 * most), most

    def __call__(self, each: GateInput, noise: float = 0.0, seed: int = 0) -> list[Expected]:
        """The detections of one batch; without padding, of each image alone.

        Args:
            each: the batch.
            noise: standard deviation of the noise on normalized images.
            seed: of the noise.
        """
        if not each.is_padded:
            singles = [only(each, number) for number in range(len(each.sizes))]
            return [expected for single in singles for expected in self._detect(single, noise, seed)]
        return self._detect(each, noise, seed)

    def _detect(self, each: GateInput, noise: float, seed: int) -> list[Expected]:
        detector, most = self.detector, self.most
        if noise:
            detector = replace(detector, module=Disturbed(detector.module, noise, seed).eval())
        candidates = detector.candidates(detector.preprocessing.normalize(each.batch))
        found, places = detector.without_duplicates(candidates)
        counts = ((found.scores != 0) & (places < most)).sum(1).tolist()
        has_more = candidates.scores.shape[1] > most
        lasts = candidates.scores[:, most - 1].tolist() if has_more else [0.0] * len(counts)
        return list(map(Expected, detector.in_pixels(found, each.sizes), counts, lasts))


class Disturbed(Model):
    """A model with noise on its images.

    Args:
        model: the model.
        noise: standard deviation on normalized images, of which one step of a pixel is about 0.02.
        seed: of the noise; that of all calls with the same shape is the same.
    """

    def __init__(self, model: Model, noise: float, seed: int) -> None:
        super().__init__()
        self.model, self.noise, self.seed = model, noise, seed

    def objective(self, config: CriterionConfig) -> Objective:
        return self.model.objective(config)

    def detect(self, images: Tensor, padding: Tensor, max_detections: int = 100) -> Boxes:
        noise = self.noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(self.seed))
        return self.model.detect(images + noise.masked_fill(padding[:, None], 0.0), padding, max_detections)


def only(each: GateInput, number: int) -> GateInput:
    """An image of a batch alone, with its padding."""
    part = slice(number, number + 1)
    batch = each.batch._replace(images=each.batch.images[part], padding=each.batch.padding[part])
    return GateInput(batch, each.sizes[part], each.is_padded)


def limited(detector: TrainedDetector, count: int) -> TrainedDetector:
    """The detector with ``count`` detections per image, whose boxes are not clipped."""
    experiment = detector.experiment
    evaluation = replace(experiment.evaluation, max_detections=count, clip=False)
    return replace(detector, experiment=replace(experiment, evaluation=evaluation))


@contextmanager
def evaluating(*detectors: TrainedDetector) -> Iterator[None]:
    """Evaluation mode, restored."""
    modules: Sequence[Model] = [detector.module for detector in detectors]
    were_training = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, was_training in zip(modules, were_training, strict=True):
            module.train(was_training)
