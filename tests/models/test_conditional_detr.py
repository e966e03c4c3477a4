"""Specific to Conditional DETR; for properties of the family see tests/family."""

import math
from dataclasses import replace

import pytest
import torch

from detrs.backbones.timm import BackboneConfig
from detrs.config.conditional_detr import ConditionalDETRConfig
from detrs.layers.conditional_attention import (
    ConditionalCrossAttention,
    FirstCrossAttention,
    NoTransform,
    point_features,
)
from detrs.models import build
from detrs.presets import preset
from detrs.structures import Pyramid, Queries

TINY = ConditionalDETRConfig(
    num_classes=5,
    backbone=BackboneConfig(name="test_resnet", stages=(5,)),
    dim=64,
    num_heads=2,
    encoder_layers=1,
    decoder_layers=3,
    ffn_dim=96,
    num_queries=11,
)


def test_point_features_have_the_row_first() -> None:
    features = point_features(torch.tensor([[[0.25, 0.5]]]), 8)[0, 0]
    y, x = math.pi, math.pi / 2
    expected = [f(a / w) for a in (y, x) for w in (1, 100) for f in (math.sin, math.cos)]
    torch.testing.assert_close(features, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [ConditionalCrossAttention, FirstCrossAttention])
@torch.no_grad()
def test_attention_is_the_softmax_of_content_and_position(kind: type) -> None:
    """In a loop over heads: the logits are the sum of two products, divided by the root of both widths."""
    torch.manual_seed(0)
    attention, heads, dim = kind(16, 2, 0.1).eval(), 2, 16
    content, position, spatial = torch.randn(3, 2, 5, dim)
    tokens, token_position = torch.randn(2, 2, 7, dim)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    queries = Queries(content, position, torch.rand(2, 5, 2))
    image_sizes = torch.tensor([[1, 7], [1, 4]])
    memory = Pyramid(tokens, token_position, torch.rand(2, 7, 2), padding, ((1, 7),), torch.ones(2, 1, 2), image_sizes)
    part = attention.conditional if kind is FirstCrossAttention else attention
    c_q, c_k = part.query_content_proj(content), part.key_content_proj(tokens)
    p_q, p_k = part.query_spatial_proj(spatial), part.key_position_proj(token_position)
    if kind is FirstCrossAttention:
        c_q, c_k = c_q + attention.query_position_proj(position), c_k + p_k
    outputs = []
    for head in range(heads):
        own = slice(head * dim // heads, (head + 1) * dim // heads)
        logits = c_q[..., own] @ c_k[..., own].mT + p_q[..., own] @ p_k[..., own].mT
        weights = (logits * (2 * dim / heads) ** -0.5).masked_fill(padding[:, None], -torch.inf).softmax(-1)
        outputs.append(weights @ part.value_proj(tokens)[..., own])
    torch.testing.assert_close(attention(queries, spatial, memory), part.output_proj(torch.cat(outputs, dim=-1)))


def test_layers_after_the_first_share_one_transform_of_their_input() -> None:
    detector = build(TINY)
    first, *later = detector.decoder.layers
    assert isinstance(first.transform, NoTransform) and isinstance(first.cross_attention, FirstCrossAttention)
    assert len({id(layer.transform) for layer in later}) == 1
    inputs_of_transform: list[torch.Tensor] = []
    raw: list[torch.Tensor] = []
    later[0].transform.register_forward_hook(lambda m, inputs, output: inputs_of_transform.append(inputs[0]))
    for layer in detector.decoder.layers:
        layer.register_forward_hook(lambda m, i, output: raw.append(output.content))
    detector.eval()(torch.randn(1, 3, 97, 131), torch.zeros(1, 97, 131, dtype=torch.bool))
    assert [torch.equal(a, b) for a, b in zip(inputs_of_transform, raw, strict=False)] == [True, True]


def test_initialization_is_that_of_the_authors_code() -> None:
    detector = build(replace(preset("conditional-detr-r50").model, backbone=TINY.backbone, encoder_layers=1))
    layer, head = detector.decoder.layers[1], detector.decoder.heads[0]
    for linear in (
        layer.self_attention.query_content_proj,
        layer.cross_attention.key_position_proj,
        layer.cross_attention.output_proj,
    ):
        assert linear.weight.std().item() == pytest.approx(0.0625, rel=0.05)
    assert layer.cross_attention.output_proj.bias.abs().max() == 0 < layer.cross_attention.value_proj.bias.abs().max()
    assert head.box[-1].weight.abs().max() == head.box[-1].bias.abs().max() == 0
    assert head.classes.bias.tolist() == pytest.approx([-4.59512] * 91)
    packed = detector.encoder.layers[0].attention.attention.query_proj
    assert packed.weight.std().item() == pytest.approx(0.0442, rel=0.05)
