"""Settings that cannot be built are refused with the name of the setting, before anything is built."""

from dataclasses import replace

import pytest

from detrs.errors import UserError
from detrs.models import build
from detrs.presets import PRESETS, preset

TINY = (
    "detr-tiny",
    "conditional-detr-tiny",
    "anchor-detr-tiny",
    "deformable-detr-tiny",
    "efficient-detr-tiny",
    "faster-rcnn-tiny",
    "sparse-rcnn-tiny",
    "dynamic-detr-tiny",
    "dab-detr-tiny",
    "dab-deformable-detr-tiny",
    "dino-tiny",
)


def refuse(name: str, named: str, **change: object) -> None:
    with pytest.raises(UserError, match=named):
        build(replace(preset(name).model, **change))


def test_every_detector_is_among_them() -> None:
    assert {type(preset(name).model) for name in TINY} == {type(preset(name).model) for name in PRESETS}


OUT_OF_RANGE = [
    *((count, 0) for count in ("num_classes", "dim", "num_heads", "decoder_layers", "ffn_dim", "num_queries")),
    ("encoder_layers", -1),
    ("dropout", 1.0),
    ("dropout", -0.1),
    ("dim", 66),
    ("num_heads", 3),
]


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        *(
            (name, setting, value)
            for name in TINY
            for setting, value in OUT_OF_RANGE
            if hasattr(preset(name).model, setting) and (name, setting, value) != ("faster-rcnn-tiny", "dim", 66)
        ),
        ("faster-rcnn-tiny", "num_proposals", 0),
        ("faster-rcnn-tiny", "anchor_sizes", (0.0, 8.0)),
        ("faster-rcnn-tiny", "nms_iou", 0.0),
    ],
)
def test_a_number_out_of_range_is_refused_by_any_detector(name: str, setting: str, value: object) -> None:
    refuse(name, f"model.{setting}", **{setting: value})


@pytest.mark.parametrize("name", ["detr-tiny", "conditional-detr-tiny", "anchor-detr-tiny"])
def test_detectors_on_one_map_refuse_two(name: str) -> None:
    refuse(name, "model.backbone.stages", backbone=replace(preset(name).model.backbone, stages=(4, 5), dilated=False))


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("anchor-detr-tiny", {"dim": 48}, "model.dim"),
        ("anchor-detr-tiny", {"num_patterns": 0}, "model.num_patterns"),
        ("anchor-detr-tiny", {"num_patterns": 3}, "multiple of model.num_patterns"),
        ("sparse-rcnn-tiny", {"dynamic_dim": 0}, "model.dynamic_dim"),
        ("sparse-rcnn-tiny", {"canonical_size": 0.0}, "model.canonical_size"),
        ("sparse-rcnn-tiny", {"box_tower": -1}, "model.box_tower"),
        ("deformable-detr-tiny", {"dim": 72}, "model.dim"),
        ("deformable-detr-tiny", {"num_levels": 0}, "model.num_levels"),
        ("deformable-detr-tiny", {"num_levels": 2}, "model.num_levels"),
        ("deformable-detr-tiny", {"num_points": 0}, "model.num_points"),
        ("deformable-detr-tiny", {"queries": "proposals", "reference": "keep"}, "model.reference"),
    ],
)
def test_contradictions_are_refused(name: str, change: dict[str, object], named: str) -> None:
    refuse(name, named, **change)
