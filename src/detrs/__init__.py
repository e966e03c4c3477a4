"""Object detectors of the DETR family: train them on your own images, evaluate and deploy them.

::

    experiment = detrs.preset("deformable-detr-small")
    experiment = replace(experiment, data=replace(experiment.data, path="my-data"))  # dataclasses.replace
    result = detrs.train(experiment, "runs/first")
    scores = detrs.evaluate(result.checkpoint)
    detections = detrs.load(result.checkpoint)("images/*.jpg", threshold=0.5)

Public names are imported on first use: ``import detrs`` alone does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detrs.checkpoints.publishing import push_to_hub
    from detrs.engine.evaluate import evaluate_checkpoint as evaluate
    from detrs.engine.train import train, training
    from detrs.explanation.explain import explain
    from detrs.exporting.export import export
    from detrs.models import build
    from detrs.predictor import Predictor, load
    from detrs.presets import preset
    from detrs.structures import Detections

    __version__: str

__all__ = [
    "Detections",
    "Predictor",
    "__version__",
    "build",
    "evaluate",
    "explain",
    "export",
    "load",
    "preset",
    "push_to_hub",
    "train",
    "training",
]

_HOMES = {
    "Detections": ("detrs.structures", "Detections"),
    "Predictor": ("detrs.predictor", "Predictor"),
    "build": ("detrs.models", "build"),
    "evaluate": ("detrs.engine.evaluate", "evaluate_checkpoint"),
    "explain": ("detrs.explanation.explain", "explain"),
    "export": ("detrs.exporting.export", "export"),
    "load": ("detrs.predictor", "load"),
    "preset": ("detrs.presets", "preset"),
    "push_to_hub": ("detrs.checkpoints.publishing", "push_to_hub"),
    "train": ("detrs.engine.train", "train"),
    "training": ("detrs.engine.train", "training"),
}
"""Public name -> module and name there."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("detrs")
    elif name in _HOMES:
        module, there = _HOMES[name]
        value = getattr(importlib.import_module(module), there)
    else:
        raise AttributeError(f"module 'detrs' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
