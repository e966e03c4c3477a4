"""One literal table: which configuration builds which detector."""

from collections.abc import Callable

from detrs.models import deformable_detr
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.models.detector import Detector

ModelConfig = DeformableDETRConfig

MODELS: dict[type, Callable[..., Detector]] = {
    DeformableDETRConfig: deformable_detr.build,
}


def build(config: ModelConfig, pretrained: bool = False) -> Detector:
    """The detector that ``config`` describes, freshly initialised.

    Args:
        config: one of the keys of ``MODELS``.
        pretrained: start the backbone from the weights that ``config.backbone.weights`` names.
    """
    return MODELS[type(config)](config, pretrained)
