"""Tiny detectors with random weights and an image, shared by the tests of explanations."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from shrunk import TINY_MODELS
from torch import Tensor

from detrs.checkpoints.detector import TrainedDetector, preprocessing_of
from detrs.explanation.builders import TRACERS
from detrs.models import build, module_of
from detrs.presets import preset
from detrs.structures import Classes

SIZE = (97, 131)
"""(height, width) of the image; it is not resized."""
CLASSES = Classes(("red cell", "white cell", "platelet"), (4, 2, 9))
EVERY_TINY = [name for name in TINY_MODELS if module_of(preset(name).model).build.__annotations__["return"] in TRACERS]


def tiny(name: str, size: tuple[int, int] = SIZE, **settings: Any) -> TrainedDetector:
    """The tiny preset ``name`` without the zeros of its initialization, for images of ``size``.

    Nothing is suppressed: the boxes of a detector that is not trained are almost equal.

    Args:
        settings: of the model, to change.
    """
    experiment = preset(name)
    model: Any = experiment.model
    backbone = replace(model.backbone, weights="none")
    model = replace(model, **{"num_classes": len(CLASSES.names), "backbone": backbone} | settings)
    experiment = replace(experiment, model=model, evaluation=replace(experiment.evaluation, nms=None))
    torch.manual_seed(1)
    module: Any = build(model).eval()
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            if not key.startswith("backbone"):  # noise on all layers of a backbone leaves nothing of the image
                parameter += torch.randn_like(parameter) * 0.05
            if key.endswith("classes.bias"):
                parameter += 4.0  # scores above the prior of the focal loss
    return TrainedDetector(
        module=module,
        classes=CLASSES,
        preprocessing=replace(preprocessing_of(experiment), resize_to=(min(size), max(size))),
        experiment=experiment,
        scores={},
        step=1,
        epoch=1,
    )


@cache
def shared_tiny(name: str) -> TrainedDetector:
    """The same detector for all tests of a process, which must leave it as it is."""
    return tiny(name)


def photograph(size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    """Discs with shading and noise on a smooth background, (3, H, W) uint8."""
    random = np.random.default_rng(seed)
    height, width = size
    low = Image.fromarray(random.integers(90, 200, (5, 7, 3), dtype=np.uint8))
    pixels = np.asarray(low.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    y, x = np.mgrid[:height, :width]
    for _ in range(6):
        center, radius = random.uniform(0, 1, 2) * size, random.uniform(0.05, 0.2) * height
        distance = np.hypot(y - center[0], x - center[1])[..., None] / radius
        pixels = np.where(distance < 1, random.uniform(30, 220, 3) * (1 - 0.5 * distance**2), pixels)
    return torch.from_numpy((pixels + random.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
