"""The detectors: one literal table from settings to the module that builds them.

The settings of every detector have two methods, ``check()``, which rejects settings that contradict each other, and
``check_capacity(max_objects)``, which rejects data whose images have more objects than the detector can find. The
module has a function ``build(config, pretrained)``, which returns a ``Model``.
"""

from typing import Protocol, runtime_checkable

from detrs import schema
from detrs.config.anchor_detr import AnchorDETRConfig
from detrs.config.backbone import BackboneConfig
from detrs.config.conditional_detr import ConditionalDETRConfig
from detrs.config.dab_deformable_detr import DABDeformableDETRConfig
from detrs.config.dab_detr import DABDETRConfig
from detrs.config.deformable_detr import DeformableDETRConfig
from detrs.config.detr import DETRConfig
from detrs.config.dino import DINOConfig
from detrs.config.dynamic_detr import DynamicDETRConfig
from detrs.config.efficient_detr import EfficientDETRConfig
from detrs.config.faster_rcnn import FasterRCNNConfig
from detrs.config.sparse_rcnn import SparseRCNNConfig
from detrs.errors import UserError

ModelConfig = (
    DETRConfig
    | ConditionalDETRConfig
    | AnchorDETRConfig
    | DeformableDETRConfig
    | DynamicDETRConfig
    | EfficientDETRConfig
    | FasterRCNNConfig
    | SparseRCNNConfig
    | DABDETRConfig
    | DABDeformableDETRConfig
    | DINOConfig
)

MODELS: dict[type, str] = {
    DETRConfig: "detrs.models.detr",
    ConditionalDETRConfig: "detrs.models.conditional_detr",
    AnchorDETRConfig: "detrs.models.anchor_detr",
    DeformableDETRConfig: "detrs.models.deformable_detr",
    DynamicDETRConfig: "detrs.models.dynamic_detr",
    EfficientDETRConfig: "detrs.models.efficient_detr",
    FasterRCNNConfig: "detrs.models.faster_rcnn",
    SparseRCNNConfig: "detrs.models.sparse_rcnn",
    DABDETRConfig: "detrs.models.dab_detr",
    DABDeformableDETRConfig: "detrs.models.dab_deformable_detr",
    DINOConfig: "detrs.models.dino",
}
"""Settings -> module, which is imported when a model is built."""


@runtime_checkable
class ModelSettings(Protocol):
    """What the settings of every model have."""

    @property
    def num_classes(self) -> int: ...

    @property
    def backbone(self) -> BackboneConfig: ...

    def check(self) -> None:
        """Check that settings do not contradict each other.

        Raises:
            UserError: naming them.
        """

    def check_capacity(self, max_objects: int) -> None:
        """Check that no image has more objects than the model can detect.

        Raises:
            UserError: naming the setting to raise.
        """


def check_model(config: ModelSettings) -> None:
    """Check that a model can be built with these settings.

    Raises:
        UserError: naming them.
    """
    if type(config) not in MODELS:
        raise UserError(
            f"Expected the configuration of a model, for example detrs.preset('detr-r50').model, got {config!r:.80}."
        )
    schema.check(config, "model")
    config.check()
