"""Specific to DAB-DETR, DN-DETR and DINO; for properties of the family see tests/family, for numbers of the authors'
code tests/parity."""

import pytest
import torch

from detrs.evaluation.speed import count_flops
from detrs.models import build
from detrs.presets import preset


@pytest.mark.parametrize(
    ("name", "total", "trainable", "gflops"),
    [
        ("dab-detr-r50", 43_671_517, 43_449_117, 102.7),
        ("dab-detr-r50-dc5", 43_671_517, 43_449_117, 227.2),
        ("dn-detr-r50", 43_694_977, 43_472_577, 102.7),
        ("dab-deformable-detr-r50", 47_405_994, 47_183_594, None),
        ("dn-deformable-detr-r50", 47_429_154, 47_206_754, None),
        ("dino-r50-4scale", 46_893_182, 46_670_782, 277.5),
        ("dino-r50-5scale", 47_255_806, 47_033_406, 824.0),  # calculated
        ("dino-swin-l-4scale", 217_230_066, 217_230_066, None),
        ("dino-swin-l-5scale", 217_576_690, 217_576_690, None),
    ],
)
def test_parameters_and_gflops_are_those_of_the_authors_code(
    name: str, total: int, trainable: int, gflops: float | None
) -> None:
    """In training, embeddings of labels included; for one image of 800 x 1280."""
    experiment = preset(name)
    with torch.device("meta"):
        detector = build(experiment.model)
        parameters = list(detector.objective(experiment.criterion).parameters())
        images, padding = torch.empty(1, 3, 800, 1280), torch.empty(1, 800, 1280, dtype=torch.bool)
    assert sum(p.numel() for p in parameters) == total
    assert sum(p.numel() for p in parameters if p.requires_grad) == trainable
    if gflops is not None:
        assert count_flops(detector.eval(), images, padding) / 1e9 == pytest.approx(gflops, rel=0.03)
