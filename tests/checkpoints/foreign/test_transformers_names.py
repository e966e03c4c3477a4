"""Tables of names of ``transformers`` at the size of the published checkpoints, without memory."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers

from detrs import models
from detrs.checkpoints.classes import coco_classes
from detrs.checkpoints.detector import shapes
from detrs.checkpoints.foreign.loading import closest_experiment
from detrs.checkpoints.foreign.transformers_names import renaming
from detrs.checkpoints.foreign.transformers_settings import read_config, read_preprocessing
from detrs.checkpoints.skeleton import Skeleton
from detrs.presets import preset


def test_every_name_of_the_table_is_distinct() -> None:
    two_stage = "deformable-detr-r50-two-stage"
    for name in ("detr-r50", "conditional-detr-r50", "deformable-detr-r50", two_stage, "dab-detr-r50"):
        model = preset(name).model
        links = renaming(model).links(models.build(replace(model, encoder_layers=1, decoder_layers=2)).state_dict())
        names = [each for link in links for each in link.read]
        assert len(names) == len(set(names))


AS_IN_THE_PAPER = {"dropout": 0.0, "cls_loss_coefficient": 1}
"""Of DAB-DETR; the defaults of ``transformers`` differ."""
PUBLISHED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "detr-r50": ("Detr", {}, 530, ""),
    "detr-r50-dc5": ("Detr", {"dilation": True}, 530, ""),
    "detr-r101": ("Detr", {"backbone": "resnet101"}, 785, ""),
    "detr-r101-dc5": ("Detr", {"backbone": "resnet101", "dilation": True}, 785, ""),
    "conditional-detr-r50": ("ConditionalDetr", {}, 588, ""),
    "conditional-detr-r101-dc5": ("ConditionalDetr", {"backbone": "resnet101", "dilation": True}, 843, ""),
    "deformable-detr-r50-single-scale": ("DeformableDetr", {"num_feature_levels": 1}, 533, r"\w+_embed\.[1-9]"),
    "deformable-detr-r50-single-scale-dc5": (
        "DeformableDetr", {"num_feature_levels": 1, "dilation": True}, 533, r"\w+_embed\.[1-9]",
    ),
    "deformable-detr-r50": ("DeformableDetr", {}, 545, r"\w+_embed\.[1-9]"),
    "deformable-detr-r50-refine": ("DeformableDetr", {"with_box_refine": True}, 585, r"bbox_embed\."),
    "deformable-detr-r50-two-stage": (
        "DeformableDetr", {"with_box_refine": True, "two_stage": True}, 598, r"\w+_embed\.",
    ),
    "dab-detr-r50": ("DabDetr", AS_IN_THE_PAPER, 608, r"model\.decoder\.bbox_embed\."),
    "dab-detr-r50-dc5": ("DabDetr", {**AS_IN_THE_PAPER, "dilation": True}, 608, r"model\.decoder\.bbox_embed\."),
}  # fmt: skip
"""Preset: detector of ``transformers``, its settings, tensors in a file, and those that files of version 5 omit."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_load_without_a_difference(name: str) -> None:
    """At full size, without memory. The older settings of the backbone are those of the published files."""
    family, settings, count, omitted = PUBLISHED[name]
    settings = {"num_labels": 91, **settings}
    with torch.device("meta"):
        theirs = getattr(transformers, f"{family}ForObjectDetection")(
            getattr(transformers, f"{family}Config")(**settings)
        )
    tensors = {key: value for key, value in theirs.state_dict().items() if not (omitted and re.match(omitted, key))}
    assert len(tensors) == count
    backbone = {"backbone_config": None, "backbone": settings.get("backbone", "resnet50"), "use_timm_backbone": True}
    labels = {str(row): name for row, name in enumerate(coco_classes(91).names)}
    model, hf_resnet, classes = read_config({**theirs.config.to_dict(), **settings, **backbone, "id2label": labels})
    assert classes == coco_classes(91)
    assert closest_experiment(model, read_preprocessing({})) == preset(name)
    with Skeleton():
        module = models.build(model)
    weights = renaming(model, hf_resnet, tensors).read(tensors, shapes(module), name)
    assert weights.keys() == module.state_dict().keys()
