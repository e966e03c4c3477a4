"""The backbone in ``config.json`` of ``transformers``: a timm model, or their own ResNet, in several notations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
from torch import nn

from detrs.backbones.frozen_norm import FrozenBatchNorm
from detrs.backbones.timm import TimmBackbone
from detrs.checkpoints.foreign.structure import RESNETS
from detrs.config.backbone import BackboneConfig
from detrs.errors import UserError

KNOWN = {name.partition(".")[0]: name for name in RESNETS.values()}
"""Their names of timm models -> ours, with the weights that detectors start from."""
WIDTHS = {"basic": [64, 128, 256, 512], "bottleneck": [256, 512, 1024, 2048]}
"""Channels of the stages of a ResNet, by its block."""
HF_RESNET = {
    "layer_type": "bottleneck", "depths": [3, 4, 6, 3], "hidden_sizes": [256, 512, 1024, 2048], "embedding_size": 64,
    "hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False, "num_channels": 3,
}  # fmt: skip
"""Defaults of its settings."""
NUM_MAPS = 5
"""Feature maps of a timm model, of strides 2 to 32; index i is stage i + 1."""


@dataclass(frozen=True)
class ReadBackbone:
    """Our settings, and whether tensors have the names of their ResNet."""

    config: BackboneConfig
    hf_resnet: bool


def read_backbone(config: Mapping[str, Any], single_map: bool, default_stages: tuple[int, ...]) -> ReadBackbone:
    """The backbone of a detector.

    Args:
        config: content of ``config.json``.
        single_map: the detector uses the last of the backbone's maps.
        default_stages: those of a configuration without them.

    Raises:
        UserError: a setting is not supported.
    """
    settings = config.get("backbone_config")
    if settings is None:
        settings = from_flat_settings(config, default_stages)
    if not isinstance(settings, Mapping):
        raise unsupported("backbone_config", settings, "an object")
    kind = settings.get("model_type")
    if kind == "resnet":
        name, dilated = hf_resnet_name(settings), False  # their ResNet ignores dilation
    elif kind == "timm_backbone":
        name, dilated = timm_name(settings), dilated_by(settings.get("output_stride"))
    else:
        raise unsupported("backbone_config.model_type", kind, "'timm_backbone' or 'resnet'")
    stages = stages_of(settings) or default_stages
    return ReadBackbone(
        BackboneConfig(name=name, stages=stages[-1:] if single_map else stages, dilated=dilated), kind == "resnet"
    )


def from_flat_settings(config: Mapping[str, Any], default_stages: tuple[int, ...]) -> dict[str, Any]:
    """``backbone_config`` of a configuration with the older settings ``backbone`` and ``use_timm_backbone``."""
    name, more = config.get("backbone"), config.get("backbone_kwargs") or {}
    if not isinstance(more, Mapping):
        raise unsupported("backbone_kwargs", more, "an object")
    if config.get("use_timm_backbone", True):
        if more.get("in_chans", 3) != 3:
            raise unsupported("backbone_kwargs.in_chans", more["in_chans"], "3")
        stride = more.get("output_stride", 16 if config.get("dilation") else 32)
        indices = more.get("out_indices", [stage - 1 for stage in default_stages])
        return {
            "model_type": "timm_backbone",
            "backbone": "resnet50" if name is None else name,
            "out_indices": indices,
            "output_stride": stride,
        }
    if name is None:
        return {"model_type": "resnet", "out_features": ["stage4"]}
    for (layer_type, depths), known in RESNETS.items():
        if name == f"microsoft/resnet-{known.partition('.')[0].removeprefix('resnet')}":
            shape = {"layer_type": layer_type, "depths": list(depths), "hidden_sizes": WIDTHS[layer_type]}
            return {"model_type": "resnet", **shape, **more}
    raise unsupported("backbone", name, "a ResNet")


def timm_name(settings: Mapping[str, Any]) -> str:
    name = settings.get("backbone")
    if not isinstance(name, str) or not timm.is_model(name):
        raise unsupported("backbone", name, "the name of a timm model")
    return KNOWN.get(name, name)


def hf_resnet_name(settings: Mapping[str, Any]) -> str:
    """The timm model of the same architecture."""
    values = {**HF_RESNET, **{key: settings[key] for key in HF_RESNET if key in settings}}
    for key in (
        "embedding_size",
        "hidden_act",
        "downsample_in_first_stage",
        "downsample_in_bottleneck",
        "num_channels",
    ):
        if values[key] != HF_RESNET[key]:
            raise unsupported(f"backbone_config.{key}", values[key], repr(HF_RESNET[key]))
    for (layer_type, depths), name in RESNETS.items():
        if [layer_type, list(depths), WIDTHS[layer_type]] == [
            values[key] for key in ("layer_type", "depths", "hidden_sizes")
        ]:
            return name
    raise unsupported(
        "backbone_config.depths and hidden_sizes",
        f"{values['depths']} and {values['hidden_sizes']}",
        "those of ResNet-18, 26, 34, 50, 101 or 152",
    )


def dilated_by(output_stride: Any) -> bool:
    if output_stride not in (None, 16, 32):
        raise unsupported("backbone_config.output_stride", output_stride, "16 or 32")
    return bool(output_stride == 16)


def stages_of(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Stages in ``out_features`` of their ResNet, or in ``out_indices``; empty if there is neither."""
    names, indices = settings.get("out_features"), settings.get("out_indices")
    if settings.get("model_type") == "resnet" and names:
        known = {f"stage{k}": k for k in range(1, NUM_MAPS)}
        if not isinstance(names, list) or any(name not in known for name in names):
            raise unsupported("backbone_config.out_features", names, "names from 'stage1' to 'stage4'")
        return tuple(known[name] + 1 for name in names)
    if not indices:
        return ()
    if not isinstance(indices, list) or any(type(i) is not int or not -NUM_MAPS <= i < NUM_MAPS for i in indices):
        raise unsupported("backbone_config.out_indices", indices, f"numbers from 0 to {NUM_MAPS - 1}")
    return tuple(sorted(i % NUM_MAPS + 1 for i in indices))


def written_backbone(config: BackboneConfig, default_stages: tuple[int, ...], single_map: bool) -> dict[str, Any]:
    """The settings in ``config.json``: the older notation, which all versions read, where it has the same stages.

    Args:
        config: our settings.
        default_stages: those of a configuration without them.
        single_map: the detector uses the last of the backbone's maps.
    """
    name = {ours: theirs for theirs, ours in KNOWN.items()}.get(config.name, config.name)
    if (single_map and config.stages == (5,)) or config.stages == default_stages:
        return {
            "backbone": name,
            "backbone_config": None,
            "dilation": config.dilated,
            "use_pretrained_backbone": False,
            "use_timm_backbone": True,
        }
    settings = {
        "model_type": "timm_backbone",
        "backbone": name,
        "features_only": True,
        "num_channels": 3,
        "out_indices": [stage - 1 for stage in config.stages],
        "use_pretrained_backbone": False,
        "output_stride": 16 if config.dilated else None,
    }
    return {"backbone_config": settings, "dilation": config.dilated}


def check_equal_in_transformers(backbone: nn.Module, config: BackboneConfig) -> None:
    """Check that ``transformers`` computes the same feature maps.

    Its frozen BatchNorm has no activation, which timm fuses into the layer in some models, and a fixed epsilon.

    Raises:
        UserError: it does not.
    """
    advice = f"The backbone '{config.name}' gives other feature maps in transformers"
    if not isinstance(backbone, TimmBackbone) or not timm.model_entrypoint(
        config.name.split(".")[0]
    ).__module__.startswith("timm."):
        raise UserError(f"The backbone '{config.name}' is not a model of timm, so transformers cannot build it.")
    if config.pad_type is not None:
        raise UserError(f"{advice}, because model.backbone.pad_type is '{config.pad_type}', expected None.")
    if len(backbone.body.feature_info.info) != NUM_MAPS:
        raise UserError(f"{advice}, which expects {NUM_MAPS} maps, of strides 2 to 32. Use a ResNet.")
    for norm in backbone.modules():
        if isinstance(norm, FrozenBatchNorm | nn.BatchNorm2d):
            activation = getattr(norm, "activation", getattr(norm, "act", nn.Identity()))
            if norm.eps != 1e-5 or not isinstance(activation, nn.Identity):
                raise UserError(f"{advice}, which replaces its BatchNorm by one without activation. Use a ResNet.")


def unsupported(setting: str, value: Any, expected: str) -> UserError:
    """The error for a setting of ``config.json`` that our models do not have."""
    return UserError(f"{setting} is {value!r:.200}, which is not supported. Expected {expected}.")
