"""Weights with the names of the authors of Anchor DETR, and of detrex."""

from typing import Any

import pytest
import torch
from published_layouts import anchor_detr, compared, empty, random
from torch import Tensor

from detrs.checkpoints import load_detector, save_detector
from detrs.checkpoints.foreign import loading, official_anchor_detr
from detrs.checkpoints.foreign.official_anchor_detr import matches, read, to_official
from detrs.errors import UserError
from detrs.presets import preset

SMALL = {"depth": 18, "dim": 64, "layers": 2, "points": 5}
"""Arguments of ``anchor_detr``."""


def small(**changes: int) -> dict[str, Tensor]:
    """Random weights whose layers share one head."""
    return with_one_head(random(anchor_detr(**{**SMALL, **changes})))


def with_one_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in tensors:
        for head in ("class_embed", "bbox_embed"):
            start = f"transformer.{head}."
            if name.startswith(start):
                tensors[name] = tensors[f"{start}0.{name.removeprefix(start).split('.', 1)[1]}"]
    return tensors


def detrex(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of detrex."""
    renamed = {name.replace("backbone.body.", "backbone."): tensor for name, tensor in tensors.items()}
    return {name.replace("input_proj.0.", "input_proj."): tensor for name, tensor in renamed.items()}


@pytest.mark.parametrize("style", ["official", "detrex"])
@pytest.mark.parametrize(
    ("depth", "name", "wanted"),
    [
        (50, "AnchorDETR_r50_c5.pth", "anchor-detr-r50"),
        (50, "AnchorDETR_r50_dc5.pth", "anchor-detr-r50-dc5"),
        (101, "AnchorDETR_r101_c5.pth", "anchor-detr-r101"),
        (101, "AnchorDETR_r101_dc5.pth", "anchor-detr-r101-dc5"),
    ],
)
def test_names_and_shapes_of_published_weights(
    depth: int, name: str, wanted: str, style: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is missing or unknown in either direction; weights have no memory here."""
    monkeypatch.setattr(loading, "load_model", compared)
    shapes = anchor_detr(depth, classes=91 if style == "official" else 80)
    tensors = empty(shapes) if style == "official" else detrex(empty(shapes))
    assert len(tensors) == 507 + (depth == 101) * 17 * 3 * 5
    assert matches(tensors)
    detector = read(tensors, f"weights/{name}")
    expected = preset(wanted)
    assert detector.experiment.name == wanted
    if style == "official":
        assert detector.experiment == expected
        assert detector.classes.category_ids == tuple(range(91)) and detector.classes.names[90] == "toothbrush"
    else:
        assert len(detector.classes.names) == detector.experiment.model.num_classes == 80
    assert detector.preprocessing.resize_to == (800, 1333)
    assert {name: tuple(tensor.shape) for name, tensor in to_official(detector).items()} == shapes


@pytest.mark.parametrize("style", ["official", "detrex"])
def test_the_way_back_is_bit_exact(style: str, tmp_path: Any) -> None:
    """Also after the detector was saved in our format; with the tensors of a profiler, which have no meaning."""
    tensors = small()
    profiled = {"total_ops": torch.zeros(1), "transformer.encoder_layers.0.total_params": torch.zeros(1)}
    detector = read((tensors if style == "official" else detrex(tensors)) | profiled, "r18_c5.pth")
    save_detector(tmp_path / "detector.safetensors", detector)
    for each in (detector, load_detector(tmp_path / "detector.safetensors")):
        written = to_official(each)
        assert written.keys() == tensors.keys()
        assert all(torch.equal(written[name], tensors[name]) for name in tensors)
    assert not detector.module.training


@torch.no_grad()
def test_queries_keys_and_values_are_in_the_order_of_the_authors() -> None:
    """Rows of packed projections: q_row, q_col, k_row, k_col, v; golden values are in tests/layers."""
    tensors = small()
    module: Any = read(tensors, "r18_c5.pth").module
    packed = tensors["transformer.decoder_layers.1.cross_attn.in_proj_weight"]
    attention = module.decoder.layers[1].cross_attention.attention
    for k, part in enumerate(("query_x_proj", "query_y_proj", "key_x_proj", "key_y_proj", "value_proj")):
        assert torch.equal(attention.get_submodule(part).weight, packed[64 * k : 64 * (k + 1)])
    layer = module.decoder.layers[1]
    assert torch.equal(layer.cross_attention_norm.norm.weight, tensors["transformer.decoder_layers.1.norm1.weight"])
    assert torch.equal(layer.self_attention_norm.norm.weight, tensors["transformer.decoder_layers.1.norm2.weight"])
    assert torch.equal(module.queries.position.point.adapt[2].bias, tensors["transformer.adapt_pos2d.2.bias"])
    assert torch.equal(module.neck.position.coordinate.adapt[0].bias, tensors["transformer.adapt_pos1d.0.bias"])
    assert torch.equal(module.decoder.heads[0].box[4].weight, tensors["transformer.bbox_embed.1.layers.2.weight"])


@pytest.mark.parametrize(
    ("args", "name", "dilated"),
    [
        ({"dilation": True}, "model.pth", True),
        ({"dilation": "False"}, "r50_dc5.pth", False),
        ({"dilation": False}, "model.pth", False),
        ({}, "anchor-detr-r50-DC5.pth", True),
        ({"dilation": None}, "anchor-detr-r50-c5.pth", False),
    ],
)
def test_dilation_is_a_setting_of_the_file_or_in_its_name(args: dict[str, Any], name: str, dilated: bool) -> None:
    assert official_anchor_detr.is_dilated(args.get("dilation"), name) == dilated


def test_an_unknown_dilation_is_rejected() -> None:
    """Neither a folder with that name nor a hash is the name of the file."""
    assert read(small(), "checkpoint.pth", dilated=True).experiment.model.backbone.dilated
    for name in ("dc5/checkpoint.pth", "anchor-8dc51e.pth"):
        with pytest.raises(UserError, match=r"args.dilation, or 'dc5' \(dilated\) or 'c5' in the name of the file"):
            read(small(), name)


def test_heads_per_layer_are_a_setting_of_the_file() -> None:
    assert read(small(), "r18_c5.pth", {"nheads": 2}).experiment.model.num_heads == 2
    assert read(small(), "r18_c5.pth", {"nheads": "2"}).experiment.model.num_heads == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("transformer.position.weight"), "a grid of anchor points, which is not supported"),
        (lambda t: t.update({"transformer.level_embed.weight": torch.zeros(3, 64)}), "several feature levels"),
        (
            lambda t: t.update({"transformer.decoder_layers.0.cross_attn.in_proj_weight": torch.zeros(192, 64)}),
            "standard attention",
        ),
        (lambda t: t.pop("transformer.decoder_layers.0.cross_attn.in_proj_weight"), "does not contain the tensor"),
        (lambda t: t.pop("transformer.encoder_layers.1.norm1.bias"), "1 missing: transformer.encoder_layers.1.norm1"),
        (lambda t: t.update({"transformer.extra.weight": torch.zeros(1)}), "1 unknown: transformer.extra.weight"),
        (
            lambda t: t.update({"input_proj.0.0.bias": torch.zeros(63)}),
            r"input_proj.0.0.bias \(63,\), expected \(64,\)",
        ),
        (
            lambda t: t.update({"transformer.class_embed.1.bias": torch.ones(91)}),
            "1 with different values although the model has one tensor for them: transformer.class_embed.0.bias",
        ),
        (lambda t: t.pop("backbone.body.layer2.1.conv1.weight"), "1 missing: backbone.body.layer2.1.conv1.weight"),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("backbone.body.layer2.1.")],
            "a backbone with 2, 1, 2, 2 basic blocks under 'backbone.body.'. Expected ResNet-18",
        ),
        (lambda t: t.update({"transformer.pattern.weight": torch.zeros(3)}), "expected at least 2 axes"),
    ],
)
def test_weights_that_do_not_fit_are_rejected(change: Any, message: str) -> None:
    tensors = small()
    change(tensors)
    with pytest.raises(UserError, match=message) as error:
        read(tensors, "r18_c5.pth")
    assert "r18_c5.pth" in str(error.value)


def test_only_names_of_anchor_detr_match() -> None:
    assert matches(small().keys()) and not matches({"transformer.pattern.weight", "class_embed.weight"})


def test_other_detectors_and_variants_are_not_written() -> None:
    detector: Any = read(small(), "r18_c5.pth")
    for changes in ({"attention": "global"}, {"anchors": "grid"}):
        model = loading.replace(detector.experiment.model, **changes)
        other = loading.replace(detector, experiment=loading.replace(detector.experiment, model=model))
        with pytest.raises(UserError, match="Expected 'decoupled' attention and 'learned' anchors"):
            to_official(other)
    other = loading.replace(detector, experiment=preset("detr-r50"))
    with pytest.raises(UserError, match="Expected Anchor DETR, got a model with DETRConfig"):
        to_official(other)
