"""Weights with the names of the authors of DAB-DETR, DN-DETR and DINO. Names themselves are those of the golden numbers
in tests/parity."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detrs.checkpoints.classes import coco_classes
from detrs.checkpoints.detector import TrainedDetector, preprocessing_of
from detrs.checkpoints.foreign import official_detr
from detrs.checkpoints.foreign.official_dab import LABELS, matches, official_state_dict, read
from detrs.checkpoints.sources import open_detector
from detrs.config.backbone import BackboneConfig
from detrs.errors import UserError
from detrs.models import build
from detrs.presets import preset

PRESETS = (
    "dab-detr-r50",
    "dn-detr-r50",
    "dab-deformable-detr-r50",
    "dn-deformable-detr-r50",
    "dino-r50-4scale",
    "dino-r50-5scale",
    "dino-swin-t",
    "dino-swin-t-5scale",
)
SWIN_T = BackboneConfig(name="swin_tiny_patch4_window7_224.ms_in1k", map_norm="layer", freeze_stem=False)
EVERY = pytest.mark.parametrize("name", PRESETS)


def trained(name: str, **changes: Any) -> TrainedDetector:
    """A detector of the official settings, narrow and with one layer each, with random weights."""
    experiment = preset(name.replace("swin-t", "r50-4scale" if name.endswith("swin-t") else "r50"))
    if "swin" in name:
        changes["backbone"] = replace(SWIN_T, stages=experiment.model.backbone.stages)
    small = {"dim": 64, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 96, "num_queries": 12, **changes}
    model: Any = replace(experiment.model, **small)
    torch.manual_seed(0)
    module = build(model).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return TrainedDetector(
        module=module,
        classes=coco_classes(91),
        preprocessing=preprocessing_of(experiment),
        experiment=replace(experiment, model=model),
        scores={},
        step=0,
        epoch=0,
    )


@EVERY
def test_both_directions_are_bit_exact(name: str) -> None:
    source = trained(name)
    tensors = official_state_dict(source)
    assert matches(tensors) and not official_detr.matches(tensors)
    found = read(tensors, f"{name}.pth")
    assert found.experiment.model == source.experiment.model
    own, theirs = source.module.state_dict(), found.module.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in own.items())
    again = official_state_dict(found)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(tensor, again[key]) for key, tensor in tensors.items())


def test_patterns() -> None:
    source = trained("dab-detr-r50", num_patterns=3)
    tensors = official_state_dict(source)
    assert tensors["refpoint_embed.weight"].shape == (4, 4) and tensors["transformer.patterns.weight"].shape == (3, 64)
    assert read(tensors, "r50_pat3.pth").experiment.model == source.experiment.model


@pytest.mark.parametrize("name", ["dab-detr-r50", "dino-r50-4scale"])
def test_the_temperature_is_that_of_the_saved_settings(name: str) -> None:
    """DAB-DETR-DC5 of the authors was trained with 10; weights do not show it."""
    tensors = official_state_dict(trained(name))
    model: Any = read(tensors, "x.pth", {"pe_temperatureH": 10, "pe_temperatureW": 10}).experiment.model
    assert model.temperature == 10
    model = read(tensors, "x.pth", {}).experiment.model
    assert model.temperature == 20
    with pytest.raises(UserError, match=r"'x\.pth': pe_temperatureW is 20.0, .* the value of pe_temperatureH, 10"):
        read(tensors, "x.pth", {"pe_temperatureH": 10, "pe_temperatureW": 20})
    with pytest.raises(UserError, match=r"'x\.pth': pre_norm is True, which is not supported"):
        read(tensors, "x.pth", {"pre_norm": True})
    with pytest.raises(UserError, match=r"'x\.pth': nheads is '8', which is not supported"):
        read(tensors, "x.pth", {"nheads": "8"})


@pytest.mark.parametrize(("name", "count"), [("dino-r50-4scale", 626)])
def test_number_of_tensors_is_that_of_the_published_files(name: str, count: int) -> None:
    with torch.device("meta"):
        module = build(preset(name).model)
    source = replace(trained(name), module=module, experiment=preset(name))
    assert len(official_state_dict(source)) == count


def test_names_of_swin_transformers() -> None:
    """Those of the authors' code: the second stage begins after the merging at the end of the first one."""
    tensors = official_state_dict(trained("dino-swin-t"))
    shapes = {name.removeprefix("backbone.0."): tuple(t.shape) for name, t in tensors.items() if "backbone" in name}
    assert shapes["patch_embed.proj.weight"] == (96, 3, 4, 4)
    assert shapes["layers.0.downsample.reduction.weight"] == (192, 384)
    assert shapes["layers.0.blocks.1.attn.relative_position_bias_table"] == (169, 3)
    assert shapes["layers.3.blocks.1.mlp.fc2.weight"] == (768, 3072)
    assert {name: shape for name, shape in shapes.items() if name.startswith("norm")} == {
        f"norm{k}.{part}": (96 * 2**k,) for k in (1, 2, 3) for part in ("weight", "bias")
    }
    tensors["backbone.0.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    read(tensors, "swin.pth")
    tensors["backbone.0.patch_embed.proj.weight"] = torch.zeros(100, 3, 4, 4)
    with pytest.raises(UserError, match=r"'swin\.pth': .*no Swin Transformer has .* \(100, 6, 7\)"):
        read(tensors, "swin.pth")


def test_unknown_is_the_last_row_of_the_embeddings_of_labels() -> None:
    tensors = official_state_dict(trained("dn-detr-r50"))
    assert tensors[LABELS].shape == (92, 63)
    tensors[LABELS] = torch.randn(92, 63)
    found = read(tensors, "dn.pth").module.state_dict()["queries.content.embedding.weight"]
    assert torch.equal(found, tensors[LABELS][-1:])


def test_files_open_by_their_path(tmp_path: Path) -> None:
    source = trained("dino-r50-4scale")
    torch.save({"model": official_state_dict(source)}, tmp_path / "checkpoint0011_4scale.pth")
    found = open_detector(tmp_path / "checkpoint0011_4scale.pth")
    assert all(torch.equal(a, b) for a, b in zip(found.module.parameters(), source.module.parameters(), strict=True))


def test_copies_of_a_head_that_differ_are_an_error() -> None:
    tensors: dict[str, Tensor] = dict(official_state_dict(trained("dino-r50-4scale")))
    tensors["class_embed.1.bias"] = tensors["class_embed.1.bias"] + 1
    with pytest.raises(UserError, match=r"different values .*class_embed\.0\.bias, class_embed\.1\.bias"):
        read(tensors, "dino.pth")
