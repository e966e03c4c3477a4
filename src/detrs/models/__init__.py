"""The models: one literal table from configuration class to module.

Every module has three functions: ``build(config, pretrained)`` returns a ``Model``; ``check(config)`` rejects settings
that contradict each other; ``check_capacity(config, max_objects)`` rejects data whose images have more objects than the
model can detect.
"""

from types import ModuleType
from typing import Protocol, runtime_checkable

from detrs import schema
from detrs.backbones.timm import BackboneConfig
from detrs.errors import UserError
from detrs.isolation import float32_by_default
from detrs.models import (
    anchor_detr,
    conditional_detr,
    deformable_detr,
    detr,
    dynamic_detr,
    efficient_detr,
    faster_rcnn,
    sparse_rcnn,
)
from detrs.models.anchor_detr import AnchorDETRConfig
from detrs.models.conditional_detr import ConditionalDETRConfig
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.models.detector import Model
from detrs.models.detr import DETRConfig
from detrs.models.dynamic_detr import DynamicDETRConfig
from detrs.models.efficient_detr import EfficientDETRConfig
from detrs.models.faster_rcnn import FasterRCNNConfig
from detrs.models.sparse_rcnn import SparseRCNNConfig

ModelConfig = (
    DETRConfig
    | ConditionalDETRConfig
    | AnchorDETRConfig
    | DeformableDETRConfig
    | DynamicDETRConfig
    | EfficientDETRConfig
    | FasterRCNNConfig
    | SparseRCNNConfig
)


@runtime_checkable
class ModelSettings(Protocol):
    """The fields that the configuration of every model has."""

    @property
    def num_classes(self) -> int: ...

    @property
    def backbone(self) -> BackboneConfig: ...


MODELS: dict[type, ModuleType] = {
    DETRConfig: detr,
    ConditionalDETRConfig: conditional_detr,
    AnchorDETRConfig: anchor_detr,
    DeformableDETRConfig: deformable_detr,
    DynamicDETRConfig: dynamic_detr,
    EfficientDETRConfig: efficient_detr,
    FasterRCNNConfig: faster_rcnn,
    SparseRCNNConfig: sparse_rcnn,
}
"""Configuration -> module."""


def check(config: ModelSettings) -> None:
    """Check that a model can be built with these settings.

    Raises:
        UserError: naming them.
    """
    if type(config) not in MODELS:
        raise UserError(
            f"Expected the configuration of a model, for example detrs.preset('detr-r50').model, got {config!r:.80}."
        )
    schema.check(config, "model")
    MODELS[type(config)].check(config)


def check_capacity(config: ModelSettings, max_objects: int) -> None:
    """Check that no image has more objects than the model can detect.

    Raises:
        UserError: naming the setting to raise.
    """
    MODELS[type(config)].check_capacity(config, max_objects)


def build(config: ModelSettings, pretrained: bool = False) -> Model:
    """A model with random weights.

    Args:
        config: an instance of one of the keys of ``MODELS``, for example ``detrs.preset("detr-r50").model``.
        pretrained: initialize the backbone with the weights that ``config.backbone.weights`` names.

    Raises:
        UserError: for settings out of range or settings that contradict each other.
    """
    check(config)
    with float32_by_default():
        model: Model = MODELS[type(config)].build(config, pretrained)
    return model
