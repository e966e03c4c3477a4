"""Small copies of every preset, with random weights, a batch and its objects: shared by all tests of the family."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from detrs.backbones.timm import BackboneConfig
from detrs.classification import ProposalLabels
from detrs.criterion.set_criterion import CriterionConfig, SetCriterion
from detrs.models import ModelConfig, build, module_of
from detrs.models.detector import Detector
from detrs.presets import PRESETS, preset
from detrs.structures import Losses, Predictions, Target, Totals

QUERIES = 11


SMALL: dict[str, Any] = {
    "num_classes": 5,
    "dim": 64,
    "num_heads": 2,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "ffn_dim": 96,
    "hidden_dim": 128,
    "num_proposals": 30,
    "num_training_proposals": 50,
    "min_score": 0.0,
    "dynamic_dim": 16,
}
"""Minimal width and depth: the fields that the configurations of models have."""


def changed(model: Any, **settings: Any) -> Any:
    """``model`` with those of the settings that it has."""
    return replace(model, **{name: value for name, value in settings.items() if hasattr(model, name)})


def shrunk(name: str) -> ModelConfig:
    """The model of a preset with all of its choices, at minimal width and depth."""
    model: Any = preset(name).model
    backbone = replace(model.backbone, name="test_resnet", weights="none")
    config: ModelConfig = changed(model, **SMALL, backbone=backbone, num_queries=QUERIES * patterns(model))
    return config


def patterns(config: ModelConfig) -> int:
    """Queries per anchor (Anchor DETR, DAB-DETR); 1 for other detectors."""
    return max(getattr(config, "num_patterns", 1), 1)


SHRUNK = {shrunk(name): name for name in reversed(PRESETS)}  # presets that shrink to the same model appear once
SHRUNK |= {  # variants without a preset
    changed(shrunk("anchor-detr-r50"), attention="global", anchors="grid"): "anchor-detr-r50-global-grid",
    changed(shrunk("anchor-detr-r50"), attention="decoupled-masked"): "anchor-detr-r50-masked",
    changed(shrunk("dynamic-detr-r50"), interaction="shared"): "dynamic-detr-r50-shared",
}
EVERY_MODEL = pytest.mark.parametrize("config", [pytest.param(config, id=name) for config, name in SHRUNK.items()])
PIPELINES: dict[Any, str] = {
    config: name for config, name in SHRUNK.items() if module_of(config).build.__annotations__["return"] is Detector
}
"""Those of backbone, neck, encoder, queries and decoder; the others implement ``Model`` directly."""
EVERY = pytest.mark.parametrize("config", [pytest.param(config, id=name) for config, name in PIPELINES.items()])
ONE_OF_EACH = pytest.mark.parametrize(  # one per class of models
    "config", [pytest.param(config, id=name) for config, name in {type(c): (c, n) for c, n in SHRUNK.items()}.values()]
)
TRANSFORMERS = {  # one of those that differ only in backbone, dropout or the weight of the class term
    replace(
        config,
        backbone=BackboneConfig(name="test_resnet", stages=config.backbone.stages),
        dropout=0.0,
        classification=replace(config.classification, weight=1.0),
    ): name
    for config, name in PIPELINES.items()
}
EVERY_TRANSFORMER = pytest.mark.parametrize(
    "config", [pytest.param(config, id=name) for config, name in TRANSFORMERS.items()]
)
TINY_MODELS = [name for name in PRESETS if name.endswith("-tiny")]
TINY = pytest.mark.parametrize("name", [name for name in TINY_MODELS if shrunk(name) in PIPELINES])


@cache
def is_learned(config: ModelConfig) -> bool:
    """Whether queries are parameters, not proposals of the encoder."""
    with torch.device("meta"):
        queries = build(config).queries
    return hasattr(queries, "embedding") or hasattr(queries, "anchors")


def proposal_labels(config: ModelConfig) -> ProposalLabels:
    """Labels of the encoder's proposals, a constant of the detector's module."""
    labels: ProposalLabels = getattr(module_of(config), "PROPOSALS", "objectness")
    return labels


LEARNED = pytest.mark.parametrize(
    "config", [pytest.param(config, id=name) for config, name in PIPELINES.items() if is_learned(config)]
)
BOXES = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.5, 0.2], [0.5, 0.7, 0.1, 0.2]])
TARGETS = (
    Target(BOXES, torch.tensor([4, 1, 1]), 1, (97, 131)),
    Target(BOXES[:0], torch.zeros(0, dtype=torch.long), 2, (67, 101)),
)


def randomized(config: ModelConfig, seed: int = 0) -> Any:
    """A model without the zeros of its initialization, which hide errors."""
    torch.manual_seed(seed)
    detector = build(config)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for buffer in detector.buffers():  # timm initializes the last norm of a residual branch with zero
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return detector


def batch(size: tuple[int, int] = (97, 131), second: tuple[int, int] = (67, 101)) -> tuple[Tensor, Tensor]:
    """An image of (height, width) ``size``, and one of size ``second`` padded to it."""
    generator = torch.Generator().manual_seed(1)
    images, padding = torch.randn(2, 3, *size, generator=generator), torch.zeros(2, *size, dtype=torch.bool)
    padding[1, second[0] :] = True
    padding[1, :, second[1] :] = True
    return images.masked_fill(padding[:, None], 0.0), padding


def exported_for_any_size(module: torch.nn.Module) -> Any:
    """The program exported from ``module``, a function of images and padding, as a callable.

    Sizes start at 65: below, the coarsest of four levels has a single cell. That average pooling with ``ceil_mode`` (in
    the backbone) stays inside the image holds for every size, but the exporter cannot prove it, hence an assertion at
    run time.
    """
    height, width = torch.export.Dim("height", min=65, max=1400), torch.export.Dim("width", min=65, max=1400)
    return torch.export.export(
        module,
        batch(),
        dynamic_shapes={"images": {2: height, 3: width}, "padding": {1: height, 2: width}},
        strict=False,
        prefer_deferred_runtime_asserts_over_guards=True,
    ).module()


def losses(config: Any, predictions: Predictions, targets: tuple[Target, ...]) -> Losses:
    criterion = SetCriterion(CriterionConfig(), config.classification, proposal_labels(config))
    return criterion(predictions, targets, Totals.of(targets))


def shallow(config: ModelConfig) -> Any:
    """Deep enough for a first and a later layer."""
    return randomized(changed(config, encoder_layers=1, decoder_layers=2)).eval()
