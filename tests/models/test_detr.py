"""Specific to DETR; for properties of the family see tests/family."""

from dataclasses import replace

import pytest
import torch

from detrs.backbones.timm import BackboneConfig
from detrs.classification import Focal
from detrs.models import build
from detrs.models.detr import DETRConfig
from detrs.presets import preset

TINY = DETRConfig(
    num_classes=5,
    backbone=BackboneConfig(name="test_resnet", stages=(5,)),
    dim=64,
    num_heads=2,
    encoder_layers=1,
    decoder_layers=3,
    ffn_dim=96,
    num_queries=11,
)


def test_initialization_is_that_of_the_authors_code() -> None:
    """A uniform distribution has a standard deviation of its bound * 3 ** -0.5."""
    detector = build(replace(preset("detr-r50").model, backbone=TINY.backbone, encoder_layers=1, decoder_layers=1))
    layer, head = detector.decoder.layers[0], detector.decoder.heads[0]
    for attention in (detector.encoder.layers[0].attention.attention, layer.cross_attention.attention):
        assert attention.query_proj.weight.std().item() == pytest.approx(0.0442, rel=0.05)
        assert attention.output_proj.weight.std().item() == pytest.approx(0.0625, rel=0.05)
        assert attention.key_proj.bias.abs().max() == attention.output_proj.bias.abs().max() == 0
    assert layer.feedforward.expand.weight.std().item() == pytest.approx((2 / (256 + 2048)) ** 0.5, rel=0.05)
    assert detector.queries.embedding.weight.std().item() == pytest.approx(1.0, rel=0.05)
    for linear in (head.classes, head.box[-1]):  # the initialization of PyTorch: no prior, no zeros
        assert linear.weight.abs().max().item() == pytest.approx(1 / 16, rel=0.05)
        assert linear.bias.abs().max() > 0
    projection = detector.neck.mapper.projections[0]
    assert isinstance(projection, torch.nn.Conv2d)
    assert projection.weight.abs().max().item() == pytest.approx(projection.in_channels**-0.5, rel=0.05)


@torch.no_grad()
def test_layers_share_head_and_final_norm_which_is_not_the_input_of_the_next_layer() -> None:
    torch.manual_seed(0)
    detector = build(TINY).eval()
    inputs = torch.randn(1, 3, 97, 131), torch.zeros(1, 97, 131, dtype=torch.bool)
    assert len({id(head) for head in detector.decoder.heads}) == 1
    raw: list[torch.Tensor] = []
    hook = detector.decoder.layers[-1].register_forward_hook(lambda m, i, output: raw.append(output.content))
    before = detector(*inputs)
    detector.decoder.heads[0].norm.weight.mul_(2)
    after = detector(*inputs)
    hook.remove()
    assert (before.last.logits - after.last.logits).abs().max() > 1e-3
    assert torch.equal(*raw)


def test_focal_classification_has_a_prior_and_no_row_for_no_object() -> None:
    plus = build(replace(TINY, classification=Focal()))
    assert plus.decoder.heads[0].classes.bias.tolist() == pytest.approx([-4.59512] * 5)
    assert build(TINY).decoder.heads[0].classes.out_features == 6
