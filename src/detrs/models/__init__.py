"""The models: settings to a detector. ``detrs.config.models`` has the table of their modules."""

import importlib
from types import ModuleType

from detrs.config.models import MODELS, ModelConfig, ModelSettings, check_model
from detrs.isolation import float32_by_default
from detrs.models.detector import Model

__all__ = ["MODELS", "Model", "ModelConfig", "ModelSettings", "build", "module_of"]


def module_of(config: ModelSettings) -> ModuleType:
    """The module that builds a model with these settings, imported if it is the first."""
    return importlib.import_module(MODELS[type(config)])


def build(config: ModelSettings, pretrained: bool = False) -> Model:
    """A model with random weights.

    Args:
        config: an instance of one of the keys of ``MODELS``, for example ``detrs.preset("detr-r50").model``.
        pretrained: initialize the backbone with the weights that ``config.backbone.weights`` names.

    Raises:
        UserError: for settings out of range or settings that contradict each other.
    """
    check_model(config)
    with float32_by_default():
        model: Model = module_of(config).build(config, pretrained)
    return model
