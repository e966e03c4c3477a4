"""Weights of the authors' code: DAB-DETR, DN-DETR, DAB- and DN-Deformable-DETR, and DINO, read and written.

All settings that a state dict shows are derived from its names and shapes; see ``official_detr`` for those that it does
not show. One more is the temperature of tokens' positions, 20 unless the settings saved beside the weights differ.

The embeddings of labels, with which training denoises objects, are not part of our detectors, except for the
row "unknown" of DN-DETR.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrs.backbones import swin
from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.foreign import official_swin
from detrs.checkpoints.foreign.official_detr import (
    LAYER,
    NUM_HEADS,
    attention,
    backbone_name,
    conditional_attention,
    count,
    deformable_attention,
    derived,
    norms,
    shared_rules,
    with_defaults,
)
from detrs.checkpoints.foreign.renaming import Rename, Renaming, Rule
from detrs.checkpoints.foreign.transformers_names import PROPOSALS, heads
from detrs.checkpoints.foreign.transformers_settings import Settings
from detrs.config.backbone import BackboneConfig
from detrs.config.dab_deformable_detr import DABDeformableDETRConfig
from detrs.config.dab_detr import DABDETRConfig
from detrs.config.dino import DINOConfig
from detrs.errors import UserError

PATTERNS = "transformer.patterns.weight"
ANCHORS = "refpoint_embed.weight"
LABELS = "label_enc.weight"
UNKNOWN = "label_enc.unknown"
"""Our name of the last row of ``LABELS``."""
OUR_LAYER = "decoder.layers.{i}.layer"
SIGNS: dict[type, tuple[str, ...]] = {
    DABDETRConfig: (ANCHORS, "transformer.decoder.layers.0.ca_qpos_sine_proj.weight"),
    DABDeformableDETRConfig: (ANCHORS, "transformer.decoder.layers.0.cross_attn.sampling_offsets.weight"),
    DINOConfig: ("transformer.tgt_embed.weight", "transformer.enc_out_class_embed.weight"),
}
"""Names that only this detector has."""
STAGES = {3: (3, 4, 5), 4: (2, 3, 4, 5)}
"""Number of projected maps -> stages of the backbone."""

DABConfig = DABDETRConfig | DABDeformableDETRConfig | DINOConfig


def matches(keys: Collection[str]) -> bool:
    """Whether a state dict has the names of one of these detectors."""
    has_backbone = "backbone.0.body.conv1.weight" in keys or official_swin.has_swin(keys)
    return has_backbone and any(set(keys) >= set(sign) for sign in SIGNS.values())


def read(
    tensors: Mapping[str, Tensor],
    source: str | Path,
    args: Mapping[str, Any] | None = None,
    dilated: bool | None = None,
) -> TrainedDetector:
    """A detector with the weights of an official file.

    Args:
        tensors: the state dict, for which ``matches`` is True.
        source: the file.
        args: settings saved beside the weights, by their name in the authors' code.
        dilated: DC5; ``None``: as ``dilation`` in ``args``; without it, True if the file's name contains ``dc5``.

    Returns:
        The detector on the CPU, in evaluation mode, with the training settings of the closest preset, the official
        preprocessing, and COCO's classes if it has as many.

    Raises:
        UserError: the weights do not fit a detector of this library.
    """
    model: Any = derived(model_settings, tensors, source, args or {}, dilated)
    return with_defaults(model, renaming(model), without_labels(model, tensors), source)


def without_labels(model: DABConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the embeddings of labels, but with "unknown" if the detector has it."""
    rest = {name: tensor for name, tensor in tensors.items() if name != LABELS}
    if isinstance(model, DABDETRConfig) and model.content == "unknown":
        rest[UNKNOWN] = tensors[LABELS][-1:]
    return rest


def official_state_dict(detector: TrainedDetector) -> dict[str, Tensor]:
    """The weights of a detector with the authors' names; embeddings of labels are zero, except "unknown".

    Raises:
        UserError: it is another detector.
    """
    model = detector.experiment.model
    if not isinstance(model, DABConfig):
        raise UserError(f"Expected DAB-DETR or DINO, got a model with {type(model).__name__}.")
    found = renaming(model).write(detector.module.state_dict())
    channels = label_channels(model)
    if channels is not None:
        unknown = found.pop(UNKNOWN, torch.zeros(1, channels))
        found[LABELS] = torch.cat([unknown.new_zeros(model.num_classes, channels), unknown])
    return found


def label_channels(model: DABConfig) -> int | None:
    """Channels of the embeddings of labels in the authors' file; ``None``: it has none."""
    if isinstance(model, DINOConfig):
        return model.dim
    has_indicator = model.content == "unknown" if isinstance(model, DABDETRConfig) else model.indicator
    return model.dim - 1 if has_indicator else None


def model_settings(tensors: Mapping[str, Tensor], args: Mapping[str, Any], dilated: bool) -> DABConfig:
    """Our settings of a state dict."""
    settings = Settings(args)
    kind = next(kind for kind, sign in SIGNS.items() if set(tensors) >= set(sign))
    shared: dict[str, Any] = {
        "dim": tensors["transformer.decoder.layers.0.norm1.weight"].shape[0],
        "num_heads": settings.get("nheads", NUM_HEADS),
        "encoder_layers": count(tensors, "transformer.encoder.layers"),
        "decoder_layers": count(tensors, "transformer.decoder.layers"),
        "ffn_dim": tensors["transformer.decoder.layers.0.linear1.weight"].shape[0],
        "dropout": settings.get("dropout", 0.0),
    }
    temperature = settings.equal(("pe_temperatureH", "pe_temperatureW"), 20.0)
    if kind is DABDETRConfig:
        patterns = tensors[PATTERNS].shape[0] if PATTERNS in tensors else 0
        return DABDETRConfig(
            **shared,
            num_classes=tensors["class_embed.weight"].shape[0],
            backbone=replace(backbone(tensors, (5,)), dilated=dilated),
            num_queries=tensors[ANCHORS].shape[0] * max(patterns, 1),
            num_patterns=patterns,
            content="unknown" if LABELS in tensors else "zero",
            temperature=temperature,
        )
    kernels = [tensors[f"input_proj.{level}.0.weight"].shape[2] for level in range(count(tensors, "input_proj"))]
    levels = tensors["transformer.level_embed"].shape[0]
    samples = tensors["transformer.decoder.layers.0.cross_attn.attention_weights.weight"].shape[0]
    pyramid: dict[str, Any] = {
        **shared,
        "num_classes": tensors["class_embed.0.weight"].shape[0],
        "backbone": backbone(tensors, STAGES[kernels.count(1)]),
        "num_levels": levels,
        "num_points": samples // (levels * shared["num_heads"]),
    }
    if kind is DINOConfig:
        num_queries = tensors["transformer.tgt_embed.weight"].shape[0]
        return DINOConfig(**pyramid, num_queries=num_queries, temperature=temperature)
    return DABDeformableDETRConfig(**pyramid, num_queries=tensors[ANCHORS].shape[0], indicator=LABELS in tensors)


def backbone(tensors: Mapping[str, Tensor], stages: tuple[int, ...]) -> BackboneConfig:
    """The ResNet or Swin Transformer of a state dict."""
    if official_swin.has_swin(tensors):
        return official_swin.backbone(tensors, stages)
    return BackboneConfig(name=backbone_name(tensors), stages=stages)


def renaming(model: DABConfig) -> Renaming:
    """The table of names of a detector."""
    rules: list[Rule] = [
        *(official_swin.rules(model.backbone) if swin.is_swin(model.backbone.name) else ()),
        *shared_rules(OUR_LAYER),
        Rename(ANCHORS, "queries.anchors.weight"),
        *position_rules(model),
        *(single_scale_rules(model) if isinstance(model, DABDETRConfig) else deformable_rules(model)),
    ]
    return Renaming(rules, official_swin.IGNORED)


def position_rules(model: DABConfig) -> Iterable[Rule]:
    """Positions of queries and their scale: one module in all layers, the scale not in the first."""
    every, later = range(model.decoder_layers), range(1, model.decoder_layers)
    scaled = isinstance(model, DABDeformableDETRConfig)
    for k in range(2):
        own = [f"decoder.layers.{i}.position.{'position.' * (scaled and i > 0)}mlp.{2 * k}.{{rest}}" for i in every]
        yield Rename(f"transformer.decoder.ref_point_head.layers.{k}.{{rest}}", tuple(own))
        theirs = f"transformer.decoder.query_scale.layers.{k}.{{rest}}"
        if scaled:
            yield Rename(theirs, tuple(f"decoder.layers.{i}.position.scale.{2 * k}.{{rest}}" for i in later))
        elif isinstance(model, DABDETRConfig):
            yield Rename(theirs, tuple(f"decoder.layers.{i}.layer.transform.{2 * k}.{{rest}}" for i in later))


def single_scale_rules(model: DABDETRConfig) -> Iterable[Rule]:
    """DAB-DETR and DN-DETR."""
    layers, encoder = range(model.decoder_layers), range(model.encoder_layers)
    yield Rename("input_proj.{rest}", "neck.mapper.projections.0.{rest}")
    yield Rename(UNKNOWN if model.content == "unknown" else PATTERNS, "queries.content.embedding.weight")
    yield from attention("transformer.encoder.layers.{i}.self_attn", "encoder.layers.{i}.attention.attention.attention")
    yield Rename("transformer.encoder.layers.{i}.activation.{rest}", "encoder.layers.{i}.feedforward.activation.{rest}")
    yield Rename(f"{LAYER}.activation.{{rest}}", f"{OUR_LAYER}.feedforward.activation.{{rest}}")
    yield from norms(["self_attention", "cross_attention"], OUR_LAYER)
    yield from conditional_attention(OUR_LAYER)
    for k in range(2):
        sizes = tuple(f"decoder.layers.{i}.layer.size.{2 * k}.{{rest}}" for i in layers)
        yield Rename(f"transformer.decoder.ref_anchor_head.layers.{k}.{{rest}}", sizes)
        scales = tuple(f"encoder.layers.{i}.attention.scale.{2 * k}.{{rest}}" for i in encoder)
        yield Rename(f"transformer.encoder.query_scale.layers.{k}.{{rest}}", scales)
    yield Rename("transformer.decoder.norm.{rest}", heads("norm.{rest}", layers))
    yield Rename("class_embed.{rest}", heads("classes.{rest}", layers))
    for k in range(3):
        theirs = (f"bbox_embed.layers.{k}.{{rest}}", f"transformer.decoder.bbox_embed.layers.{k}.{{rest}}")
        yield Rename(theirs, heads(f"box.{2 * k}.{{rest}}", layers))


def deformable_rules(model: DABDeformableDETRConfig | DINOConfig) -> Iterable[Rule]:
    """DAB- and DN-Deformable-DETR and DINO."""
    yield from deformable_attention(model, OUR_LAYER)
    layers = range(model.decoder_layers)
    shared = isinstance(model, DINOConfig)
    if shared:
        yield Rename("transformer.tgt_embed.weight", "queries.content.weight")
        yield Rename("transformer.decoder.norm.{rest}", heads("norm.{rest}", layers))
        yield Rename("transformer.enc_out_class_embed.{rest}", "queries.head.classes.{rest}")
        for theirs, ours in PROPOSALS.items():
            yield Rename(f"transformer.{theirs}.{{rest}}", f"queries.{ours}.{{rest}}")
    else:
        yield Rename("tgt_embed.weight", "queries.content.embedding.weight")
    copies = [list(layers)] if shared else [[i] for i in layers]
    for group in copies:
        names = ("", "transformer.decoder.") if shared else ("",)
        theirs_of_class = tuple(f"{name}class_embed.{i}.{{rest}}" for name in names for i in group)
        yield Rename(theirs_of_class, heads("classes.{rest}", group))
        for k in range(3):
            theirs_of_box = tuple(
                f"{name}bbox_embed.{i}.layers.{k}.{{rest}}" for name in ("", "transformer.decoder.") for i in group
            )
            yield Rename(theirs_of_box, heads(f"box.{2 * k}.{{rest}}", group))
    if shared:
        for k in range(3):
            yield Rename(f"transformer.enc_out_bbox_embed.layers.{k}.{{rest}}", f"queries.head.box.{2 * k}.{{rest}}")
