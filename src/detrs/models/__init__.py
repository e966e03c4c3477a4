"""One literal table: which configuration is of which detector."""

from types import ModuleType

from detrs.models import anchor_detr, conditional_detr, deformable_detr, detr
from detrs.models.anchor_detr import AnchorDETRConfig
from detrs.models.conditional_detr import ConditionalDETRConfig
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.models.detector import Detector
from detrs.models.detr import DETRConfig

ModelConfig = DETRConfig | ConditionalDETRConfig | AnchorDETRConfig | DeformableDETRConfig

MODELS: dict[type, ModuleType] = {
    DETRConfig: detr,
    ConditionalDETRConfig: conditional_detr,
    AnchorDETRConfig: anchor_detr,
    DeformableDETRConfig: deformable_detr,
}
"""Configuration -> module with its ``check(config)`` and ``build(config, pretrained)``."""


def check(config: ModelConfig) -> None:
    """Refuse settings that cannot be built.

    Raises:
        UserError: naming them.
    """
    MODELS[type(config)].check(config)


def build(config: ModelConfig, pretrained: bool = False) -> Detector:
    """The detector that ``config`` describes, freshly initialised.

    Args:
        config: one of the keys of ``MODELS``.
        pretrained: start the backbone from the weights that ``config.backbone.weights`` names.
    """
    detector: Detector = MODELS[type(config)].build(config, pretrained)
    return detector
