"""Weights of torchvision's Faster R-CNN."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from published_layouts import compared
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from detrs.boxes import cxcywh_to_xyxy
from detrs.checkpoints import load_detector, save_detector
from detrs.checkpoints.classes import coco_classes
from detrs.checkpoints.foreign import loading
from detrs.checkpoints.foreign.torchvision_faster_rcnn import matches, read, to_official
from detrs.errors import UserError
from detrs.layers import region_proposals
from detrs.presets import preset
from detrs.structures import Batch

SIZE = (128, 192)
"""(height, width), multiples of 64: for others, torchvision's anchors of P6 do not have the stride 64."""
NO_WEIGHTS: dict[str, Any] = {"weights": None, "weights_backbone": None}


def torchvision(norm: type[nn.Module] = FrozenBatchNorm2d, classes: int = 91, **options: Any) -> Any:
    """Their model with the smallest ResNet and random weights."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=norm, trainable_layers=5)
    return randomized(detection.FasterRCNN(backbone, num_classes=classes, **options))


@torch.no_grad()
def randomized(model: nn.Module) -> nn.Module:
    """Weights that give detections."""
    for name, tensor in model.state_dict().items():
        if "running_var" in name:
            tensor.fill_(1.5)
        elif "num_batches_tracked" in name:
            tensor.fill_(17)
        elif "rpn" in name or "box_predictor" in name:
            tensor.add_(torch.randn_like(tensor) * (0.01 if "bbox" in name else 0.1))
    return model.eval()


def test_names_and_shapes_of_the_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ``fasterrcnn_resnet50_fpn`` with pretrained weights: BatchNorm is frozen; weights have no memory here."""
    monkeypatch.setattr(loading, "load_model", compared)
    with torch.device("meta"):
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
        )
        theirs = detection.FasterRCNN(backbone, num_classes=91).state_dict()
    assert matches(theirs)
    detector = read(theirs, "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth")
    expected = preset("faster-rcnn-r50-fpn")
    backbone = replace(expected.model.backbone, norm_eps=0.0)
    assert detector.experiment == replace(expected, model=replace(expected.model, backbone=backbone))
    assert detector.classes == coco_classes(90)
    assert detector.classes.names[0] == "person" and detector.classes.category_ids == tuple(range(1, 91))
    assert detector.preprocessing.resize_to == (800, 1333)
    written = {name: tensor.shape for name, tensor in to_official(detector).items()}
    assert written == {name: tensor.shape for name, tensor in theirs.items()}


def test_random_weights_of_torchvisions_own_function() -> None:
    """Without pretrained weights BatchNorm is not frozen, and its counters are weights as well."""
    theirs: Any = detection.fasterrcnn_resnet50_fpn(**NO_WEIGHTS)
    tensors = theirs.state_dict()
    detector = read(tensors, "fasterrcnn.pth")
    assert detector.experiment.model.backbone.norm == "batch"
    assert sum(p.numel() for p in detector.module.parameters()) == 41_808_406
    assert equal(to_official(detector), tensors)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
def test_the_way_back_is_bit_exact(norm: type[nn.Module], tmp_path: Path) -> None:
    """Also after the detector was saved in our format."""
    tensors = torchvision(norm, classes=6).state_dict()
    detector = read(tensors, "model.pth")
    save_detector(tmp_path / "detector.safetensors", detector)
    for each in (detector, load_detector(tmp_path / "detector.safetensors")):
        assert equal(to_official(each), tensors)


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
@torch.no_grad()
def test_detections_equal_those_of_torchvision(norm: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """From pixels to category ids, with their transform and our preprocessing.

    Without proposals smaller than a cell, whose features differ at the border (a documented deviation).
    """
    monkeypatch.setattr(region_proposals, "MIN_SIDE", 4.0)
    theirs = torchvision(norm, min_size=SIZE[0], max_size=SIZE[1])
    theirs.rpn.min_size = 4.0
    if norm is FrozenBatchNorm2d:
        overwrite_eps(theirs, 0.0)  # as torchvision does for its weights on COCO
    detector = read(theirs.state_dict(), "model.pth")
    ours: Any = detector.module
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (3, 3, *SIZE), generator=generator, dtype=torch.uint8)
    expected = theirs.double()(list(pixels.double() / 255))
    batch = detector.preprocessing.normalize(Batch(pixels, torch.zeros(3, *SIZE, dtype=torch.bool), ()))
    found = ours.double().detect(batch.images.double(), batch.padding)
    scale = torch.tensor([SIZE[1], SIZE[0]] * 2)
    for i, each in enumerate(expected):
        count = len(each["scores"])
        assert count > 5 and (found.scores[i, count:] == 0).all()
        ids = [detector.classes.category_ids[label] for label in found.labels[i, :count]]
        assert ids == each["labels"].tolist()
        torch.testing.assert_close(found.scores[i, :count], each["scores"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(cxcywh_to_xyxy(found.boxes[i, :count]) * scale, each["boxes"], atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_epsilon_of_frozen_batch_norm_is_that_of_torchvision(tmp_path: Path) -> None:
    """0 for 91 rows and for older names, also after the detector was saved in our format; otherwise the default."""
    for classes, old, epsilon in ((91, False, 0.0), (6, True, 0.0), (6, False, 1e-5)):
        theirs = torchvision(classes=classes)
        theirs.backbone.body.bn1.running_var.fill_(1e-5)
        overwrite_eps(theirs, epsilon)
        tensors = theirs.state_dict()
        if old:
            tensors = {name.replace("rpn.head.conv.0.0.", "rpn.head.conv."): tensor for name, tensor in tensors.items()}
        save_detector(tmp_path / "detector.safetensors", read(tensors, "model.pth"))
        ours: Any = load_detector(tmp_path / "detector.safetensors").module
        image = torch.randn(1, 3, 64, 96)
        for mine, other in zip(ours.backbone(image), theirs.backbone.body(image).values(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


def test_names_of_older_files() -> None:
    """Of feature pyramid and proposals, before torchvision 0.13."""
    tensors = torchvision(classes=6).state_dict()
    older = {}
    for name, tensor in tensors.items():
        short = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        older[short.replace(".0.", ".") if "inner_blocks" in name or "layer_blocks" in name else short] = tensor
    theirs = detection.FasterRCNN(torchvision().backbone, num_classes=6)
    theirs.load_state_dict(older)
    assert older.keys() != tensors.keys() and equal(theirs.state_dict(), tensors)
    assert equal(to_official(read(older, "old.pth")), tensors)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (detection.fasterrcnn_resnet50_fpn_v2, "fasterrcnn_resnet50_fpn_v2, whose heads have more layers"),
        (detection.fasterrcnn_mobilenet_v3_large_fpn, "a model with a MobileNet backbone"),
        (detection.maskrcnn_resnet50_fpn, "Mask R-CNN"),
        (detection.keypointrcnn_resnet50_fpn, "Keypoint R-CNN"),
    ],
)
def test_other_models_of_torchvision_are_rejected(build: Any, message: str) -> None:
    with torch.device("meta"):
        tensors = build(**NO_WEIGHTS).state_dict()
    assert matches(tensors)
    with pytest.raises(UserError, match=f"'other.pth' has the weights of torchvision's {message}.* Expected faster"):
        read(tensors, "other.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("roi_heads.box_head.fc7.bias"), "1 missing: roi_heads.box_head.fc7.bias"),
        (lambda t: t.pop("backbone.fpn.inner_blocks.3.0.bias"), "1 missing: backbone.fpn.inner_blocks.3.0.bias"),
        (lambda t: t.update({"head.extra": torch.zeros(1)}), "1 unknown: head.extra"),
        (
            lambda t: t.update({"roi_heads.box_predictor.bbox_pred.bias": torch.zeros(4)}),
            r"bbox_pred.bias \(4,\), expected \(24,\)",
        ),
        (lambda t: t.update({"rpn.head.cls_logits.weight": torch.zeros(5, 256, 1, 1)}), "has 5 anchors per cell"),
        (lambda t: t.pop("roi_heads.box_predictor.cls_score.weight"), "does not contain the tensor"),
    ],
)
def test_weights_that_do_not_fit_are_rejected(change: Any, message: str) -> None:
    tensors = torchvision(classes=6).state_dict()
    change(tensors)
    with pytest.raises(UserError, match=message) as error:
        read(tensors, "model.pth")
    assert "model.pth" in str(error.value)


def test_other_detectors_do_not_match_and_are_not_written() -> None:
    assert not matches({"rpn.head.cls_logits.weight", "backbone.body.conv1.weight"})
    detector = read(torchvision(classes=6).state_dict(), "model.pth")
    with pytest.raises(UserError, match="Expected Faster R-CNN, got a model with DETRConfig"):
        to_official(replace(detector, experiment=preset("detr-r50")))
