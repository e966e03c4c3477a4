"""State dicts with the authors' names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_models
import pytest
import torch
from official_layouts import Shapes, published
from torch import Tensor, nn

from detrs import models
from detrs.checkpoints.classes import coco_classes
from detrs.checkpoints.detector import TrainedDetector, shapes
from detrs.checkpoints.foreign.loading import closest_experiment
from detrs.checkpoints.foreign.official_detr import matches, model_settings, official_state_dict, read, renaming
from detrs.checkpoints.foreign.transformers import load_transformers
from detrs.checkpoints.foreign.transformers_settings import read_preprocessing
from detrs.checkpoints.skeleton import Skeleton
from detrs.errors import UserError
from detrs.presets import preset

PUBLISHED = {name: (preset_name, layout, count) for name, preset_name, layout, count in published()}


def on_meta(layout: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in layout.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_load_without_a_difference(name: str) -> None:
    preset_name, layout, count = PUBLISHED[name]
    assert len(layout) == count and matches(layout)
    tensors = on_meta(layout)
    model = model_settings(tensors, {}, dilated="dc5" in name)
    experiment = preset(preset_name)
    assert model == experiment.model
    assert closest_experiment(model, read_preprocessing({})) == experiment
    with Skeleton():
        module = models.build(model)
    table = renaming(model)
    weights = table.read(tensors, shapes(module), name)
    assert weights.keys() == module.state_dict().keys()
    assert {key: tuple(tensor.shape) for key, tensor in table.write(weights).items()} == layout


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_or_unknown_tensor_is_reported(name: str) -> None:
    """Of a head, of a decoder layer and of the backbone."""
    _, layout, _ = PUBLISHED[name]
    removed = ["backbone.0.body.layer3.4.conv2.weight", "transformer.decoder.layers.3.linear1.bias"]
    if "iterative" in name:  # otherwise one of six equal heads is enough
        removed += ["class_embed.3.weight", "transformer.decoder.class_embed.3.weight"]
    changed = {key: shape for key, shape in layout.items() if key not in removed} | {"surplus.weight": (1,)}
    with pytest.raises(UserError) as raised:
        read(on_meta(changed), name)
    assert "1 unknown: surplus.weight" in str(raised.value)
    for key in removed[:3]:
        assert key in str(raised.value)


LAYER, THEIR_LAYER = "transformer.decoder.layers.1", "model.decoder.layers.1"
OF_ALL = {  # as the description of both layouts pairs them: official name -> name of transformers, in memory
    "backbone.0.body.layer1.0.conv1.weight": "model.backbone.model.layer1.0.conv1.weight",
    "transformer.encoder.layers.0.norm1.bias": "model.encoder.layers.0.self_attn_layer_norm.bias",
    "transformer.encoder.layers.0.norm2.bias": "model.encoder.layers.0.final_layer_norm.bias",
    f"{LAYER}.linear1.weight": f"{THEIR_LAYER}.mlp.fc1.weight",
    f"{LAYER}.linear2.weight": f"{THEIR_LAYER}.mlp.fc2.weight",
    f"{LAYER}.norm3.weight": f"{THEIR_LAYER}.final_layer_norm.weight",
    f"{LAYER}.self_attn.out_proj.weight": f"{THEIR_LAYER}.self_attn.o_proj.weight",
}
OF_DEFORMABLE = {
    "transformer.level_embed": "model.level_embed",
    "input_proj.3.0.weight": "model.input_proj.3.0.weight",
    f"{LAYER}.norm1.weight": f"{THEIR_LAYER}.encoder_attn_layer_norm.weight",
    f"{LAYER}.norm2.weight": f"{THEIR_LAYER}.self_attn_layer_norm.weight",
    f"{LAYER}.cross_attn.sampling_offsets.bias": f"{THEIR_LAYER}.encoder_attn.sampling_offsets.bias",
    "class_embed.1.weight": "class_embed.1.weight",
    "bbox_embed.2.layers.1.weight": "bbox_embed.2.layers.1.weight",
}
OF_ONE_MAP = {
    "input_proj.weight": "model.input_projection.weight",
    "query_embed.weight": "model.query_position_embeddings.weight",
    "transformer.decoder.norm.weight": "model.decoder.layernorm.weight",
    f"{LAYER}.norm1.weight": f"{THEIR_LAYER}.self_attn_layer_norm.weight",
    f"{LAYER}.norm2.weight": f"{THEIR_LAYER}.encoder_attn_layer_norm.weight",
    "class_embed.weight": "class_labels_classifier.weight",
    "bbox_embed.layers.2.bias": "bbox_predictor.layers.2.bias",
}
OF_TWO_STAGE = {
    "transformer.pos_trans.weight": "model.pos_trans.weight",
    "transformer.enc_output_norm.bias": "model.enc_output_norm.bias",
    "class_embed.3.bias": "class_embed.3.bias",
    "transformer.decoder.bbox_embed.3.layers.0.bias": "bbox_embed.3.layers.0.bias",
    "transformer.decoder.class_embed.0.weight": "class_embed.0.weight",
}
OF_CONDITIONAL = {
    "transformer.decoder.layers.0.ca_qpos_proj.weight": "model.decoder.layers.0.encoder_attn.q_pos_proj.weight",
    f"{LAYER}.ca_qpos_sine_proj.weight": f"{THEIR_LAYER}.encoder_attn.q_pos_sine_proj.weight",
    f"{LAYER}.ca_kcontent_proj.weight": f"{THEIR_LAYER}.encoder_attn.k_content_proj.weight",
    f"{LAYER}.sa_kpos_proj.bias": f"{THEIR_LAYER}.self_attn.k_pos_proj.bias",
    f"{LAYER}.cross_attn.out_proj.bias": f"{THEIR_LAYER}.encoder_attn.o_proj.bias",
    "transformer.decoder.query_scale.layers.1.weight": "model.decoder.query_scale.layers.1.weight",
    "transformer.decoder.ref_point_head.layers.0.weight": "model.decoder.ref_point_head.layers.0.weight",
}
OF: dict[str, dict[str, str]] = {
    "detr": {**OF_ONE_MAP, f"{LAYER}.multihead_attn.out_proj.bias": f"{THEIR_LAYER}.encoder_attn.o_proj.bias"},
    "conditional": {**OF_ONE_MAP, **OF_CONDITIONAL},
    "deformable": OF_DEFORMABLE,
    "deformable-refine": OF_DEFORMABLE,
    "deformable-two-stage": {**OF_DEFORMABLE, **OF_TWO_STAGE},
}
ENCODER_ATTENTION = ("transformer.encoder.layers.0.self_attn", "model.encoder.layers.0.self_attn")
PACKED = {  # modules with in_proj in the official code
    "detr": [ENCODER_ATTENTION, (f"{LAYER}.multihead_attn", f"{THEIR_LAYER}.encoder_attn")],
    "conditional": [ENCODER_ATTENTION],
}


def pair(name: str, folder: Path) -> tuple[TrainedDetector, dict[str, Tensor]]:
    """Our detector with the weights of a random one of ``transformers`` with ResNet-18, and the state dict of that."""
    theirs = hf_models.build(name, backbone="resnet18")
    return load_transformers(hf_models.saved(theirs, folder)), theirs.state_dict()


@pytest.mark.parametrize("name", OF)
@torch.no_grad()
def test_values_are_those_of_transformers_and_come_back_bit_exact(name: str, tmp_path: Path) -> None:
    detector, theirs = pair(name, tmp_path)
    official = official_state_dict(detector)
    assert matches(official)
    for key, other in {**OF_ALL, **OF[name]}.items():
        assert torch.equal(official[key], theirs[other]), key
    for key, other in PACKED.get(name, [(f"{LAYER}.self_attn", f"{THEIR_LAYER}.self_attn")]):
        for kind in ("weight", "bias"):
            rows = torch.cat([theirs[f"{other}.{letter}_proj.{kind}"] for letter in "qkv"])
            assert torch.equal(official[f"{key}.in_proj_{kind}"], rows), key

    back = read({key: tensor.clone() for key, tensor in official.items()}, "x.pth", {"nheads": 4, "num_queries": 7})
    mine = detector.module.state_dict()
    assert back.module.state_dict().keys() == mine.keys()
    assert all(torch.equal(tensor, mine[key]) for key, tensor in back.module.state_dict().items())
    again = official_state_dict(back)
    assert again.keys() == official.keys() and all(torch.equal(again[key], official[key]) for key in official)
    pixels, padding = hf_models.images()
    ours, other_module = (each.module(pixels, padding).last for each in (detector, back))
    assert torch.equal(ours.logits, other_module.logits) and torch.equal(ours.boxes, other_module.boxes)
    assert back.classes == coco_classes(5)


@torch.no_grad()
def test_packed_attention_is_that_of_pytorch(tmp_path: Path) -> None:
    """The official code uses ``nn.MultiheadAttention``."""
    detector, _ = pair("detr", tmp_path)
    official = official_state_dict(detector)
    name = "transformer.encoder.layers.0.self_attn."
    theirs = nn.MultiheadAttention(64, 4, batch_first=True)
    theirs.load_state_dict({key.removeprefix(name): tensor for key, tensor in official.items() if key.startswith(name)})
    ours = detector.module.get_submodule("encoder.layers.0.attention.attention")
    query, key, value = torch.randn(3, 2, 5, 64)
    torch.testing.assert_close(ours(query, key, value), theirs(query, key, value)[0])


@pytest.mark.parametrize(
    ("name", "args", "dilated", "expected"),
    [
        ("detr-r50-e632da11.pth", {}, None, False),
        ("detr-r50-dc5-f0fb7ef5.pth", {}, None, True),
        ("detr-r50-dc5-f0fb7ef5.pth", {"dilation": False}, None, False),
        ("checkpoint.pth", {"dilation": True}, None, True),
        ("checkpoint.pth", {"dilation": True}, False, False),
        ("checkpoint.pth", {}, True, True),
    ],
)
def test_dilation_is_not_in_the_weights(
    name: str, args: dict[str, Any], dilated: bool | None, expected: bool, tmp_path: Path
) -> None:
    official = official_state_dict(pair("detr", tmp_path)[0])
    assert read(official, name, {"nheads": 4, **args}, dilated).experiment.model.backbone.dilated is expected


def test_layouts_of_other_detectors_do_not_match() -> None:
    layout = PUBLISHED["ConditionalDETR_r50.pth"][1]
    assert not matches(layout | {"refpoint_embed.weight": (300, 4)})  # DAB-DETR
    assert not matches({key: value for key, value in layout.items() if "ca_qpos_sine_proj" not in key})
    assert not matches(["model.backbone.conv_encoder.model.conv1.weight"])


def test_settings_without_equivalent_are_rejected(tmp_path: Path) -> None:
    official = official_state_dict(pair("detr", tmp_path)[0])
    with pytest.raises(UserError, match="pre_norm is True"):
        read(official, "x.pth", {"pre_norm": True})
    with pytest.raises(UserError, match="num_heads is 7, but must divide"):
        read(official, "x.pth", {"nheads": 7})
    official_deformable = PUBLISHED["r50_deformable_detr.pth"][1]
    for heads in (0, "8", 7):
        with pytest.raises(UserError, match="Cannot use the checkpoint 'x.pth'"):
            read(on_meta(official_deformable), "x.pth", {"nheads": heads})
    dab = replace(pair("detr", tmp_path / "dab")[0], experiment=preset("dab-detr-r50"))
    with pytest.raises(UserError, match="Expected DETR, Conditional DETR or Deformable DETR, got .* DABDETRConfig"):
        official_state_dict(dab)
    shallow = {key: tensor for key, tensor in official.items() if ".layer4.1." not in key}
    with pytest.raises(UserError, match="no ResNet has"):
        read(shallow, "x.pth", {"nheads": 4})


def test_heads_that_differ_are_not_one_head(tmp_path: Path) -> None:
    """A file with refinement whose copies in the decoder are missing looks like one without."""
    official = official_state_dict(pair("deformable-refine", tmp_path)[0])
    for key in [key for key in official if key.startswith("transformer.decoder.bbox_embed")]:
        del official[key]
    with pytest.raises(UserError, match="different values although the model has one tensor"):
        read(official, "x.pth", {"nheads": 4})
