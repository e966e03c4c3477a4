"""Weights of torchvision's ``fasterrcnn_resnet50_fpn`` to our Faster R-CNN and back.

Row 0 of its class head is background, which our model has as well but which is not one of its classes: 91 rows are 90
classes, with COCO's category ids 1 to 90. Files from before torchvision 0.13 have other names for three kinds of
tensors. BatchNorm is frozen unless the file has its counters, which models trained from scratch have. Images are RGB
with the mean and standard deviation of ImageNet, resized to (800, 1333).

torchvision sets the epsilon of frozen BatchNorm to 0 for its weights on COCO, which weights do not show. Here files
with the names of older versions, as the published file, and files with 91 rows have 0; others have 1e-5, its default.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from detrs.checkpoints.classes import NUM_IDS, coco_classes
from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.foreign.loading import check_settings, trained
from detrs.checkpoints.foreign.renaming import Rename, Renaming
from detrs.checkpoints.foreign.structure import Structure
from detrs.config.backbone import BackboneConfig
from detrs.config.faster_rcnn import FasterRCNNConfig
from detrs.data.preprocessing import Preprocessing
from detrs.errors import UserError

RESIZE_TO = (800, 1333)
"""``min_size`` and ``max_size`` of torchvision's model, in pixels."""
CLASS_ROWS = "roi_heads.box_predictor.cls_score.weight"
NAMES = Renaming(
    [
        Rename("backbone.body.{rest}", "backbone.body.{rest}"),
        *(
            Rename(f"backbone.fpn.{theirs}.{{i}}.0.{{rest}}", f"neck.{ours}.{{i}}.{{rest}}", spellings=(old,))
            for theirs, ours, old in (
                ("inner_blocks", "lateral", "backbone.fpn.inner_blocks.{i}.{rest}"),
                ("layer_blocks", "output", "backbone.fpn.layer_blocks.{i}.{rest}"),
            )
        ),
        Rename("rpn.head.conv.0.0.{rest}", "rpn.head.conv.0.0.{rest}", spellings=("rpn.head.conv.{rest}",)),
        Rename("rpn.head.{rest}", "rpn.head.{rest}"),
        Rename("roi_heads.box_head.{rest}", "head.hidden.{rest}"),
        Rename("roi_heads.box_predictor.cls_score.{rest}", "head.classes.{rest}"),
        Rename("roi_heads.box_predictor.bbox_pred.{rest}", "head.boxes.{rest}"),
    ]
)
OTHERS = {
    "rpn.head.conv.1.0.weight": "fasterrcnn_resnet50_fpn_v2, whose heads have more layers",
    "roi_heads.box_head.0.0.weight": "fasterrcnn_resnet50_fpn_v2, whose heads have more layers",
    "backbone.body.0.0.weight": "a model with a MobileNet backbone",
    "roi_heads.mask_predictor.mask_fcn_logits.weight": "Mask R-CNN",
    "roi_heads.keypoint_predictor.kps_score_lowres.weight": "Keypoint R-CNN",
}
"""Names in torchvision's other models with the same heads."""


def matches(keys: Collection[str]) -> bool:
    """Whether a state dict has the names of torchvision's Faster R-CNN, or of a variant that ``read`` rejects."""
    return CLASS_ROWS in keys and "rpn.head.cls_logits.weight" in keys


def read(tensors: Mapping[str, Tensor], source: object, args: Mapping[str, Any] | None = None) -> TrainedDetector:
    """The detector.

    Args:
        tensors: state dict of torchvision's model.
        source: the file, for messages.
        args: ignored; other readers have this argument.

    Raises:
        UserError: the weights are those of another model.
    """
    for name, other in OTHERS.items():
        if name in tensors:
            raise UserError(
                f"'{source}' has the weights of torchvision's {other}, which is not supported. Expected "
                "fasterrcnn_resnet50_fpn."
            )
    found = Structure(tensors, source)
    ratios = FasterRCNNConfig().aspect_ratios
    if (anchors := found.size("rpn.head.cls_logits.weight")) != len(ratios):
        raise UserError(
            f"'{source}' has {anchors} anchors per cell (rpn.head.cls_logits), but their aspect ratios are not in the "
            f"file. Expected {len(ratios)}, the default of torchvision."
        )
    from_scratch = "backbone.body.bn1.num_batches_tracked" in tensors
    on_coco = found.size(CLASS_ROWS) == NUM_IDS or "rpn.head.conv.weight" in tensors
    backbone = BackboneConfig(
        name=found.resnet("backbone.body."),
        stages=(2, 3, 4, 5),
        norm="batch" if from_scratch else "frozen",
        norm_eps=0.0 if on_coco and not from_scratch else None,
    )
    model = FasterRCNNConfig(
        num_classes=found.size(CLASS_ROWS) - 1,
        backbone=backbone,
        dim=found.size("rpn.head.cls_logits.weight", 1),
        hidden_dim=found.size(CLASS_ROWS, 1),
    )
    check_settings(model, source)
    preprocessing = Preprocessing(resize_to=RESIZE_TO, mean=backbone.mean, std=backbone.std)
    detector = trained(model, NAMES, tensors, coco_classes(model.num_classes), preprocessing, source)
    for name, counter in counters(detector.module).items():
        if name in tensors:
            counter.copy_(tensors[name])
    return detector


def to_official(detector: TrainedDetector) -> dict[str, Tensor]:
    """The state dict of torchvision's model.

    Raises:
        UserError: it is another detector.
    """
    model = detector.experiment.model
    if not isinstance(model, FasterRCNNConfig):
        raise UserError(f"Expected Faster R-CNN, got a model with {type(model).__name__}.")
    return NAMES.write(detector.module.state_dict()) | counters(detector.module)


def counters(module: nn.Module) -> dict[str, Tensor]:
    """Counters of BatchNorm, which have the same names in torchvision."""
    return {name: tensor for name, tensor in module.named_buffers() if name.endswith("num_batches_tracked")}
