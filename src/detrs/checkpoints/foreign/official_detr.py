"""Weights of the authors' code: DETR, Conditional DETR and Deformable DETR, read and written.

All settings that a state dict shows are derived from its names and shapes. It does not show three others: the number of
attention heads (8 unless the settings saved beside the weights differ), the number of queries of a two-stage detector
(300), and DC5, since dilation changes no shape; see ``read``.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from detrs.checkpoints.classes import coco_classes
from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.foreign.loading import check_settings, trained
from detrs.checkpoints.foreign.renaming import Pack, Rename, Renaming, Rule, qkv
from detrs.checkpoints.foreign.structure import RESNETS
from detrs.checkpoints.foreign.transformers_names import (
    CROSS,
    PROPOSALS,
    SELF,
    head_rules,
    heads,
    level_rules,
)
from detrs.checkpoints.foreign.transformers_settings import Settings, check_representable, read_preprocessing
from detrs.config.backbone import BackboneConfig
from detrs.config.conditional_detr import ConditionalDETRConfig
from detrs.config.deformable_detr import DeformableDETRConfig
from detrs.config.detr import DETRConfig
from detrs.config.models import ModelConfig
from detrs.errors import UserError

LAYER, OUR_LAYER = "transformer.decoder.layers.{i}", "decoder.layers.{i}"
SIGNS: dict[type, str] = {
    DETRConfig: "transformer.decoder.layers.0.multihead_attn.in_proj_weight",
    ConditionalDETRConfig: "transformer.decoder.layers.0.ca_qpos_sine_proj.weight",
    DeformableDETRConfig: "transformer.decoder.layers.0.cross_attn.sampling_offsets.weight",
}
"""A name that only this detector has."""
LATER = ("refpoint_embed.", "tgt_embed.", "label_enc.", "transformer.tgt_embed.")
"""Names of detectors that were built on these: DAB-DETR, DN-DETR, DINO."""
NUM_HEADS = 8
NUM_PROPOSALS = 300


def matches(keys: Collection[str]) -> bool:
    """Whether a state dict has the names of one of the three detectors."""
    return (
        "backbone.0.body.conv1.weight" in keys
        and any(sign in keys for sign in SIGNS.values())
        and not any(key.startswith(LATER) for key in keys)
    )


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
        args: settings saved beside the weights, by their name in the authors' code (``nheads``, ``num_queries``,
            ``dilation``, ...). Published files often have none.
        dilated: DC5, for example from the table of published checkpoints. The weights do not show it: without
            dilation they load as well, and detect badly. ``None``: as ``dilation`` in ``args``; without it, True if
            the name of the file contains ``dc5``, as those of the published files do.

    Returns:
        The detector on the CPU, in evaluation mode, with the training settings of the closest preset, the official
        preprocessing, and COCO's classes if it has as many.

    Raises:
        UserError: a setting is not supported, or the weights do not fit the settings.
    """
    model: Any = derived(model_settings, tensors, source, args or {}, dilated)
    return with_defaults(model, renaming(model), tensors, source)


ReadSettings = Callable[[Mapping[str, Tensor], Mapping[str, Any], bool], ModelConfig]
"""State dict, settings saved beside it, and whether C5 is dilated, to our settings."""


def derived(
    read_settings: ReadSettings,
    tensors: Mapping[str, Tensor],
    source: str | Path,
    args: Mapping[str, Any],
    dilated: bool | None,
) -> ModelConfig:
    """Our settings of an official file; for the arguments see ``read``.

    Raises:
        UserError: a setting is not supported or invalid, or settings cannot be derived from the weights.
    """
    if args.get("pre_norm"):
        raise UserError(f"Cannot use the checkpoint '{source}': pre_norm is True, which is not supported.")
    if dilated is None:
        dilated = bool(args.get("dilation", "dc5" in Path(source).name.lower()))
    try:
        model = read_settings(tensors, args, dilated)
    except UserError as error:
        raise UserError(f"Cannot use the checkpoint '{source}': {error}") from None
    except (KeyError, ValueError, IndexError, TypeError, ArithmeticError) as error:
        raise UserError(
            f"Cannot use the checkpoint '{source}': its settings cannot be derived from its weights ({error!s:.200})."
        ) from None
    check_settings(model, source)
    return model


def with_defaults(model: Any, renaming: Renaming, tensors: Mapping[str, Tensor], source: str | Path) -> TrainedDetector:
    """The detector, with the official preprocessing, and COCO's classes if it has as many."""
    return trained(model, renaming, tensors, coco_classes(model.num_classes), read_preprocessing({}), source)


def official_state_dict(detector: TrainedDetector) -> dict[str, Tensor]:
    """The weights of a detector with the authors' names: the entry ``model`` of their files.

    Raises:
        UserError: the authors' code does not have the detector or one of its settings.
    """
    model = detector.experiment.model
    if type(model) not in SIGNS:
        raise UserError(f"Expected DETR, Conditional DETR or Deformable DETR, got a model with {type(model).__name__}.")
    check_representable(model)
    if not re.match(r"resnet\d+\b", model.backbone.name):
        raise UserError(f"The backbone '{model.backbone.name}' is not supported by the authors' code. Use a ResNet.")
    return renaming(model).write(detector.module.state_dict())


def model_settings(tensors: Mapping[str, Tensor], args: Mapping[str, Any], dilated: bool) -> ModelConfig:
    """Our settings of a state dict."""
    settings = Settings(args)
    kind = next(kind for kind, sign in SIGNS.items() if sign in tensors)
    deformable = kind is DeformableDETRConfig
    class_head = "class_embed.0.weight" if deformable else "class_embed.weight"
    stages = stages_of(tensors) if deformable else (5,)
    shared: dict[str, Any] = {
        "num_classes": tensors[class_head].shape[0] - (kind is DETRConfig),
        "backbone": BackboneConfig(name=backbone_name(tensors), stages=stages, dilated=dilated),
        "dim": tensors["transformer.decoder.layers.0.norm1.weight"].shape[0],
        "num_heads": settings.get("nheads", NUM_HEADS),
        "encoder_layers": count(tensors, "transformer.encoder.layers"),
        "decoder_layers": count(tensors, "transformer.decoder.layers"),
        "ffn_dim": tensors["transformer.decoder.layers.0.linear1.weight"].shape[0],
        "dropout": settings.get("dropout", 0.1),
    }
    two_stage = "transformer.enc_output.weight" in tensors
    if two_stage:
        shared["num_queries"] = settings.get("num_queries", NUM_PROPOSALS)
    else:
        shared["num_queries"] = tensors["query_embed.weight"].shape[0]
    if not deformable:
        return DETRConfig(**shared) if kind is DETRConfig else ConditionalDETRConfig(**shared)
    levels = tensors["transformer.level_embed"].shape[0]
    samples = tensors["transformer.decoder.layers.0.cross_attn.attention_weights.weight"].shape[0]
    points, rest = divmod(samples, levels * shared["num_heads"])
    if rest:
        raise ValueError(f"{samples} attention weights cannot be of {levels} levels and {shared['num_heads']} heads")
    refine = two_stage or any(name.startswith("transformer.decoder.bbox_embed.") for name in tensors)
    return DeformableDETRConfig(
        **shared,
        num_levels=levels,
        num_points=points,
        reference="refine" if refine else "keep",
        queries="proposals" if two_stage else "learned",
    )


def stages_of(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Stages of the backbone that Deformable DETR projects, with 1x1 kernels; further levels have 3x3 kernels."""
    kernels = [tensors[f"input_proj.{level}.0.weight"].shape[2] for level in range(count(tensors, "input_proj"))]
    stages = {1: (5,), 3: (3, 4, 5)}.get(kernels.count(1))
    if stages is None:
        raise ValueError(f"expected 1 or 3 feature maps of the backbone, got {kernels.count(1)}")
    return stages


def count(tensors: Iterable[str], prefix: str) -> int:
    """Number of entries of a list of modules."""
    start = len(prefix) + 1
    numbers = {name[start:].split(".")[0] for name in tensors if name.startswith(f"{prefix}.")}
    return len(numbers)


def backbone_name(tensors: Mapping[str, Tensor]) -> str:
    """The timm model of the same blocks."""
    body = "backbone.0.body"
    layer_type = "bottleneck" if f"{body}.layer1.0.conv3.weight" in tensors else "basic"
    blocks = tuple(count(tensors, f"{body}.layer{stage}") for stage in range(1, 5))
    if (layer_type, blocks) not in RESNETS:
        raise ValueError(f"no ResNet has {blocks} {layer_type} blocks")
    return RESNETS[layer_type, blocks]


def renaming(model: ModelConfig) -> Renaming:
    """The table of names of a detector; for the heads of Deformable DETR see ``head_rules``."""
    rules: list[Rule] = [*shared_rules(OUR_LAYER), Rename("query_embed.{rest}", "queries.embedding.{rest}")]
    if isinstance(model, DeformableDETRConfig):
        rules += deformable_rules(model)
    else:
        rules += single_scale_rules(model)
    return Renaming(rules)


def shared_rules(ours: str) -> Iterable[Rule]:
    """Parts of every detector; ``ours`` is our name of a decoder layer."""
    yield Rename("backbone.0.body.{rest}", "backbone.body.{rest}")
    yield Rename("transformer.encoder.layers.{i}.norm1.{rest}", "encoder.layers.{i}.attention_norm.norm.{rest}")
    yield Rename("transformer.encoder.layers.{i}.norm2.{rest}", "encoder.layers.{i}.feedforward_norm.norm.{rest}")
    yield from feedforward("transformer.encoder.layers.{i}", "encoder.layers.{i}")
    yield from feedforward(LAYER, ours)
    yield Rename(f"{LAYER}.norm3.{{rest}}", f"{ours}.feedforward_norm.norm.{{rest}}")


def feedforward(theirs: str, ours: str) -> Iterable[Rule]:
    yield Rename(f"{theirs}.linear1.{{rest}}", f"{ours}.feedforward.expand.{{rest}}")
    yield Rename(f"{theirs}.linear2.{{rest}}", f"{ours}.feedforward.contract.{{rest}}")


def attention(theirs: str, ours: str) -> Iterable[Rule]:
    """``nn.MultiheadAttention``."""
    yield Pack(f"{theirs}.in_proj_{{rest}}", qkv(ours))
    yield Rename(f"{theirs}.out_proj.{{rest}}", f"{ours}.output_proj.{{rest}}")


def norms(names: Iterable[str], ours: str = OUR_LAYER) -> Iterable[Rule]:
    """Of a decoder layer, by what they follow, in the order of their numbers."""
    for k, name in enumerate(names, start=1):
        yield Rename(f"{LAYER}.norm{k}.{{rest}}", f"{ours}.{name}_norm.norm.{{rest}}")


def single_scale_rules(model: Any) -> Iterable[Rule]:
    """DETR and Conditional DETR."""
    layers = range(model.decoder_layers)
    yield Rename("input_proj.{rest}", "neck.mapper.projections.0.{rest}")
    yield from attention("transformer.encoder.layers.{i}.self_attn", "encoder.layers.{i}.attention.attention")
    yield from norms(["self_attention", "cross_attention"])
    yield Rename("transformer.decoder.norm.{rest}", heads("norm.{rest}", layers))
    yield Rename("class_embed.{rest}", heads("classes.{rest}", layers))
    for k in range(3):
        yield Rename(f"bbox_embed.layers.{k}.{{rest}}", heads(f"box.{2 * k}.{{rest}}", layers))
    if isinstance(model, ConditionalDETRConfig):
        yield from conditional_rules(model.decoder_layers)
    else:
        yield from attention(f"{LAYER}.self_attn", f"{OUR_LAYER}.self_attention.attention")
        yield from attention(f"{LAYER}.multihead_attn", f"{OUR_LAYER}.cross_attention.attention")


def conditional_rules(layers: int) -> Iterable[Rule]:
    """Attention of Conditional DETR, the scale of its positions, and its points."""
    yield from conditional_attention(OUR_LAYER)
    for k in range(2):
        scales = tuple(f"decoder.layers.{layer}.transform.{2 * k}.{{rest}}" for layer in range(1, layers))
        yield Rename(f"transformer.decoder.query_scale.layers.{k}.{{rest}}", scales)
        yield Rename(f"transformer.decoder.ref_point_head.layers.{k}.{{rest}}", f"queries.reference.{2 * k}.{{rest}}")


def conditional_attention(layer: str) -> Iterable[Rule]:
    """Attention with separate projections of contents and positions; the first layer has one more."""
    first, our_first = "transformer.decoder.layers.0", f"{layer.format(i=0)}.cross_attention"
    for name, ours in SELF.items():
        yield Rename(f"{LAYER}.sa_{name}_proj.{{rest}}", f"{layer}.self_attention.{ours}_proj.{{rest}}")
    yield Rename(f"{LAYER}.self_attn.out_proj.{{rest}}", f"{layer}.self_attention.output_proj.{{rest}}")
    yield Rename(f"{first}.ca_qpos_proj.{{rest}}", f"{our_first}.query_position_proj.{{rest}}")
    yield Rename(f"{first}.cross_attn.out_proj.{{rest}}", f"{our_first}.conditional.output_proj.{{rest}}")
    yield Rename(f"{LAYER}.cross_attn.out_proj.{{rest}}", f"{layer}.cross_attention.output_proj.{{rest}}")
    for name, ours in CROSS.items():
        yield Rename(f"{first}.ca_{name}_proj.{{rest}}", f"{our_first}.conditional.{ours}_proj.{{rest}}")
        yield Rename(f"{LAYER}.ca_{name}_proj.{{rest}}", f"{layer}.cross_attention.{ours}_proj.{{rest}}")


def deformable_attention(model: Any, layer: str) -> Iterable[Rule]:
    """Attention of all deformable detectors, and their levels; ``layer`` is our name of a decoder layer."""
    yield from norms(["cross_attention", "self_attention"], layer)  # in the order of the code, not of the computation
    yield from attention(f"{LAYER}.self_attn", f"{layer}.self_attention.attention")
    yield Rename("transformer.encoder.layers.{i}.self_attn.{rest}", "encoder.layers.{i}.attention.attention.{rest}")
    yield Rename(f"{LAYER}.cross_attn.{{rest}}", f"{layer}.cross_attention.attention.{{rest}}")
    yield Rename("transformer.level_embed", "neck.level_embedding.weight")
    yield from level_rules(model, "input_proj")


def deformable_rules(model: DeformableDETRConfig) -> Iterable[Rule]:
    yield from deformable_attention(model, OUR_LAYER)
    yield Rename("transformer.reference_points.{rest}", "queries.reference_points.{rest}")
    for theirs, ours in PROPOSALS.items():
        yield Rename(f"transformer.{theirs}.{{rest}}", f"queries.{ours}.{{rest}}")
    yield from head_rules(model, "transformer.decoder")
