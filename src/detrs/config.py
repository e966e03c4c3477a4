"""An experiment as data: everything that decides a result, frozen and keyword-only.

Only ``runtime`` never changes the result. Saved as ``experiment.json``; unknown keys are errors with a suggestion.
"""

import dataclasses
import json
import math
import operator
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from detrs import files, models
from detrs.criterion.set_criterion import CriterionConfig
from detrs.errors import UserError, did_you_mean
from detrs.models import MODELS, ModelConfig
from detrs.models.deformable_detr import DeformableDETRConfig

OFFICIAL_SIZE = (800, 1333)
OFFICIAL_MIN_SCALE = 0.6
"""What DETR's own recipe trains at: ``image_size`` and ``min_scale``."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which pictures, and what happens to them before the detector sees them."""

    path: str = ""
    """Folder of a COCO data set, or ``digits`` for the built-in demo set."""
    train_split: str = "train"
    """Name of the split to train on."""
    val_split: str = "val"
    """Name of the split to evaluate on (``val``, ``valid`` and ``validation`` are the same word)."""
    image_size: tuple[int, int] = OFFICIAL_SIZE
    """(short, long) in pixels: the short side becomes ``short`` unless the long side would exceed ``long``."""
    augment: Literal["none", "flip", "crop", "official"] = "crop"
    """``flip``: horizontal flip and multi-scale. ``crop``: and a random crop in half of the images, scaled to
    ``image_size``. ``official``: DETR's own recipe, at its own sizes only (480..800, 1333)."""
    mirror: bool = True
    """Flip half of the training images horizontally; not with ``none``. False where left and right mean something
    (text, digits, arrows); the built-in digits are never mirrored."""
    min_scale: float = OFFICIAL_MIN_SCALE
    """Multi-scale: the short side is drawn from 11 steps between ``min_scale`` and 1 times ``image_size``; not with
    ``none``."""
    batch_size: int = 16
    """Images per optimizer step, over all processes and accumulated micro-batches."""
    padded_together: int = 0
    """Images padded to one common size. 0: the whole batch, so that results do not depend on how it is divided.
    N: N after each other, or the micro-batch of a process where that is larger; the authors trained with 2 images
    on a device, with 1 for DC5 and Anchor DETR, and less padding than a large batch has."""
    keep_empty: bool = True
    """Train on images without objects, as negatives."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with the parameter groups of the official repositories (betas 0.9, 0.999; eps 1e-8)."""

    lr: float = 2e-4
    """Learning rate of the transformer and the heads."""
    backbone_lr_factor: float = 0.1
    """Learning rate of the backbone, relative to ``lr``; 0 freezes it."""
    sampling_lr_factor: float = 0.1
    """Learning rate of sampling offsets and reference points, relative to ``lr`` (Deformable DETR, A.4);
    the other detectors have none."""
    weight_decay: float = 1e-4
    """Decoupled weight decay, on all parameters as the official repositories do."""
    clip_norm: float = 0.1
    """L2 norm to which the gradient of all parameters together is clipped; 0: no clipping."""
    ema_decay: float = 0.0
    """Decay per step of the exponential moving average of the weights that is evaluated and saved as ``best``;
    0: no average."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How long, and how the learning rate changes on the way."""

    epochs: int = 50
    """Passes over the training images."""
    kind: Literal["step", "cosine"] = "step"
    """``step``: x 0.1 at each of ``drop_at``. ``cosine``: down to ``final_lr_factor`` along half a cosine."""
    drop_at: tuple[float, ...] = (0.8,)
    """Shares of the run after which the learning rate is divided by ten (``step`` only); 0.8 is epoch 40 of 50."""
    final_lr_factor: float = 0.01
    """Learning rate at the end, relative to the start (``cosine`` only)."""
    warmup_steps: int = 0
    """Steps of linear warm-up at batch 16; scaled by 16 / batch size, so that it spans the same number of images,
    and never more than a tenth of the run."""
    max_minutes: float = 0.0
    """Wall-clock budget of the whole run, the evaluations included; 0: none. The schedule follows whichever of
    epochs and minutes is nearer to its end, so that a run cut by its budget still ends with a low learning rate."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and how the validation split is scored."""

    every_epochs: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    every_steps: int = 0
    """Optimizer steps between two evaluations, instead of ``every_epochs``: a curve may need several in an epoch;
    0: count epochs."""
    max_detections: int = 100
    """Detections per image handed to the COCO evaluator."""
    batch_size: int = 0
    """Images per forward pass; 0: the batch size of training. DC5 models and Anchor DETR should be
    scored with 1."""
    patience: int = 0
    """Stop after this many evaluations without a better AP; 0: never."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Where and how fast it runs; what comes out stays the same, but for rounding and the statistics of BatchNorm."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    workers: int = 0
    """Loader processes; 0: load in the training process."""
    cache_gib: float = 1.0
    """Decoded pictures of each split that a process keeps in memory, in GiB; loader processes keep none."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast precision of the forward pass."""
    accumulate: int = 1
    """Micro-batches per optimizer step."""
    checkpoint_activations: bool = False
    """Recompute encoder and decoder layers in the backward pass: less memory, about a third more time."""
    save_every_minutes: float = 10.0
    """Minutes between two writes of ``last`` inside an epoch (it is also written after each epoch)."""
    log_every: int = 20
    """Steps between two lines of ``metrics.jsonl``."""
    allow_changed_data: bool = False
    """Resume this once although the pictures or annotations have changed, after a broken picture was removed, say."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a result, and how it is run."""

    name: str = ""
    """Name of the preset this started from."""
    model: ModelConfig = field(default_factory=DeformableDETRConfig)
    data: DataConfig = field(default_factory=DataConfig)
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    seed: int = 42
    """Start of every random stream: initialisation, data order, augmentation, dropout."""


def to_dict(config: Any) -> Any:
    """A configuration as plain JSON data; a model's section carries its class name under ``kind``."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {"kind": type(config).__name__, **values} if type(config) in MODELS else values
    if isinstance(config, tuple):
        return [to_dict(value) for value in config]
    return config


def from_dict(kind: Any, values: Any, where: str = "experiment") -> Any:
    """The inverse of ``to_dict``: ``values`` as an instance of ``kind``.

    Raises:
        UserError: for an unknown key (with the nearest known one), a value of another type or an unknown model.
    """
    if kind == ModelConfig or kind in MODELS:
        known = {cls.__name__: cls for cls in MODELS}
        name = values.get("kind") if isinstance(values, dict) else None
        if not isinstance(name, str) or name not in known:
            raise UserError(f"{where}: unknown model kind {name!r}.{did_you_mean(str(name), known)}")
        kind, values = known[name], {key: value for key, value in values.items() if key != "kind"}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected an object of settings, got {values!r}.")
        every = typing.get_type_hints(kind)
        hints = {f.name: every[f.name] for f in dataclasses.fields(kind)}  # class variables are no settings
        for key in values:
            if key not in hints:
                raise UserError(f"{where}: unknown setting '{key}'.{did_you_mean(key, hints)}")
        return kind(**{key: from_dict(hints[key], value, f"{where}.{key}") for key, value in values.items()})
    return _checked(kind, values, where)


def _checked(kind: Any, value: Any, where: str) -> Any:
    """``value`` if it is of type ``kind`` (lists become tuples), else a sentence."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise UserError(f"{where}: {value!r} is not one of {', '.join(map(repr, arguments))}.")
    if origin is tuple and isinstance(value, list | tuple):
        many = arguments[-1] is Ellipsis
        if many or len(value) == len(arguments):
            kinds = [arguments[0]] * len(value) if many else arguments
            return tuple(_checked(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    elif origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _checked(next(a for a in arguments if a is not type(None)), value, where)
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise UserError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}.")


def save(experiment: Experiment, path: Path) -> None:
    """Write ``experiment`` as indented JSON, or raise ``UserError``; a file that was there is replaced whole."""
    files.write_text(path, json.dumps(to_dict(experiment), indent=2) + "\n")


def load(path: Path) -> Experiment:
    """Read what ``save`` wrote. Raises ``UserError``, naming line and column for broken JSON."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: no valid JSON at line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, a number of too many digits, brackets without end
        raise UserError(f"{path} is no experiment: {type(error).__name__}: {error}.") from None
    return typing.cast(Experiment, from_dict(Experiment, values))


def validate(experiment: Experiment) -> None:
    """Refuse values outside their range before any data is read.

    Raises:
        UserError: naming the setting, its value and its range; or settings that contradict each other.
    """
    e = experiment
    for setting, value in _numbers(to_dict(e)):
        if not math.isfinite(value):
            raise UserError(f"{setting} is {value}, but must be a finite number.")
    short, long = e.data.image_size
    for setting, good, expected in (
        ("data.image_size", 32 <= short <= long, "(short, long), 32 <= short <= long"),
        ("data.min_scale", 0.1 <= e.data.min_scale <= 1, "in [0.1, 1]"),
        ("data.batch_size", e.data.batch_size >= 1, "1 or above"),
        ("data.padded_together", e.data.padded_together >= 0, "0 or above"),
        ("model.backbone.std", min(e.model.backbone.std) > 0, "above 0"),
        ("criterion.class_weight", e.criterion.class_weight >= 0, "0 or above"),
        ("criterion.box_weight", e.criterion.box_weight >= 0, "0 or above"),
        ("criterion.giou_weight", e.criterion.giou_weight >= 0, "0 or above"),
        ("criterion.focal_alpha", 0 <= e.criterion.focal_alpha <= 1, "in [0, 1]"),
        ("criterion.focal_gamma", e.criterion.focal_gamma >= 0, "0 or above"),
        ("criterion.no_object_weight", 0 < e.criterion.no_object_weight <= 1, "in (0, 1]"),
        ("optimizer.lr", e.optimizer.lr > 0, "above 0"),
        ("optimizer.backbone_lr_factor", e.optimizer.backbone_lr_factor >= 0, "0 or above"),
        ("optimizer.sampling_lr_factor", e.optimizer.sampling_lr_factor >= 0, "0 or above"),
        ("optimizer.weight_decay", e.optimizer.weight_decay >= 0, "0 or above"),
        ("optimizer.clip_norm", e.optimizer.clip_norm >= 0, "0 or above"),
        ("optimizer.ema_decay", 0 <= e.optimizer.ema_decay < 1, "in [0, 1)"),
        ("schedule.epochs", e.schedule.epochs >= 1, "1 or above"),
        ("schedule.drop_at", all(0 < at < 1 for at in e.schedule.drop_at), "between 0 and 1"),
        ("schedule.final_lr_factor", 0 <= e.schedule.final_lr_factor <= 1, "in [0, 1]"),
        ("schedule.warmup_steps", e.schedule.warmup_steps >= 0, "0 or above"),
        ("schedule.max_minutes", e.schedule.max_minutes >= 0, "0 or above"),
        ("evaluation.every_epochs", e.evaluation.every_epochs >= 1, "1 or above"),
        ("evaluation.every_steps", e.evaluation.every_steps >= 0, "0 or above"),
        ("evaluation.max_detections", e.evaluation.max_detections >= 1, "1 or above"),
        ("evaluation.batch_size", e.evaluation.batch_size >= 0, "0 or above"),
        ("evaluation.patience", e.evaluation.patience >= 0, "0 or above"),
        ("runtime.workers", e.runtime.workers >= 0, "0 or above"),
        ("runtime.cache_gib", e.runtime.cache_gib >= 0, "0 or above"),
        ("runtime.accumulate", e.runtime.accumulate >= 1, "1 or above"),
        ("runtime.save_every_minutes", e.runtime.save_every_minutes >= 0, "0 or above"),
        ("runtime.log_every", e.runtime.log_every >= 1, "1 or above"),
        ("seed", 0 <= e.seed < 2**63, "in [0, 2^63)"),
    ):
        if not good:
            raise UserError(f"{setting} is {operator.attrgetter(setting)(e)}, but must be {expected}.")
    models.check(e.model)
    if e.data.batch_size % e.runtime.accumulate:
        raise UserError(
            f"data.batch_size {e.data.batch_size} cannot be split into runtime.accumulate {e.runtime.accumulate} equal "
            f"micro-batches: choose a multiple."
        )
    own = {"image_size": OFFICIAL_SIZE, "min_scale": OFFICIAL_MIN_SCALE}
    for setting, fixed in own.items():
        given = getattr(e.data, setting)
        if e.data.augment == "official" and given != fixed:
            raise UserError(
                f"data.{setting} is {given}, but data.augment 'official' trains at its own, {fixed}: add "
                "--data.augment crop (the same recipe at any size) or flip."
            )


def _numbers(values: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Every float of a configuration as plain data, with its setting."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _numbers(value, f"{where}.{key}".lstrip("."))
    elif isinstance(values, float):
        yield where, values
