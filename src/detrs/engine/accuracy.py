"""Accuracy of several presets after the same time of training on the same images, with several seeds.

``accuracy_run`` trains and measures in a process of its own; ``accuracy_results`` is the file of results.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from detrs import config
from detrs.backbones.timm import with_weights
from detrs.choices import Precision
from detrs.config import Experiment
from detrs.config.data import NO_SPLIT
from detrs.data.opening import open_splits
from detrs.devices import pick_device
from detrs.engine import accuracy_run
from detrs.engine.accuracy_results import Line, append, check_writable, finished, key
from detrs.engine.compatibility import for_data
from detrs.engine.fitting import fitted, training_images
from detrs.errors import UserError
from detrs.models import build
from detrs.precision import resolve
from detrs.presets import preset
from detrs.presets.fitted import FITTED, FITTED_SETTINGS

FIRST_SEED = 42
ENDLESS = 1_000_000
"""Epochs of a run that its minutes end."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared. Settings that are ``None`` are those of each preset."""

    presets: tuple[str, ...]
    data: str
    minutes: float
    """Of each run, with its evaluations."""
    seeds: int = 3
    """Number of runs of each preset."""
    image_size: tuple[int, int] | None = None
    """(short, long) of all; ``None``: that of the first preset."""
    batch_size: int | None = None
    backbone: str | None = None
    """Weights of all presets whose backbone is pretrained: a timm model, or a ``.safetensors`` file of one."""
    evaluate_every: int = 1
    """Epochs between evaluations."""
    val_fraction: float | None = None
    device: str = "auto"
    precision: Precision = "auto"
    threads: int | None = None


def check(comparison: Comparison) -> None:
    """Check names and numbers; PyTorch and the data are not needed.

    Raises:
        UserError: there is no such preset, or a number is out of range.
    """
    if not comparison.presets:
        raise UserError("Nothing to compare: expected at least one preset. See: detrs presets")
    for name in comparison.presets:
        preset(name)
    if not math.isfinite(comparison.minutes) or comparison.minutes <= 0:
        raise UserError(f"--minutes must be above 0, got {comparison.minutes:g}.")
    for flag, value in {"seeds": comparison.seeds, "evaluate-every": comparison.evaluate_every}.items():
        if value < 1:
            raise UserError(f"--{flag} must be at least 1, got {value}.")


def experiments(comparison: Comparison) -> list[tuple[Experiment, Line]]:
    """Every run, seed after seed, with the ``setting`` that all have in common.

    Each has the recipe of its preset, scaled to the minutes.

    Raises:
        UserError: an argument is invalid, or a preset cannot be trained on the data.
    """
    check(comparison)
    device = pick_device(comparison.device)
    size = comparison.image_size or preset(comparison.presets[0]).data.resize_to
    prepared = [_prepared(preset(name), comparison, size) for name in dict.fromkeys(comparison.presets)]
    train_set, val_set = open_splits(prepared[0].data)
    assert val_set is not None
    given = set(FITTED_SETTINGS) - {"model.num_queries", "model.backbone.stages", "evaluation.max_detections"}
    for number, experiment in enumerate(prepared):  # all of them, before the first takes its minutes
        if experiment.name in FITTED:  # as in detrs train
            experiment = prepared[number] = fitted(experiment, training_images(train_set), given)[0]
        try:
            build(for_data(experiment, train_set, val_set).model)
        except UserError as error:
            raise UserError(f"{experiment.name} cannot be trained on '{comparison.data}': {error}") from None
    digest = hashlib.sha256((train_set.fingerprint() + val_set.fingerprint()).encode()).hexdigest()
    setting = {
        "data": data_name(comparison),
        "fingerprint": digest[:16],
        "num_images": [len(train_set), len(val_set)],
        "minutes": comparison.minutes,
        "image_size": list(size),
        "evaluate_every": comparison.evaluate_every,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper(),
        "threads": comparison.threads or torch.get_num_threads(),
    }
    seeds = range(FIRST_SEED, FIRST_SEED + comparison.seeds)
    return [(replace(experiment, seed=seed), setting) for seed in seeds for experiment in prepared]


def data_name(comparison: Comparison) -> str:
    """The dataset in results: ``digits``, or the name of its folder."""
    return comparison.data if comparison.data == "digits" else Path(comparison.data).resolve().name


def _prepared(own: Experiment, comparison: Comparison, size: tuple[int, int]) -> Experiment:
    augment = own.data.augment if own.data.augment != "official" else "crop"  # the same recipe at any size
    if comparison.data == "digits":
        augment = "none"  # as in the demo
    backbone = own.model.backbone
    if comparison.backbone is not None and backbone.weights != "none":
        backbone = with_weights(backbone, comparison.backbone)
    data = replace(
        own.data,
        path=comparison.data,
        resize_to=size,
        augment=augment,
        batch_size=own.data.batch_size if comparison.batch_size is None else comparison.batch_size,
        val_fraction=comparison.val_fraction,
    )
    assert data.val_split != NO_SPLIT
    experiment = replace(
        own,
        model=replace(own.model, backbone=backbone),
        data=data,
        schedule=replace(own.schedule, epochs=ENDLESS, max_minutes=comparison.minutes),
        evaluation=replace(own.evaluation, every_epochs=comparison.evaluate_every, every_steps=None, patience=None),
        runtime=replace(
            own.runtime,
            device=comparison.device,
            precision=resolve(comparison.precision, pick_device(comparison.device)),
            threads=comparison.threads,
        ),
    )
    config.validate(experiment)
    return experiment


def compare(
    comparison: Comparison,
    results: Path,
    *,
    on_run: Callable[[int, int, Experiment, bool], None] | None = None,
) -> Iterator[Line]:
    """Train every preset with every seed, and yield the lines of all runs.

    Args:
        comparison: what is compared.
        results: JSON lines; runs in it are not repeated, and each new one is appended.
        on_run: called before each run with its number, the number of runs, the experiment, and whether it is done.

    Raises:
        UserError: an argument is invalid, or a run failed. Lines of earlier runs are kept.
    """
    runs = experiments(comparison)
    check_writable(results)
    for number, (experiment, setting) in enumerate(runs, start=1):
        wanted = key(experiment, setting)
        line = finished(results, wanted)
        if on_run is not None:
            on_run(number, len(runs), experiment, line is not None)
        if line is None:
            line = {**wanted, "library": "detrs", **facts(experiment), **accuracy_run.measure_alone(experiment)}
            append(results, line)
        yield line


def facts(experiment: Experiment) -> Line:
    """What readers of a result need of the recipe."""
    backbone = experiment.model.backbone
    weights = backbone.weights if backbone.weights in ("timm", "none") else Path(backbone.weights).name
    return {
        "batch_size": experiment.data.batch_size,
        "precision": experiment.runtime.precision,
        "backbone": f"{backbone.name}, weights {weights}",
    }
