"""Weights of Anchor DETR with the names of its authors' code, and of detrex, to our model and back.

The authors' files have the entry ``model`` with 507 tensors for ResNet-50; all six layers have copies of one head.
detrex omits ``body`` and the list of ``input_proj``, and has 80 classes. Both expect RGB images with the mean and
standard deviation of ImageNet, resized to (800, 1333).

Not supported, because no weights with them are published: several feature levels, standard attention, a grid of points.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

from torch import Tensor

from detrs.checkpoints.classes import coco_classes
from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.foreign.loading import check_settings, trained
from detrs.checkpoints.foreign.renaming import Pack, Rename, Renaming, Rule, qkv
from detrs.checkpoints.foreign.structure import Structure
from detrs.config.anchor_detr import AnchorDETRConfig
from detrs.config.backbone import BackboneConfig
from detrs.config.data import OFFICIAL_SIZE
from detrs.data.preprocessing import Preprocessing
from detrs.errors import UserError

NUM_HEADS = 8
"""Attention heads of all published weights; shapes do not depend on it."""
MARKS = frozenset({"transformer.pattern.weight", "transformer.adapt_pos2d.0.weight"})
"""Names that only Anchor DETR has."""
C5 = re.compile(r"(?<![a-z0-9])d?c5(?![a-z0-9])")
"""In the names of files."""
ENCODER_LAYER = ("transformer.encoder_layers.{i}", "encoder.layers.{i}")
DECODER_LAYER = ("transformer.decoder_layers.{i}", "decoder.layers.{i}")


def matches(keys: Collection[str]) -> bool:
    """Whether a state dict has these names."""
    return set(keys) >= MARKS


def read(
    tensors: Mapping[str, Tensor],
    source: object,
    args: Mapping[str, Any] | None = None,
    dilated: bool | None = None,
) -> TrainedDetector:
    """The detector.

    Args:
        tensors: their state dict.
        source: the file.
        args: the entry ``args`` of the file: ``dilation``, ``nheads``.
        dilated: whether C5 is dilated, which names and shapes of tensors do not show. None: as ``dilation`` in
            ``args``; without it, ``dc5`` or ``c5`` must be in the name of the file.

    Raises:
        UserError: the weights do not fit, or the dilation is unknown.
    """
    args = args or {}
    num_heads = args.get("nheads")
    found = Structure(tensors, source)
    check_supported(found)
    body = "backbone.body." if "backbone.body.conv1.weight" in tensors else "backbone."
    num_patterns, dim = found.size("transformer.pattern.weight"), found.size("transformer.pattern.weight", 1)
    if dilated is None:
        dilated = is_dilated(args.get("dilation"), source)
    backbone = BackboneConfig(name=found.resnet(body), stages=(5,), dilated=dilated)
    model = AnchorDETRConfig(
        num_classes=found.size("transformer.class_embed.0.weight"),
        backbone=backbone,
        dim=dim,
        num_heads=num_heads if type(num_heads) is int else NUM_HEADS,
        encoder_layers=found.count("transformer.encoder_layers.{i}."),
        decoder_layers=found.count("transformer.decoder_layers.{i}."),
        ffn_dim=found.size("transformer.decoder_layers.0.ffn.linear1.weight"),
        num_queries=num_patterns * found.size("transformer.position.weight"),
        num_patterns=num_patterns,
    )
    check_settings(model, source)
    preprocessing = Preprocessing(resize_to=OFFICIAL_SIZE, mean=backbone.mean, std=backbone.std)
    classes = coco_classes(model.num_classes)
    return trained(model, renaming(model.decoder_layers), tensors, classes, preprocessing, source)


def to_official(detector: TrainedDetector) -> dict[str, Tensor]:
    """The weights with the names of the authors' code, for ``{"model": weights}``.

    Raises:
        UserError: it is another detector, or a variant that their code does not have.
    """
    model = detector.experiment.model
    if not isinstance(model, AnchorDETRConfig):
        raise UserError(f"Expected Anchor DETR, got a model with {type(model).__name__}.")
    if model.attention == "global" or model.anchors == "grid":
        raise UserError(
            f"Anchor DETR with model.attention '{model.attention}' and model.anchors '{model.anchors}' cannot be "
            "written with the names of its authors' code. Expected 'decoupled' attention and 'learned' anchors."
        )
    return renaming(model.decoder_layers).write(detector.module.state_dict())


def check_supported(found: Structure) -> None:
    """Raise ``UserError`` for variants without published weights."""
    attention = "transformer.decoder_layers.0.cross_attn.in_proj_weight"
    variants = {
        "several feature levels": "transformer.level_embed.weight" in found.shapes,
        "a grid of anchor points": "transformer.position.weight" not in found.shapes,
        "standard attention": found.size(attention) == 3 * found.size(attention, 1),
    }
    for name, present in variants.items():
        if present:
            raise UserError(
                f"'{found.source}' is an Anchor DETR with {name}, which is not supported. Expected one feature level, "
                "learned anchor points and row-column attention, as in the published weights."
            )


def is_dilated(value: object, source: object) -> bool:
    """Whether C5 is dilated (DC5): the authors' argument ``dilation``, otherwise the name of the file.

    Raises:
        UserError: neither of them shows it.
    """
    choices = {"true": True, "false": False}  # their command line stores text
    if str(value).lower() in choices:
        return choices[str(value).lower()]
    marked = C5.search(PurePath(str(source)).name.lower())
    if marked is None:
        raise UserError(
            f"The weights in '{source}' do not show whether C5 is dilated. Expected the setting args.dilation, or "
            "'dc5' (dilated) or 'c5' in the name of the file, for example AnchorDETR_r50_dc5.pth."
        )
    return marked[0] == "dc5"


def renaming(decoder_layers: int) -> Renaming:
    """The table of names for a number of layers, which share one head."""
    layers = range(decoder_layers)
    rules: list[Rule] = [
        Rename("backbone.body.{rest}", "backbone.body.{rest}", spellings=("backbone.{rest}",)),
        Rename("input_proj.0.{i}.{rest}", "neck.mapper.projections.0.{i}.{rest}", spellings=("input_proj.{i}.{rest}",)),
        Rename("transformer.pattern.{rest}", "queries.patterns.{rest}"),
        Rename("transformer.position.{rest}", "queries.embedding.{rest}"),
        Rename("transformer.adapt_pos2d.{rest}", "queries.position.point.adapt.{rest}"),
        Rename(
            "transformer.adapt_pos1d.{rest}",
            ("neck.position.coordinate.adapt.{rest}", "queries.position.coordinate.adapt.{rest}"),
        ),
        *layer_rules(*ENCODER_LAYER, attention=("self_attn", "norm1", "attention")),
        *layer_rules(*DECODER_LAYER, attention=("cross_attn", "norm1", "cross_attention")),
        Pack(f"{DECODER_LAYER[0]}.self_attn.in_proj_{{rest}}", qkv(f"{DECODER_LAYER[1]}.self_attention.attention")),
        Rename(
            f"{DECODER_LAYER[0]}.self_attn.out_proj.{{rest}}",
            f"{DECODER_LAYER[1]}.self_attention.attention.output_proj.{{rest}}",
        ),
        Rename(f"{DECODER_LAYER[0]}.norm2.{{rest}}", f"{DECODER_LAYER[1]}.self_attention_norm.norm.{{rest}}"),
        Rename(
            tuple(f"transformer.class_embed.{k}.{{rest}}" for k in layers),
            tuple(f"decoder.heads.{k}.classes.{{rest}}" for k in layers),
        ),
    ]
    for theirs, ours in ((0, 0), (1, 2), (2, 4)):  # ours has activations between the linear layers
        rules.append(
            Rename(
                tuple(f"transformer.bbox_embed.{k}.layers.{theirs}.{{rest}}" for k in layers),
                tuple(f"decoder.heads.{k}.box.{ours}.{{rest}}" for k in layers),
            )
        )
    return Renaming(rules)


def layer_rules(theirs: str, ours: str, attention: tuple[str, str, str]) -> list[Rule]:
    """Attention to the image along rows and columns, and the feed-forward network, of a layer.

    Args:
        theirs: pattern of their layer.
        ours: pattern of our layer.
        attention: their attention, its norm, and our attention.
    """
    module, norm, our_module = attention
    inner = f"{ours}.{our_module}.attention"
    inputs = ("query_x_proj", "query_y_proj", "key_x_proj", "key_y_proj", "value_proj")  # q_row, q_col, k_row, k_col, v
    return [
        Pack(f"{theirs}.{module}.in_proj_{{rest}}", tuple(f"{inner}.{name}.{{rest}}" for name in inputs)),
        Rename(f"{theirs}.{module}.out_proj.{{rest}}", f"{inner}.output_proj.{{rest}}"),
        Rename(f"{theirs}.{norm}.{{rest}}", f"{ours}.{our_module}_norm.norm.{{rest}}"),
        Rename(f"{theirs}.ffn.linear1.{{rest}}", f"{ours}.feedforward.expand.{{rest}}"),
        Rename(f"{theirs}.ffn.linear2.{{rest}}", f"{ours}.feedforward.contract.{{rest}}"),
        Rename(f"{theirs}.ffn.norm2.{{rest}}", f"{ours}.feedforward_norm.norm.{{rest}}"),
    ]
