"""Object detectors of the DETR family: train them on your own images, evaluate and deploy them.

::

    experiment = detrs.preset("deformable-detr-small")
    experiment = replace(experiment, data=replace(experiment.data, path="my-data"))  # dataclasses.replace
    result = detrs.train(experiment, "runs/first")
    scores = detrs.evaluate(result.checkpoint)
    detections = detrs.load(result.checkpoint)("images/*.jpg", threshold=0.5)

Public names are imported on first use: ``import detrs`` alone does not import torch.
"""

from typing import TYPE_CHECKING, Any

from detrs.on_demand import on_demand

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

_public = on_demand(
    __name__,
    {
        "Detections": "detrs.structures",
        "Predictor": "detrs.predictor",
        "build": "detrs.models",
        "evaluate": "detrs.engine.evaluate:evaluate_checkpoint",
        "explain": "detrs.explanation.explain",
        "export": "detrs.exporting.export",
        "load": "detrs.predictor",
        "preset": "detrs.presets",
        "push_to_hub": "detrs.checkpoints.publishing",
        "train": "detrs.engine.train",
        "training": "detrs.engine.train",
    },
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("detrs")
    return _public(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
