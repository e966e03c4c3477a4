import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers.conv2d_same import Conv2dSame
from torch import nn

from detrs.backbones import weight_file
from detrs.backbones.frozen_norm import FrozenBatchNorm
from detrs.backbones.same_convolution import SameConv2d, replace_same
from detrs.backbones.timm import BackboneConfig, TimmBackbone, with_weights
from detrs.errors import UserError

TINY = BackboneConfig(name="test_resnet", norm="batch", freeze_stem=False)


def randomize_statistics(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "with activation"])
def test_frozen_norm_equals_the_norm_in_evaluation(fused: bool) -> None:
    norm = timm.layers.BatchNormAct2d(7) if fused else nn.BatchNorm2d(7)
    randomize_statistics(nn.Sequential(norm))
    frozen, x = FrozenBatchNorm(norm), torch.randn(2, 7, 5, 3)
    expected = norm.eval()(x)
    torch.testing.assert_close(frozen.train()(x), expected)
    torch.testing.assert_close(frozen.eval()(x), expected)
    assert list(frozen.parameters()) == []
    assert set(frozen.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


def test_maps_have_the_strides_of_their_stages() -> None:
    images = torch.randn(1, 3, 64, 96)
    sizes = [tuple(feature.shape[-2:]) for feature in TimmBackbone(replace(TINY, stages=(2, 3, 4, 5)))(images)]
    assert sizes == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_dilated_c5_keeps_stride_16_and_all_weights() -> None:
    plain, dilated = TimmBackbone(BackboneConfig(stages=(5,))), TimmBackbone(BackboneConfig(stages=(5,), dilated=True))
    dilated.load_state_dict(plain.state_dict())
    assert dilated(torch.randn(1, 3, 64, 96))[0].shape == (1, 2048, 4, 6)
    blocks = dilated.body["layer4"]
    assert [(block.conv2.stride, block.conv2.dilation, block.conv2.padding) for block in blocks] == [
        ((1, 1), (1, 1), (1, 1)),
        ((1, 1), (2, 2), (2, 2)),
        ((1, 1), (2, 2), (2, 2)),
    ]


def test_stem_and_first_stage_of_a_resnet_are_frozen() -> None:
    backbone = TimmBackbone(BackboneConfig())
    frozen = [name.removeprefix("body.") for name, p in backbone.named_parameters() if not p.requires_grad]
    assert {name.split(".")[0] for name in frozen} == {"conv1", "layer1"}
    assert sum(p.numel() for p in backbone.parameters() if not p.requires_grad) == 222_400
    assert sum(p.numel() for p in backbone.parameters() if p.requires_grad) == 23_232_512
    assert sum(b.numel() for b in backbone.buffers()) == 106_240


def test_stem_of_a_model_with_blocks_is_frozen() -> None:
    backbone = TimmBackbone(BackboneConfig(name="mobilenetv2_100"))
    frozen = {name.split(".")[1] + name.split(".")[2] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv_stemweight", "blocks0", "blocks1"}


def test_statistics_of_a_frozen_stem_never_change() -> None:
    backbone = TimmBackbone(replace(TINY, freeze_stem=True)).train()
    before = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 64, 96) + 3)
    changed = {name for name, buffer in backbone.named_buffers() if not torch.equal(buffer, before[name])}
    assert {name.split(".")[1] for name in changed} == {"layer2", "layer3", "layer4"}
    backbone.body.get_submodule(backbone.frozen_norms[0]).train()  # of the original: the copy must not depend on it
    copied = deepcopy(backbone).train()  # as for an average of weights
    assert norms_in_training(copied) == norms_in_training(TimmBackbone(replace(TINY, freeze_stem=True)).train())
    assert len(copied.frozen_norms) > 0 and not norms_in_training(copied) & set(copied.frozen_norms)
    assert norms_in_training(backbone) & set(backbone.frozen_norms) == {backbone.frozen_norms[0]}


def norms_in_training(backbone: TimmBackbone) -> set[str]:
    norms = (nn.BatchNorm2d, nn.SyncBatchNorm)
    return {name for name, module in backbone.body.named_modules() if isinstance(module, norms) and module.training}


def test_norms_of_a_frozen_stem_stay_in_evaluation_after_conversion_to_sync_batch_norm() -> None:
    backbone = TimmBackbone(replace(TINY, norm="batch", freeze_stem=True))
    expected = norms_in_training(backbone.train())
    converted = timm.layers.convert_sync_batchnorm(backbone).train()
    norms = {name for name, module in converted.body.named_modules() if isinstance(module, nn.SyncBatchNorm)}
    assert set(converted.frozen_norms) < norms
    assert norms_in_training(converted) == expected == norms - set(converted.frozen_norms)


def test_a_frozen_norm_keeps_half_precision() -> None:
    norm = nn.BatchNorm2d(7)
    randomize_statistics(nn.Sequential(norm))
    frozen, x = FrozenBatchNorm(norm), torch.randn(2, 7, 5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = frozen(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), frozen(x), atol=0.05, rtol=0.02)


def test_channels_last_feature_maps_become_channels_first() -> None:
    backbone = TimmBackbone(replace(TINY, name="mambaout_femto"))
    sizes = [tuple(level.shape[1:]) for level in backbone(torch.randn(1, 3, 64, 96))]
    assert sizes == [(96, 8, 12), (192, 4, 6), (288, 2, 3)]
    assert backbone.channels == (96, 192, 288)


def test_the_name_of_a_model_sets_the_preprocessing_of_its_weights() -> None:
    before = replace(TINY, weights="some.safetensors", pad_type="same", mean=(0.1, 0.2, 0.3))
    config = with_weights(before, "tf_efficientnet_lite0.in1k")
    assert config == replace(TINY, name="tf_efficientnet_lite0.in1k", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert with_weights(config, "resnet50.tv_in1k").mean == BackboneConfig().mean
    with pytest.raises(UserError, match=r"Did you mean 'resnet50\.tv_in1k'"):
        with_weights(TINY, "resnet50.tv_in1kk")


def test_preprocessing_other_than_that_of_the_weights_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(weight_file, "download", lambda model: tmp_path / "model.safetensors")
    config = replace(TINY, name="tf_efficientnet_lite0.in1k")
    TimmBackbone(config)
    TimmBackbone(with_weights(TINY, config.name), pretrained=True)
    TimmBackbone(replace(config, weights="none"), pretrained=True)
    assert not caplog.records
    TimmBackbone(config, pretrained=True)
    assert "mean (0.5, 0.5, 0.5)" in caplog.text and "--backbone tf_efficientnet_lite0.in1k" in caplog.text


def test_shared_weights_are_those_of_the_classifier(shared: Path) -> None:
    path = str(shared / "weights" / "mobilenetv2_100.imagenet1k.safetensors")
    config = with_weights(replace(BackboneConfig(), stages=(5,)), path)
    assert (config.name, config.pad_type, config.mean, config.std) == (
        "mobilenetv2_100", "same", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5),
    )  # fmt: skip
    classifier = timm.create_model(
        "mobilenetv2_100", pad_type="same", pretrained=True, pretrained_cfg_overlay={"file": path}
    ).eval()
    image = torch.randn(1, 3, 97, 131)
    features = []
    classifier.blocks.register_forward_hook(lambda module, args, output: features.append(output))
    classifier(image)
    (c5,) = TimmBackbone(config, pretrained=True).eval()(image)
    torch.testing.assert_close(c5, features[0], atol=1e-4, rtol=1e-4)


def test_a_file_without_metadata_belongs_to_the_named_model(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    weights = timm.create_model("test_resnet").state_dict()
    save_file(weights, file)
    config = with_weights(TINY, str(file))
    assert config.name == "test_resnet"
    backbone = TimmBackbone(config, pretrained=True)
    torch.testing.assert_close(backbone.body.state_dict()["layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(TINY, name="test_resne"), "Did you mean 'test_resnet'"),
        (replace(TINY, stages=(1, 5)), "stages between 2 and 5"),
        (replace(TINY, stages=()), "stages between 2 and 5"),
        (replace(TINY, stages=(5, 4)), "in ascending order"),
        (replace(TINY, stages=(4, 4, 5)), "each stage once"),
        (replace(TINY, pad_type="same"), "pad_type"),
        (replace(TINY, name="densenet121", dilated=True), "dilated"),
        (replace(TINY, name="vgg11", dilated=True), "dilated"),
        (replace(TINY, name="swinv2_tiny_window8_256"), "requires a fixed input size of (256, 256) pixels"),
        (replace(TINY, weights="nowhere.safetensors"), "There is no file 'nowhere.safetensors'"),
        (replace(TINY, name="test_vit"), "strides"),
    ],
)
def test_what_cannot_be_built_is_refused(config: BackboneConfig, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        TimmBackbone(config, pretrained=config.weights != "timm")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"nothing": torch.zeros(1)}, file)
    with pytest.raises(
        UserError,
        match=r"is missing 75 of 75 backbone weights \(conv1.*, …\)\. Pass a weight file for timm model 'test_resnet'",
    ):
        TimmBackbone(with_weights(TINY, str(file)), pretrained=True)
    file.write_text("<html>")
    with pytest.raises(UserError, match="is a web page"):
        with_weights(TINY, str(file))


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (3, 1, 2), (3, (2, 1), 1), (2, 2, 1)])
def test_same_padding_is_that_of_timm(kernel: int, stride: int, dilation: int) -> None:
    own = torch.nn.Sequential(Conv2dSame(3, 5, kernel, stride, dilation=dilation))
    state = torch.random.get_rng_state()
    copied = deepcopy(own)
    replace_same(copied)
    assert type(copied[0]) is SameConv2d and torch.equal(torch.random.get_rng_state(), state)
    for size in ((17, 32), (32, 17), (31, 31), (1, 2)):
        images = torch.randn(2, 3, *size)
        assert torch.equal(copied(images), own(images))
    assert copied.state_dict().keys() == own.state_dict().keys()


def test_kernels_smaller_than_their_stride_keep_the_padding_of_timm() -> None:
    body = torch.nn.Sequential(Conv2dSame(3, 5, 1, 2))
    replace_same(body)
    assert type(body[0]) is Conv2dSame


def test_sizes_of_same_padding_remain_simple_in_exported_programs() -> None:
    """timm's arithmetic leaves terms that make the export of MobileNetV2 take many minutes."""
    body = torch.nn.Sequential(*(Conv2dSame(3, 3, 3, 2) for _ in range(3)))
    replace_same(body)
    dims = {2: torch.export.Dim("height", min=65), 3: torch.export.Dim("width", min=65)}
    program = torch.export.export(body, (torch.randn(1, 3, 97, 133),), dynamic_shapes=(dims,), strict=False)
    height = next(node for node in reversed(program.graph.nodes) if node.op == "call_function").meta["val"].shape[2]
    assert str(height).count("//") <= 3
    assert program.module()(torch.randn(1, 3, 131, 70)).shape == (1, 3, 17, 9)
