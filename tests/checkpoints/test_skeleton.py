"""Loading builds a model without memory first: equal to an ordinary model, and safe against forged settings."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detrs import models
from detrs.backbones.timm import BackboneConfig
from detrs.checkpoints import TrainedDetector, format, load_detector, save_detector
from detrs.checkpoints.detector import preprocessing_of
from detrs.checkpoints.skeleton import Skeleton
from detrs.models import ModelConfig
from detrs.presets import preset
from detrs.structures import Classes

TINY = preset("deformable-detr-tiny")
ANCHOR: Any = preset("anchor-detr-tiny").model
DEFORMABLE: Any = TINY.model
MODELS: dict[str, ModelConfig] = {
    "detr": preset("detr-tiny").model,
    "conditional": preset("conditional-detr-tiny").model,
    "anchor": ANCHOR,
    "anchor, grid": replace(ANCHOR, anchors="grid"),
    "sparse": preset("sparse-rcnn-tiny").model,
    "deformable": replace(DEFORMABLE, queries="learned", reference="keep"),
    "refinement": replace(DEFORMABLE, queries="learned", reference="refine"),
    "two-stage": replace(DEFORMABLE, queries="proposals", reference="refine"),
    "computed buffers": replace(
        DEFORMABLE, backbone=BackboneConfig(name="resnetblur18", norm="batch", freeze_stem=True)
    ),
    "frozen norm": replace(DEFORMABLE, backbone=BackboneConfig(name="test_resnet")),
}


def save(module: models.Model, config: ModelConfig, path: Path) -> None:
    experiment = replace(TINY, model=config)
    detector = TrainedDetector(
        module=module,
        classes=Classes(tuple(f"{i}" for i in range(91)), tuple(range(91))),
        preprocessing=preprocessing_of(experiment),
        experiment=experiment,
        scores={},
        step=1,
        epoch=1,
    )
    save_detector(path, detector)


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_model_equals_an_ordinary_one(name: str, tmp_path: Path) -> None:
    config = replace(MODELS[name], num_classes=91)
    ordinary = models.build(config).eval()
    with torch.no_grad():
        for tensor in ordinary.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.01)
    for module in ordinary.modules():
        for buffer in set(module._buffers) & set(module._non_persistent_buffers_set):
            assert name == "computed buffers" and module._buffers[buffer] is not None
    save(ordinary, config, tmp_path / "best.safetensors")
    before = torch.get_rng_state()
    loaded = load_detector(tmp_path / "best.safetensors").module
    assert torch.equal(torch.get_rng_state(), before)
    for kind in ("named_parameters", "named_buffers"):
        expected = dict(getattr(ordinary, kind)())
        actual = dict(getattr(loaded, kind)())
        assert list(actual) == list(expected)
        for key, tensor in expected.items():
            assert torch.equal(actual[key], tensor), key
            assert actual[key].stride() == tensor.stride() and actual[key].dtype == tensor.dtype, key
            assert actual[key].requires_grad == tensor.requires_grad, key
    images, padding = torch.randn(2, 3, 97, 131), torch.zeros(2, 97, 131, dtype=torch.bool)
    with torch.no_grad():
        for a, b in zip(loaded.detect(images, padding), ordinary.detect(images, padding), strict=True):
            assert torch.equal(a, b)


def test_loaded_tensors_are_independent(tmp_path: Path) -> None:
    save(models.build(DEFORMABLE), DEFORMABLE, tmp_path / "best.safetensors")
    module = load_detector(tmp_path / "best.safetensors").module
    storages = [parameter.untyped_storage().data_ptr() for parameter in module.parameters()]
    assert len(set(storages)) == len(storages)
    for parameter in module.parameters():
        parameter.data.add_(1)


def test_a_skeleton_is_limited_to_its_block() -> None:
    before = torch.get_rng_state()
    with Skeleton():
        layer = nn.Sequential(nn.Linear(10**6, 10**6), nn.BatchNorm2d(7), nn.Embedding(9, 10**9))
        nn.init.trunc_normal_(torch.zeros(3, 5))
        nn.init.orthogonal_(tensor=torch.zeros(3, 5))
    assert layer[0].weight.is_meta and not layer[1].running_mean.is_meta
    assert torch.equal(torch.get_rng_state(), before)
    assert not nn.Linear(3, 5).weight.is_meta


LOAD = """
import resource, sys, time
from pathlib import Path
from detrs.checkpoints import load_detector
from detrs.errors import UserError
from detrs.models import build
from detrs.presets import preset
build(preset("deformable-detr-tiny").model)  # imports and caches
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
for path in sys.argv[1:]:
    try:
        load_detector(Path(path))
    except UserError as error:
        print(time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
        began = time.monotonic()
"""

FORGED: dict[str, dict[str, Any]] = {
    "layers": {"decoder_layers": 10**6},
    "most layers": {"decoder_layers": 100, "encoder_layers": 100, "dim": 8192, "ffn_dim": 65_536},
    "dim": {"dim": 2**20, "num_heads": 1},
    "queries": {"num_queries": 10**9},
    "most queries": {"num_queries": 100_000, "dim": 8192},
    "points": {"num_points": 10**7},
    "levels": {"num_levels": 10**5},
    "ffn": {"ffn_dim": 2**40},
    "huge number": {"ffn_dim": 10**400},
    "classes": {"num_classes": 10**8},
    "backbone": {"backbone": {"name": "convnext_xxlarge", "norm": "batch"}},
    "wide backbone": {"backbone": {"name": "resnetv2_152x4_bit", "norm": "batch"}},
    "no features": {"backbone": {"name": "vit_giant_patch14_clip_224"}},
    "tag": {"backbone": {"name": "resnet18.nowhere"}},
    "padding": {"backbone": {"name": "resnet18", "pad_type": "same"}},
}


def test_forged_settings_are_rejected_before_memory_is_allocated(tmp_path: Path) -> None:
    save(models.build(DEFORMABLE), DEFORMABLE, tmp_path / "best.safetensors")
    saved = format.load(tmp_path / "best.safetensors")
    paths = []
    for name, change in FORGED.items():
        meta = json.loads(json.dumps(saved.meta))
        meta["experiment"]["model"] |= change
        paths.append(tmp_path / f"{name}.safetensors")
        format.save(paths[-1], saved.tensors, meta)
    ended = subprocess.run([sys.executable, "-c", LOAD, *map(str, paths)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == len(FORGED), lines
    for name, line in zip(FORGED, lines, strict=True):
        seconds, kib, message = line.split(" ", 2)
        assert f"{name}.safetensors" in message
        assert float(seconds) < 5 and int(kib) < 200_000, line
