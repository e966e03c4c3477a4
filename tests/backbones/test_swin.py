"""Swin Transformers of timm as backbones, against those of transformers, which pad as the authors' detection code."""

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from transformers import SwinBackbone, SwinConfig

from detrs.backbones import swin
from detrs.backbones.timm import TimmBackbone
from detrs.config.backbone import BackboneConfig
from detrs.models import build
from detrs.presets import preset

NAME = "swin_tiny_patch4_window7_224"
CONFIG = BackboneConfig(name=NAME, weights="none", map_norm="layer", freeze_stem=False)


def weights_of(theirs: SwinBackbone) -> dict[str, Tensor]:
    """State dict of transformers' backbone with our names."""
    state, found = theirs.state_dict(), {}
    for name, tensor in state.items():
        part = name.removeprefix("swin.").replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        part = part.replace("embeddings.norm", "patch_embed.norm")
        for old, new in (
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.o_proj", "attn.proj"),
            ("attention.relative_position_bias.relative_position_bias_table", "attn.relative_position_bias_table"),
        ):
            part = part.replace(old, new)
        if part.startswith("layernorm.") or "attention.k_proj" in part or "attention.v_proj" in part:
            continue
        if "attention.q_proj" in part:
            tensor = torch.cat([state[name.replace("q_proj", f"{one}_proj")] for one in "qkv"])
            part = part.replace("attention.q_proj", "attn.qkv")
        if part.startswith("hidden_states_norms.stage"):
            stage, rest = part.removeprefix("hidden_states_norms.stage").split(".")
            found[f"norms.{int(stage) - 2}.norm.{rest}"] = tensor
            continue
        if part.startswith("encoder.layers."):
            stage, rest = part.removeprefix("encoder.layers.").split(".", 1)
            part = f"layers_{int(stage) + rest.startswith('downsample')}.{rest}"  # timm reduces maps in the next stage
        found[f"body.{part}"] = tensor
    return found


def randomized(module: nn.Module) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


@pytest.mark.parametrize("size", [(224, 448), (230, 333)], ids=["whole windows", "padded"])
def test_maps_equal_those_of_transformers(size: tuple[int, int]) -> None:
    theirs = randomized(SwinBackbone(SwinConfig(out_indices=[2, 3, 4])))
    ours = TimmBackbone(CONFIG).eval()
    ours.load_state_dict(weights_of(theirs))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected, found = theirs(images).feature_maps, ours(images)
    assert [tuple(level.shape[-2:]) for level in found] == [
        tuple(-(-side // stride) for side in size) for stride in (8, 16, 32)
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)


def test_maps_differ_from_those_of_timm_where_it_rolls_before_padding() -> None:
    """With the same weights, maps are equal at whole windows."""
    ours = randomized(TimmBackbone(replace(CONFIG, map_norm="none")))
    plain: Any = timm.create_model(NAME, features_only=True, out_indices=(1, 2, 3), **swin.OPTIONS).eval()
    plain.load_state_dict(ours.body.state_dict())
    for size, equal in (((224, 448), True), ((256, 320), False)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            pairs = zip(ours(images), plain(images), strict=True)
        assert all(torch.allclose(a, b.permute(0, 3, 1, 2), atol=1e-3) == equal for a, b in pairs)


def test_no_block_of_timm_remains_and_weights_keep_their_names() -> None:
    backbone = TimmBackbone(CONFIG)
    assert not any(isinstance(module, SwinTransformerBlock) for module in backbone.modules())
    shifts = [module.shift for module in backbone.modules() if isinstance(module, swin.SwinBlock)]
    assert shifts == [0, 3] * 6
    plain = timm.create_model(NAME, features_only=True, out_indices=(1, 2, 3))
    assert backbone.body.state_dict().keys() == plain.state_dict().keys()


def test_is_swin() -> None:
    assert swin.is_swin(NAME) and swin.is_swin("swin_base_patch4_window12_384.ms_in22k")
    assert not swin.is_swin("swinv2_tiny_window8_256") and not swin.is_swin("resnet50.tv_in1k")


def test_a_detector_trains_on_it() -> None:
    """Every parameter gets a gradient, the norms of maps too."""
    model: Any = preset("dino-tiny").model
    torch.manual_seed(0)
    detector = build(replace(model, backbone=CONFIG)).train()
    predictions = detector(torch.randn(1, 3, 70, 99), torch.zeros(1, 70, 99, dtype=torch.bool))
    sum(layer.logits.sum() + layer.boxes.sum() for layer in predictions.layers).backward()
    without = [name for name, parameter in detector.backbone.named_parameters() if parameter.grad is None]
    assert without == []
