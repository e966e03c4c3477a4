"""Dynamic DETR: sizes, variants and settings; no reference implementation exists."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from detrs.backbones.timm import BackboneConfig
from detrs.config.models import check_model
from detrs.errors import UserError
from detrs.layers.dynamic_interaction import DynamicInteraction
from detrs.models import build
from detrs.models.dynamic_detr import DepthwiseFilter, DynamicDETRConfig, SharedFilter
from detrs.presets import preset


def parameters(**changes: Any) -> int:
    with torch.device("meta"):
        model = build(replace(preset("dynamic-detr-r50").model, **changes))
    return sum(p.numel() for p in model.parameters())


def test_parameters_are_near_those_of_the_paper() -> None:
    """58 M there."""
    assert parameters() == 61_411_306
    assert parameters(ffn_dim=2048) == 66_927_082
    assert parameters(interaction="shared") == 58_981_866
    assert parameters(interaction="bottleneck", ffn_dim=2048) == 117_061_354


@torch.no_grad()
@pytest.mark.parametrize("interaction", ["depthwise", "shared"])
def test_a_filter_of_a_query_is_a_convolution_of_its_region(interaction: str) -> None:
    torch.manual_seed(0)
    config: Any = replace(preset("dynamic-detr-tiny").model, num_queries=3, interaction=interaction)
    detector: Any = build(config)
    layer = detector.decoder.layers[0].cross_attention
    memory = detector.neck(detector.backbone(torch.randn(1, 3, 128, 192)), torch.zeros(1, 128, 192, dtype=torch.bool))
    queries = detector.queries(memory)[0]
    found = layer(queries, memory)
    features = layer.pooling(queries.reference, memory)
    for q in range(3):
        numbers = layer.generator(queries.content[0, q])
        weight = torch.diag(numbers) if interaction == "depthwise" else numbers.view(config.dim, config.dim)
        region = torch.stack([layer.norm(cell @ weight).relu() for cell in features[0, q]])
        if interaction == "depthwise":
            expected = layer.output_norm(layer.output_proj(region.flatten())).relu()
        else:
            expected = layer.output_proj(region.mean(0))
        torch.testing.assert_close(found[0, q], expected, atol=1e-5, rtol=1e-4)


def test_interactions_are_settings() -> None:
    for interaction, kind in (
        ("depthwise", DepthwiseFilter),
        ("shared", SharedFilter),
        ("bottleneck", DynamicInteraction),
    ):
        detector: Any = build(replace(preset("dynamic-detr-tiny").model, interaction=interaction, box_encoding=False))
        layers = [layer.cross_attention for layer in detector.decoder.layers]
        assert all(isinstance(layer, kind) for layer in layers)
        assert not any("box_proj" in name for name, _ in detector.named_parameters())
        if interaction == "shared":
            assert len({id(layer.generator) for layer in layers}) == 1


@torch.no_grad()
def test_boxes_start_as_the_whole_image() -> None:
    detector = build(preset("dynamic-detr-tiny").model).eval()
    boxes = detector(torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool)).layers[0].boxes
    torch.testing.assert_close(boxes, torch.tensor([0.5, 0.5, 1.0, 1.0]).expand_as(boxes))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 40}, "model.dim is 40"),
        ({"num_heads": 3}, "model.num_heads is 3"),
        ({"dim": 16, "se_reduction": 32}, "model.se_reduction and model.relu_reduction"),
        ({"num_levels": 3}, "model.num_levels is 3"),
        ({"backbone": BackboneConfig(stages=(3, 5))}, "model.backbone.stages"),
        ({"backbone": BackboneConfig(stages=())}, "model.backbone.stages"),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_model(replace(DynamicDETRConfig(), **change))


@torch.no_grad()
def test_backbones_that_round_sides_down() -> None:
    """ConvNeXt has 17 and 8 columns for 141 pixels at strides 8 and 16, a ResNet 18 and 9."""
    backbone = BackboneConfig(name="test_convnext", weights="none", stages=(3, 4, 5))
    config: Any = replace(preset("dynamic-detr-tiny").model, backbone=backbone)
    detector = build(config).eval()
    for height, width in ((100, 141), (133, 86)):
        padding = torch.zeros(1, height, width, dtype=torch.bool)
        assert torch.isfinite(detector.detect(torch.randn(1, 3, height, width), padding, 10).boxes).all()


def test_fusion_and_residual_reach_each_layer_of_the_encoder() -> None:
    config: Any = replace(preset("dynamic-detr-tiny").model, encoder_layers=2, fusion="sum", residual=True)
    detector: Any = build(config)
    assert [(layer.fusion, layer.residual) for layer in detector.encoder.layers] == [("sum", True)] * 2
