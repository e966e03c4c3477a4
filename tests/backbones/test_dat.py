"""DAT as a classification model and as a backbone; its attentions are in test_dat_attention.py."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detrs.backbones.dat import DAT, LAYOUTS, PLUS, Layout, PatchConv, checkpoint_filter_fn
from detrs.backbones.timm import BackboneConfig, TimmBackbone
from detrs.errors import UserError
from detrs.models import build
from detrs.presets import preset

NONE = BackboneConfig(name="test_dat", weights="none")
TEST_PLUS = Layout(
    **{**PLUS, "blocks": ("ND",) * 4}, dims=(16, 32, 64, 64), heads=(1, 2, 4, 4), groups=(1,) * 4, drop_path=0.0
)


@pytest.mark.parametrize(
    ("name", "parameters", "gflops"),
    [
        ("dat_tiny", 28_319_138, 4.589),
        ("dat_small", 49_700_402, 9.008),
        ("dat_base", 87_881_632, 15.788),
        ("dat_base_384", 88_178_272, 49.772),
        ("dat_plus_tiny", 23_962_876, 4.3),
        ("dat_plus_small", 53_127_366, 9.4),
        ("dat_plus_base", 93_690_640, 16.6),
    ],
)
def test_parameters_and_gflops_are_those_of_the_authors_code(name: str, parameters: int, gflops: float) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = timm.create_model(name).eval()
        size = LAYOUTS[name].image_size
        assert model(torch.empty(1, 3, size, size)).shape == (1, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, rel=0.01)


def names(model: nn.Module) -> set[str]:
    return set(model.state_dict())


def expected_names(layout: Layout) -> set[str]:
    """The state dict of the authors' code, written out by its rules; constants are not stored here."""
    affine = ("weight", "bias")
    plus = layout.plus
    found = {
        f"patch_proj.{part}.{kind}"
        for part in (("0", "1.norm", "3", "4.norm") if plus else ("0", "1.norm"))
        for kind in affine
    }
    found |= {f"{part}.{kind}" for part in ("cls_norm.norm", "cls_head") for kind in affine}
    for i in range(3):
        found |= {f"down_projs.{i}.0.weight", f"down_projs.{i}.1.norm.weight", f"down_projs.{i}.1.norm.bias"}
    parts = {
        "L": ("proj_qkv", "proj_out"),
        "S": ("proj_qkv", "proj_out"),
        "N": ("qkv", "proj"),
        "D": ("conv_offset.0", "conv_offset.1.norm", "proj_q", "proj_k", "proj_v", "proj_out"),
    }
    more = {
        "L": ("relative_position_bias_table",),
        "S": ("relative_position_bias_table",),
        "N": ("rpb",),
        "D": ("conv_offset.3.weight", "rpe_table"),
    }
    for stage, letters in enumerate(layout.blocks):
        for i, letter in enumerate(letters):
            mlp = ("linear1.0", "dwc", "linear2.0") if plus else ("chunk.linear1", "chunk.linear2")
            modules = [f"mlps.{i}.{part}" for part in mlp]
            modules += [f"layer_norms.{2 * i + j}.norm" for j in range(2)]
            modules += [f"attns.{i}.{part}" for part in parts[letter]]
            modules += [f"local_perception_units.{i}"] if plus else []
            found |= {f"stages.{stage}.{module}.{kind}" for module in modules for kind in affine}
            found |= {f"stages.{stage}.attns.{i}.{name}" for name in more[letter]}
    return found


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in ("dat_base", "dat_plus_base")])
def test_names_of_weights_are_those_of_the_authors(name: str) -> None:
    with torch.device("meta"):
        assert names(timm.create_model(name)) == expected_names(LAYOUTS[name])


def test_shapes_of_some_weights_are_those_of_the_authors() -> None:
    with torch.device("meta"):
        weights = timm.create_model("dat_tiny").state_dict()
        plus = timm.create_model("dat_plus_tiny").state_dict()
    assert weights["stages.2.attns.1.rpe_table"].shape == (12, 27, 27)
    assert weights["stages.2.attns.1.conv_offset.0.weight"].shape == (128, 1, 5, 5)
    assert weights["stages.2.attns.1.conv_offset.3.weight"].shape == (2, 128, 1, 1)
    assert weights["stages.0.attns.0.relative_position_bias_table"].shape == (169, 3)
    assert [plus[f"stages.{i}.attns.1.rpe_table"].shape[1] for i in range(4)] == [111, 55, 27, 13]


@pytest.mark.parametrize("size", [(97, 131), (131, 97), (64, 96), (33, 47), (200, 61)])
@pytest.mark.parametrize("make", [lambda: DAT(LAYOUTS["test_dat"], 5), lambda: DAT(TEST_PLUS, 5)], ids=["dat", "plus"])
@torch.no_grad()
def test_any_size_of_image(make: Callable[[], DAT], size: tuple[int, int]) -> None:
    model = make().eval()
    images = torch.randn(2, 3, *size)
    output = model(images)
    assert output.shape == (2, 5) and output.isfinite().all()
    torch.testing.assert_close(model(images[1:])[0], output[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stages", [(2, 3, 4, 5), (3, 4, 5), (4,), (5,)])
@torch.no_grad()
def test_feature_maps_have_the_sizes_of_a_resnet(stages: tuple[int, ...]) -> None:
    """Rounded up, so that all of the image is covered."""
    config = replace(NONE, stages=stages, freeze_stem=False)
    backbone, other = TimmBackbone(config), TimmBackbone(replace(config, name="test_resnet"))
    images = torch.randn(1, 3, 97, 131)
    maps = backbone(images)
    assert [level.shape[2:] for level in maps] == [level.shape[2:] for level in other(images)]
    assert tuple(level.shape[1] for level in maps) == backbone.channels
    assert all(level.mean(1).abs().max() < 1e-5 for level in maps)  # normalized


@torch.no_grad()
def test_the_last_map_is_that_of_the_classification_model() -> None:
    torch.manual_seed(0)
    model, backbone = timm.create_model("test_dat").eval(), TimmBackbone(replace(NONE, freeze_stem=False)).eval()
    backbone.body.load_state_dict(model.state_dict(), strict=False)
    pooled: list[Tensor] = []
    model.cls_norm.register_forward_hook(lambda module, inputs, output: pooled.append(output))
    images = torch.randn(2, 3, 97, 131)
    model(images)
    torch.testing.assert_close(backbone(images)[-1], pooled[0])  # scale 1, bias 0


def test_a_frozen_stem_ends_with_c2() -> None:
    backbone = TimmBackbone(NONE)
    frozen = {name for name, parameter in backbone.body.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name for name, _ in backbone.body.named_parameters() if name.startswith(("patch_proj", "stages.0."))
    }


def test_stages_that_are_not_needed_are_not_built() -> None:
    names_of_c4 = names(TimmBackbone(replace(NONE, stages=(4,))).body)
    assert not any(name.startswith(("stages.3", "down_projs.2")) for name in names_of_c4)


def test_weights_of_the_classification_model_are_loaded_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, path = timm.create_model("test_dat"), tmp_path / "dat.safetensors"
    constants = {
        "stages.0.attns.1.attn_mask": torch.zeros(4, 16, 16),
        "stages.0.attns.0.relative_position_index": torch.zeros(16, 16),
    }
    save_file(model.state_dict() | constants, path)
    loaded = TimmBackbone(replace(NONE, weights=str(path)), pretrained=True).body.state_dict()
    assert loaded.keys() and all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.items())
    incomplete = {name: value for name, value in model.state_dict().items() if "rpe_table" not in name}
    save_file(incomplete, path)
    with pytest.raises(UserError, match=r"rpe_table|is missing"):
        TimmBackbone(replace(NONE, weights=str(path)), pretrained=True)


def test_dilation_is_rejected() -> None:
    with pytest.raises(UserError, match="model.backbone.dilated True"):
        TimmBackbone(replace(NONE, dilated=True))


def test_tables_of_another_size_are_interpolated() -> None:
    """Rows of a table are vertical displacements, and columns horizontal ones."""
    small, large = DAT(LAYOUTS["test_dat"]), DAT(replace(LAYOUTS["test_dat"], window=8, image_size=256))
    weights = {name: value.clone() for name, value in small.state_dict().items()}
    ramp = torch.linspace(-1, 1, 7)
    vertical, horizontal = (f"stages.{stage}.attns.0.relative_position_bias_table" for stage in (0, 1))
    weights[vertical] = ramp[:, None].expand(7, 7).reshape(49, 1)
    weights[horizontal] = torch.stack([ramp.expand(7, 7).flatten(), torch.ones(49)], dim=1)
    found = checkpoint_filter_fn({"model": weights}, large)
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in large.state_dict().items()}
    large.load_state_dict(found)
    rows, columns = found[vertical].view(15, 15), found[horizontal].view(15, 15, 2)
    assert rows.diff(dim=1).abs().max() < 1e-6 and rows[2:-2].diff(dim=0).min() > 0.05
    torch.testing.assert_close(columns[..., 0], rows.T)
    torch.testing.assert_close(columns[..., 1], torch.ones(15, 15))
    same = checkpoint_filter_fn(small.state_dict(), small)
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in same.items())


def test_only_tables_are_initialized_specially() -> None:
    """Everything else, the convolution of the offsets too, keeps PyTorch's initialization, as in the authors' code."""
    torch.manual_seed(0)
    weights = DAT(LAYOUTS["dat_tiny"]).state_dict()
    assert weights["stages.2.attns.1.rpe_table"].std().item() == pytest.approx(0.01, rel=0.05)
    assert weights["stages.0.attns.0.relative_position_bias_table"].std().item() == pytest.approx(0.01, rel=0.2)
    last = weights["stages.3.attns.1.conv_offset.3.weight"]
    assert last.std().item() == pytest.approx((1 / 128 / 3) ** 0.5, rel=0.1)


def test_stochastic_depth_rises_to_its_rate() -> None:
    model = DAT(LAYOUTS["dat_tiny"])
    rates = [drop.drop_prob for stage in model.stages for drop in stage.drop_path]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])
    assert DAT(LAYOUTS["test_dat"], drop_path_rate=0.5).stages[3].drop_path[1].drop_prob == 0.5


def test_padding_of_patches() -> None:
    conv = PatchConv(1, 1, 4)
    image = torch.randn(1, 1, 6, 9)
    padded = torch.zeros(1, 1, 8, 12)
    padded[:, :, :6, :9] = image
    assert torch.equal(conv(image), nn.functional.conv2d(padded, conv.weight, conv.bias, stride=4))


@pytest.mark.parametrize(
    "name", ["detr-tiny", "conditional-detr-tiny", "anchor-detr-tiny", "deformable-detr-tiny", "efficient-detr-tiny"]
)
def test_every_detector_accepts_it_by_name(name: str) -> None:
    """And every weight of the backbone gets a gradient, except the bias of keys, which a softmax ignores."""
    torch.manual_seed(0)
    model = preset(name).model
    backbone = replace(model.backbone, name="test_dat", dilated=False)
    detector = build(replace(model, backbone=backbone, num_classes=3)).train()
    with torch.no_grad():
        for parameter in detector.decoder.heads.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    prediction = detector(torch.randn(1, 3, 97, 131), torch.zeros(1, 97, 131, dtype=torch.bool)).last
    (prediction.logits.square().sum() + prediction.boxes.square().sum()).backward()
    gradients = {n: p.grad for n, p in detector.backbone.named_parameters() if not n.endswith("proj_k.bias")}
    assert [n for n, gradient in gradients.items() if gradient is None or gradient.abs().max() == 0] == []


@torch.no_grad()
def test_an_exported_program_equals_eager() -> None:
    """For one size of image."""
    backbone, images = TimmBackbone(replace(NONE, freeze_stem=False)).eval(), torch.randn(1, 3, 97, 131)
    exported = torch.export.export(backbone, (images,), strict=False).module()
    torch.testing.assert_close(exported(images), backbone(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "window", "shift"), [("dat_tiny", 7, 4), ("dat_base_384", 12, 6)])
def test_windows_are_shifted_by_half_rounded_up(name: str, window: int, shift: int) -> None:
    """Unlike those of Swin, which rounds down."""
    with torch.device("meta"):
        attentions = timm.create_model(name).stages[0].attns
    assert [(part.window, part.shift) for part in attentions] == [(window, 0), (window, shift)]


@torch.no_grad()
def test_points_are_not_rounded_by_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 they would be off by 0.1 cell of a map with 80 columns."""
    dtypes, original = [], torch.nn.functional.grid_sample

    def watched(x: Tensor, grid: Tensor, **options: Any) -> Tensor:
        dtypes.append(grid.dtype)
        return original(x, grid, **options)

    monkeypatch.setattr(torch.nn.functional, "grid_sample", watched)
    backbone = TimmBackbone(NONE, False).eval()
    with torch.autocast("cpu", torch.bfloat16):
        backbone(torch.randn(1, 3, 64, 96))
    assert dtypes and set(dtypes) == {torch.float32}
