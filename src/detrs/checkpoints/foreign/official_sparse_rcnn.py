"""Weights of Sparse R-CNN to our model and back: names of its authors' code (detectron2), and of mmdetection.

Both have 80 classes in the order of COCO, and expect the same pixels (:mod:`detrs.checkpoints.foreign.pixel_format`) at
(800, 1333). Their boxes and features of proposals are two tensors; ours are columns of one. mmdetection also saves
counters of BatchNorm, which are 0 because its BatchNorm is in evaluation mode; they are ignored, and written as 0.

Deviation: in mmdetection a stage can shrink or grow a box by a factor of 62.5; here, as in the authors' code, only
growth is limited, to 6250.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detrs.checkpoints.classes import coco_classes
from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.foreign.loading import check_settings, trained
from detrs.checkpoints.foreign.pixel_format import METADATA, RGB, PixelFormat, pixel_format
from detrs.checkpoints.foreign.renaming import Pack, Rename, Renaming, Rule, qkv
from detrs.checkpoints.foreign.structure import STAGES, Structure
from detrs.config.backbone import BackboneConfig
from detrs.config.data import OFFICIAL_SIZE
from detrs.config.sparse_rcnn import SparseRCNNConfig
from detrs.data.preprocessing import Preprocessing
from detrs.errors import UserError
from detrs.structures import Classes

NUM_HEADS = 8
"""Attention heads of all published weights; shapes do not depend on it."""
BOX_NUMBERS = 4
EMBEDDING = "queries.embedding.weight"
PROPOSALS = "boxes and features of proposals"
"""Name of their two tensors, side by side, while names are translated."""
LEVELS = (2, 3, 4, 5)
"""Levels of the feature pyramid, and stages of the backbone."""
STAGE_NAMES = (
    ("self_attention.attention.output_proj", "self_attn.out_proj", "attention.attn.out_proj"),
    ("self_attention_norm.norm", "norm1", "attention_norm"),
    ("cross_attention_norm.norm", "norm2", "instance_interactive_conv_norm"),
    ("feedforward_norm.norm", "norm3", "ffn_norm"),
    ("cross_attention.filters", "inst_interact.dynamic_layer", "instance_interactive_conv.dynamic_layer"),
    ("cross_attention.inner_norm", "inst_interact.norm1", "instance_interactive_conv.norm_in"),
    ("cross_attention.outer_norm", "inst_interact.norm2", "instance_interactive_conv.norm_out"),
    ("cross_attention.output_proj", "inst_interact.out_layer", "instance_interactive_conv.fc_layer"),
    ("cross_attention.output_norm", "inst_interact.norm3", "instance_interactive_conv.fc_norm"),
    ("feedforward.expand", "linear1", "ffn.layers.0.0"),
    ("feedforward.contract", "linear2", "ffn.layers.1"),
)
"""Part of a stage here, in the authors' code, and in mmdetection."""
HEAD_NAMES = (
    ("class_tower", "cls_module", "cls_fcs"),
    ("box_tower", "reg_module", "reg_fcs"),
    ("classes", "class_logits", "fc_cls"),
    ("box", "bboxes_delta", "fc_reg"),
)
"""The same for the head of a stage."""


class Layout(NamedTuple):
    """The names of one code base."""

    backbone: str
    """Prefix of the ResNet."""
    stages: tuple[str, ...]
    """Stages of the ResNet, after the prefix."""
    first_convolution: str
    boxes: str
    """Of proposals, (N, 4)."""
    features: str
    """Of proposals, (N, C)."""
    stage: str
    """Pattern of a stage."""
    names: Mapping[str, str]
    """Part of a stage or its head here -> there."""
    renaming: Renaming

    def of_first_stage(self, part: str) -> str:
        """The weight of a part here by its name there."""
        return f"{self.stage.format(i=0)}.{self.names[part]}.weight"


def stage_rules(stage: str, in_proj: str, names: Mapping[str, str]) -> list[Rule]:
    """Rules of a stage and its head.

    Args:
        stage: pattern of their stage.
        in_proj: their packed projections of the self-attention, without the last part of the name.
        names: part here -> there.
    """
    rules: list[Rule] = [Pack(f"{stage}.{in_proj}_{{rest}}", qkv("decoder.layers.{i}.self_attention.attention"))]
    for ours, theirs in names.items():
        module = "heads" if ours in {part for part, *_ in HEAD_NAMES} else "layers"
        rules.append(Rename(f"{stage}.{theirs}.{{rest}}", f"decoder.{module}.{{i}}.{ours}.{{rest}}"))
    return rules


def detectron2_rules() -> list[Rule]:
    """Rules of backbone and feature pyramid of detectron2, where norms are parts of convolutions."""
    theirs, ours = "backbone.bottom_up", "backbone.body"
    rules: list[Rule] = [
        Rename(f"{theirs}.stem.conv1.norm.{{rest}}", f"{ours}.bn1.{{rest}}"),
        Rename(f"{theirs}.stem.conv1.{{rest}}", f"{ours}.conv1.{{rest}}"),
    ]
    for k, stage in zip(LEVELS, STAGES, strict=True):
        block, our_block = f"{theirs}.res{k}.{{i}}", f"{ours}.{stage}.{{i}}"
        rules += [
            Rename(f"{block}.conv{{j}}.norm.{{rest}}", f"{our_block}.bn{{j}}.{{rest}}"),
            Rename(f"{block}.conv{{j}}.{{rest}}", f"{our_block}.conv{{j}}.{{rest}}"),
            Rename(f"{block}.shortcut.norm.{{rest}}", f"{our_block}.downsample.1.{{rest}}"),
            Rename(f"{block}.shortcut.{{rest}}", f"{our_block}.downsample.0.{{rest}}"),
            Rename(f"backbone.fpn_lateral{k}.{{rest}}", f"neck.mapper.laterals.{k - 2}.{{rest}}"),
            Rename(f"backbone.fpn_output{k}.{{rest}}", f"neck.mapper.outputs.{k - 2}.{{rest}}"),
        ]
    return rules


def mmdetection_rules() -> list[Rule]:
    """Rules of backbone and feature pyramid of mmdetection."""
    return [
        Rename("backbone.{rest}", "backbone.body.{rest}"),
        Rename("neck.lateral_convs.{i}.conv.{rest}", "neck.mapper.laterals.{i}.{rest}"),
        Rename("neck.fpn_convs.{i}.conv.{rest}", "neck.mapper.outputs.{i}.{rest}"),
    ]


JOINED = Rename(PROPOSALS, EMBEDDING)
OFFICIAL_NAMES = {ours: official for ours, official, _ in (*STAGE_NAMES, *HEAD_NAMES)}
MMDETECTION_NAMES = {ours: theirs for ours, _, theirs in (*STAGE_NAMES, *HEAD_NAMES)}
LAYOUTS = {
    "official": Layout(
        backbone="backbone.bottom_up.",
        stages=tuple(f"res{k}" for k in LEVELS),
        first_convolution="backbone.bottom_up.stem.conv1.weight",
        boxes="init_proposal_boxes.weight",
        features="init_proposal_features.weight",
        stage="head.head_series.{i}",
        names=OFFICIAL_NAMES,
        renaming=Renaming(
            [*detectron2_rules(), *stage_rules("head.head_series.{i}", "self_attn.in_proj", OFFICIAL_NAMES), JOINED],
            ignored=METADATA,
        ),
    ),
    "mmdetection": Layout(
        backbone="backbone.",
        stages=STAGES,
        first_convolution="backbone.conv1.weight",
        boxes="rpn_head.init_proposal_bboxes.weight",
        features="rpn_head.init_proposal_features.weight",
        stage="roi_head.bbox_head.{i}",
        names=MMDETECTION_NAMES,
        renaming=Renaming(
            [
                *mmdetection_rules(),
                *stage_rules("roi_head.bbox_head.{i}", "attention.attn.in_proj", MMDETECTION_NAMES),
                JOINED,
            ],
        ),
    ),
}
"""By name: ``official`` is detectron2's."""


def matches(keys: Collection[str]) -> bool:
    """Whether a state dict has the names of one of the layouts."""
    return layout_of(keys) is not None


def layout_of(keys: Collection[str]) -> Layout | None:
    """The layout with these names."""
    return next((layout for layout in LAYOUTS.values() if layout.boxes in keys), None)


def read(
    tensors: Mapping[str, Tensor],
    source: object,
    args: Mapping[str, Any] | None = None,
    pixels: PixelFormat | None = None,
) -> TrainedDetector:
    """The detector.

    Args:
        tensors: their state dict.
        source: the file, for messages.
        args: metadata of the file: mmdetection saves the names of classes in ``meta``.
        pixels: format of the pixels; None: that of the file, see ``pixel_format``.

    Raises:
        UserError: the weights do not fit.
    """
    layout = layout_of(tensors)
    if layout is None:
        raise UserError(f"'{source}' does not contain the tensor '{LAYOUTS['official'].boxes}' of Sparse R-CNN.")
    pixels = pixels or pixel_format(tensors, source)
    mean, std = pixels.on_unit_interval()
    found = Structure(tensors, source)
    first = layout.stage.format(i=0)
    model = SparseRCNNConfig(
        num_classes=found.size(layout.of_first_stage("classes")),
        backbone=BackboneConfig(name=found.resnet(layout.backbone, layout.stages), stages=LEVELS),
        dim=found.size(layout.features, 1),
        num_heads=NUM_HEADS,
        decoder_layers=found.count(f"{layout.stage}."),
        ffn_dim=found.size(layout.of_first_stage("feedforward.expand")),
        dynamic_dim=found.size(layout.of_first_stage("cross_attention.inner_norm")),
        class_tower=found.matrices(f"{first}.{layout.names['class_tower']}."),
        box_tower=found.matrices(f"{first}.{layout.names['box_tower']}."),
        num_queries=found.size(layout.boxes),
    )
    check_settings(model, source)
    preprocessing = Preprocessing(resize_to=OFFICIAL_SIZE, mean=mean, std=std)
    classes = class_names(args or {}, model.num_classes)
    return trained(model, layout.renaming, joined(tensors, layout, pixels, source), classes, preprocessing, source)


def to_official(detector: TrainedDetector, layout: str = "official", pixels: PixelFormat = RGB) -> dict[str, Tensor]:
    """The weights with the names of a layout, for ``{"model": weights}`` (mmdetection: ``{"state_dict": weights}``).

    Args:
        detector: Sparse R-CNN.
        layout: ``official`` or ``mmdetection``.
        pixels: format of the pixels that the weights are written for. Its mean and standard deviation are not written.

    Raises:
        UserError: it is another detector.
    """
    model = detector.experiment.model
    if not isinstance(model, SparseRCNNConfig):
        raise UserError(f"Expected Sparse R-CNN, got a model with {type(model).__name__}.")
    theirs = LAYOUTS[layout]
    tensors = theirs.renaming.write(detector.module.state_dict())
    tensors[theirs.boxes], tensors[theirs.features] = tensors.pop(PROPOSALS).tensor_split([BOX_NUMBERS], dim=1)
    tensors[theirs.first_convolution] = pixels.converted(tensors[theirs.first_convolution])
    if layout == "mmdetection":
        norms = [name.removesuffix("running_var") for name in tensors if name.endswith(".running_var")]
        tensors |= {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}
    return tensors


def joined(tensors: Mapping[str, Tensor], layout: Layout, pixels: PixelFormat, source: object) -> dict[str, Tensor]:
    """Their tensors, with boxes and features of proposals side by side, for RGB.

    Raises:
        UserError: there is not one box (4 numbers) per feature.
    """
    found = dict(tensors)
    boxes, features = found.pop(layout.boxes), found.pop(layout.features)
    if features.dim() != 2 or boxes.shape != (len(features), BOX_NUMBERS):
        raise UserError(
            f"'{source}' has '{layout.boxes}' of shape {tuple(boxes.shape)}, expected {(len(features), BOX_NUMBERS)}: "
            f"one box for each row of '{layout.features}'."
        )
    first = found.get(layout.first_convolution)
    if first is not None and first.dim() > 1:
        found[layout.first_convolution] = pixels.converted(first)
    return {**found, PROPOSALS: torch.cat([boxes, features], dim=1)}


def class_names(args: Mapping[str, Any], num_classes: int) -> Classes:
    """Names in the metadata of mmdetection (``CLASSES``, or ``classes`` in ``dataset_meta``), otherwise COCO's."""
    published = coco_classes(num_classes)
    meta = args.get("meta", {})
    for holder in (meta, meta.get("dataset_meta", {}) if isinstance(meta, Mapping) else {}):
        names = (
            [value for key, value in holder.items() if key.lower() == "classes"] if isinstance(holder, Mapping) else []
        )
        if names and isinstance(names[0], list | tuple) and len(set(map(str, names[0]))) == num_classes:
            given = tuple(map(str, names[0]))
            return published if given == published.names else Classes(given, tuple(range(num_classes)))
    return published
