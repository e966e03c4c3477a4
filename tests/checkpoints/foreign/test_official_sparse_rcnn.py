"""Weights of Sparse R-CNN with the names of its authors and of mmdetection."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from published_layouts import compared, empty, random, sparse_rcnn
from torch import Tensor

from detrs.checkpoints import load_detector, save_detector
from detrs.checkpoints.classes import coco_classes
from detrs.checkpoints.foreign import loading
from detrs.checkpoints.foreign.official_sparse_rcnn import LAYOUTS, matches, read, to_official
from detrs.checkpoints.foreign.pixel_format import BGR
from detrs.errors import UserError
from detrs.presets import preset

EACH = pytest.mark.parametrize("layout", LAYOUTS)


def small(layout: str, classes: int = 80) -> dict[str, Tensor]:
    return random(sparse_rcnn(layout, depth=18, proposals=7, dim=32, stages=2, classes=classes))


@EACH
@pytest.mark.parametrize(("depth", "proposals"), [(50, 100), (50, 300), (101, 100), (101, 300)])
def test_names_and_shapes_of_published_weights(
    layout: str, depth: int, proposals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is missing or unknown in either direction; weights have no memory here."""
    monkeypatch.setattr(loading, "load_model", compared)
    shapes = sparse_rcnn(layout, depth, proposals)
    tensors = empty(shapes)
    assert matches(tensors)
    detector = read(tensors, "sparse.pth")
    assert detector.experiment == preset(f"sparse-rcnn-r{depth}-{proposals}")
    assert detector.classes == coco_classes(80)
    assert detector.preprocessing.resize_to == (800, 1333)
    written = {name: tuple(tensor.shape) for name, tensor in to_official(detector, layout).items()}
    assert written == shapes
    if depth == 50:
        parameters = sum(p.numel() for p in detector.module.parameters())
        assert parameters == {100: 106_237_768, 300: 106_289_768}[proposals]


@EACH
def test_the_way_back_is_bit_exact(layout: str, tmp_path: Path) -> None:
    """Also after the detector was saved in our format."""
    tensors = small(layout)
    detector = read(tensors, "sparse.pth")
    save_detector(tmp_path / "detector.safetensors", detector)
    for each in (detector, load_detector(tmp_path / "detector.safetensors")):
        assert equal(to_official(each, layout), tensors)
    assert not detector.module.training


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_both_layouts_of_the_same_detector_give_the_same_weights() -> None:
    detector = read(small("official"), "sparse.pth")
    again = read(to_official(detector, "mmdetection"), "epoch_36.pth")
    assert equal(dict(again.module.state_dict()), dict(detector.module.state_dict()))


def test_where_tensors_belong() -> None:
    """Those that fit in several places: norms, both towers, queries, keys and values; golden values: tests/models."""
    tensors = small("official")
    module: Any = read(tensors, "sparse.pth").module
    stage, ours, head = "head.head_series.1", module.decoder.layers[1], module.decoder.heads[1]
    pairs = {
        "norm1.bias": ours.self_attention_norm.norm.bias,
        "norm2.bias": ours.cross_attention_norm.norm.bias,
        "norm3.bias": ours.feedforward_norm.norm.bias,
        "inst_interact.norm2.bias": ours.cross_attention.outer_norm.bias,
        "inst_interact.norm3.bias": ours.cross_attention.output_norm.bias,
        "cls_module.0.weight": head.class_tower[0].weight,
        "reg_module.3.weight": head.box_tower[3].weight,
    }
    for name, tensor in pairs.items():
        assert torch.equal(tensors[f"{stage}.{name}"], tensor), name
    packed = torch.cat(
        [ours.self_attention.attention.get_submodule(f"{k}_proj").bias for k in ("query", "key", "value")]
    )
    assert torch.equal(tensors[f"{stage}.self_attn.in_proj_bias"], packed)
    assert torch.equal(module.queries.embedding.weight[:, :4], tensors["init_proposal_boxes.weight"])
    body = module.backbone.body.state_dict()
    bottom_up = "backbone.bottom_up.res3.0"
    assert torch.equal(body["layer2.0.downsample.1.running_var"], tensors[f"{bottom_up}.shortcut.norm.running_var"])
    assert torch.equal(body["layer2.0.bn2.weight"], tensors[f"{bottom_up}.conv2.norm.weight"])
    assert torch.equal(module.neck.mapper.outputs[3].bias, tensors["backbone.fpn_output5.bias"])


@torch.no_grad()
@EACH
def test_weights_for_bgr_images_are_converted(layout: str) -> None:
    """The first convolution is reversed, and back; the features of the same image are equal."""
    tensors = small(layout)
    plain, swapped = read(tensors, "a.pth"), read(tensors, "a.pth", pixels=BGR)
    assert swapped.preprocessing == plain.preprocessing
    image = torch.randn(1, 3, 64, 96)
    for one, other in zip(plain.module.backbone(image), swapped.module.backbone(image.flip(1)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)
    assert equal(to_official(swapped, layout, BGR), tensors) and not equal(to_official(swapped, layout), tensors)


def test_pixels_are_those_of_the_file() -> None:
    other = BGR._replace(mean=(100.0, 110.0, 130.0))
    own = {"pixel_mean": torch.tensor(other.mean).view(3, 1, 1), "pixel_std": torch.tensor(other.std).view(3, 1, 1)}
    tensors = small("official")
    detector = read(tensors | own, "a.pth")
    assert detector.preprocessing.mean == pytest.approx((130 / 255, 110 / 255, 100 / 255), abs=1e-7)
    assert detector.experiment.model.backbone.mean == detector.preprocessing.mean
    assert equal(to_official(detector, "official", BGR), tensors)


def test_names_of_classes_are_those_of_mmdetection() -> None:
    tensors = small("mmdetection", classes=3)
    names = ["cat", "dog", "cow"]
    for meta in ({"CLASSES": names}, {"dataset_meta": {"classes": names}}, {"dataset_meta": {"CLASSES": names}}):
        assert read(tensors, "a.pth", {"meta": meta}).classes == (tuple(names), (0, 1, 2))
    for meta in ({}, {"CLASSES": ["cat", "cat", "dog"]}, {"CLASSES": ["cat"]}, {"CLASSES": "cat"}, {"dataset_meta": 1}):
        assert read(tensors, "a.pth", {"meta": meta}).classes == coco_classes(3)
    published = {"meta": {"CLASSES": list(coco_classes(80).names)}}
    assert read(small("mmdetection"), "a.pth", published).classes == coco_classes(80)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("init_proposal_features.weight"),
            "does not contain the tensor 'init_proposal_features.weight'",
        ),
        (lambda t: t.update({"init_proposal_boxes.weight": torch.zeros(6, 4)}), r"shape \(6, 4\), expected \(7, 4\)"),
        (lambda t: t.update({"init_proposal_features.weight": torch.zeros(7, 32, 1)}), "one box for each row"),
        (lambda t: t.update({"init_proposal_features.weight": torch.zeros(7)}), "expected at least 2 axes"),
        (lambda t: t.pop("backbone.fpn_output4.bias"), "1 missing: backbone.fpn_output4.bias"),
        (lambda t: t.pop("backbone.bottom_up.stem.conv1.weight"), "1 missing: backbone.bottom_up.stem.conv1.weight"),
        (
            lambda t: t.update({"backbone.bottom_up.stem.conv1.weight": torch.zeros(64)}),
            r"stem.conv1.weight \(64,\), expected \(64, 3, 7, 7\)",
        ),
        (lambda t: t.update({"roi_head.extra": torch.zeros(1)}), "1 unknown: roi_head.extra"),
        (
            lambda t: t.update({"head.head_series.1.norm1.bias": torch.zeros(31)}),
            r"head.head_series.1.norm1.bias \(31,\), expected \(32,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_rejected(change: Any, message: str) -> None:
    tensors = small("official")
    change(tensors)
    with pytest.raises(UserError, match=message) as error:
        read(tensors, "sparse.pth")
    assert "sparse.pth" in str(error.value)


def test_other_state_dicts_do_not_match_and_are_rejected() -> None:
    assert not matches({"init_proposal_features.weight", "backbone.conv1.weight"})
    with pytest.raises(UserError, match="'init_proposal_boxes.weight' of Sparse R-CNN"):
        read({}, "a.pth")


def test_other_detectors_are_not_written() -> None:
    detector = read(small("official"), "sparse.pth")
    with pytest.raises(UserError, match="Expected Sparse R-CNN, got a model with DETRConfig"):
        to_official(replace(detector, experiment=preset("detr-r50")))
