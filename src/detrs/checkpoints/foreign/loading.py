"""From the weights and settings of a foreign checkpoint to a trained detector."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from detrs import config, models
from detrs.checkpoints.detector import TrainedDetector, shapes
from detrs.checkpoints.foreign.renaming import Renaming, listed
from detrs.checkpoints.skeleton import Skeleton
from detrs.config import Experiment
from detrs.config.data import OFFICIAL_SIZE
from detrs.config.models import ModelConfig, check_model
from detrs.data.preprocessing import Preprocessing
from detrs.errors import UserError
from detrs.models.detector import Model
from detrs.presets import PRESETS
from detrs.schema import to_dict
from detrs.structures import Classes


def trained(
    model: ModelConfig,
    renaming: Renaming,
    tensors: Mapping[str, Tensor],
    classes: Classes,
    preprocessing: Preprocessing,
    source: object,
) -> TrainedDetector:
    """A detector with foreign weights, on the CPU, in evaluation mode.

    Args:
        model: settings of our model.
        renaming: table of names.
        tensors: their state dict.
        classes: of the detector.
        preprocessing: of the detector.
        source: file or folder, for messages.

    Raises:
        UserError: the settings are invalid, or the weights do not fit them.
    """
    experiment = closest_experiment(model, preprocessing)
    try:
        config.validate(experiment)
        with Skeleton():
            skeleton = models.build(experiment.model)
    except UserError as error:
        raise UserError(f"Cannot use the checkpoint '{source}': {error}") from error
    return TrainedDetector(
        module=load_model(experiment.model, skeleton, renaming, tensors, source),
        classes=classes,
        preprocessing=preprocessing,
        experiment=experiment,
        scores={},
        step=0,
        epoch=0,
    )


def check_settings(model: ModelConfig, source: object) -> None:
    """Check settings that follow from a file, before tables and modules of these sizes are built.

    Raises:
        UserError: they are invalid.
    """
    try:
        check_model(model)
    except UserError as error:
        raise UserError(f"Cannot use the checkpoint '{source}': {error}") from error


def load_model(
    model: ModelConfig, skeleton: Model, renaming: Renaming, tensors: Mapping[str, Tensor], source: object
) -> Model:
    """Our model with foreign weights, on the CPU, in evaluation mode; names and shapes are compared first.

    Args:
        model: settings of our model.
        skeleton: our model, without values.
        renaming: table of names.
        tensors: their state dict.
        source: file or folder, for messages.

    Raises:
        UserError: the weights do not fit the model, or contain NaN or infinity.
    """
    weights = renaming.read(tensors, shapes(skeleton), source)
    if wrong := [name for name, tensor in tensors.items() if not (tensor.is_meta or tensor.isfinite().all())]:
        raise UserError(f"'{source}' contains NaN or infinity in {listed(wrong)}. Use another copy.")
    with Skeleton("cpu"):
        module = models.build(model)
    module.load_state_dict(weights)
    return module.eval()


def closest_experiment(model: ModelConfig, preprocessing: Preprocessing) -> Experiment:
    """The preset of the same detector with the most equal settings, with ``model`` and the size of images replaced."""
    wanted = flat(to_dict(model))
    candidates = {name: build() for name, build in PRESETS.items()}
    equal = {
        name: len(wanted.items() & flat(to_dict(experiment.model)).items())
        for name, experiment in candidates.items()
        if type(experiment.model) is type(model)
    }
    name = max(equal, key=lambda name: equal[name])  # the first of several
    preset = candidates[name]
    backbone = replace(model.backbone, mean=preprocessing.mean, std=preprocessing.std)
    data = replace(preset.data, resize_to=preprocessing.resize_to)
    if data.augment == "official" and preprocessing.resize_to != OFFICIAL_SIZE:
        data = replace(data, augment="crop")
    return replace(preset, name=name, model=replace(model, backbone=backbone), data=data)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as one level of text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": repr(value)}
    return found
