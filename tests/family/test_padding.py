"""The detectors of our own presets do not depend on padding from the feature maps of the backbone on."""

import pytest
import torch
from shrunk import PIPELINES, randomized, shrunk
from torch import Tensor

from detrs.models.detector import Detector
from detrs.presets import PRESETS, preset
from detrs.structures import Prediction

OWN = [name for name in PRESETS if name.endswith(("-tiny", "-small"))]
OWN_PIPELINES = [name for name in OWN if shrunk(name) in PIPELINES]


def predict(detector: Detector, features: list[Tensor], padding: Tensor) -> Prediction:
    memory = detector.encoder(detector.neck(features, padding))
    return detector.decoder(detector.queries(memory)[0], memory)[0][-1]


def difference(name: str) -> float:
    """Largest difference of the predictions for an image of 128 x 192, alone and padded to 192 x 320."""
    detector = randomized(shrunk(name)).eval()
    height, width = 128, 192
    padding = torch.ones(1, 192, 320, dtype=torch.bool)
    padding[:, :height, :width] = False
    with torch.no_grad():
        shapes = [level.shape for level in detector.backbone(torch.randn(1, 3, *padding.shape[1:]))]
        features = [torch.randn(shape) for shape in shapes]  # the maps of random weights can be constant
        cropped = [
            level[..., : height * level.shape[2] // 192, : width * level.shape[3] // 320].clone() for level in features
        ]
        alone = predict(detector, cropped, padding[:, :height, :width])
        padded = predict(detector, features, padding)
    return max((mine - other).abs().max().item() for mine, other in zip(padded, alone, strict=True))


@pytest.mark.parametrize("name", OWN_PIPELINES)
def test_own_presets_do_not_depend_on_padding(name: str) -> None:
    assert difference(name) < 1e-4


@pytest.mark.parametrize(
    "name", ["deformable-detr-r50-two-stage", "deformable-detr-r50", "anchor-detr-r50", "sparse-rcnn-r50-100"]
)
def test_official_presets_keep_the_arithmetic_of_the_authors(name: str) -> None:
    """GroupNorm, keys of columns and rows, proposals, and convolutions of FPN and RoIs include padding."""
    assert difference(name) > 1e-3


@pytest.mark.parametrize("name", OWN)
def test_own_presets_are_trained_with_as_little_padding_as_possible(name: str) -> None:
    """They are used without any."""
    assert preset(name).data.padded_together == 1
