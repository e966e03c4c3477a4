"""An experiment as data: everything that decides a result, frozen and keyword-only.

``runtime`` changes a result only as described in ``RuntimeConfig``. Saved as ``experiment.json``; unknown keys are
errors with a suggestion.
This package imports neither PyTorch nor anything that does, so that the command line checks all settings before PyTorch
is imported. The module of each part has the settings of that part and the checks that need nothing else; the code that
computes with them imports it, and has its own name: ``models/detr.py`` builds what ``config/detr.py`` describes.
"""

import json
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from detrs import files, schema
from detrs.choices import Precision
from detrs.config.anchor_detr import AnchorDETRConfig
from detrs.config.backbone import BackboneConfig
from detrs.config.classification import Classification, Focal, Softmax
from detrs.config.conditional_detr import ConditionalDETRConfig
from detrs.config.criterion import CriterionConfig
from detrs.config.dab_deformable_detr import DABDeformableDETRConfig
from detrs.config.dab_detr import DABDETRConfig
from detrs.config.data import NO_SPLIT, DataConfig, check_augmentation
from detrs.config.deformable_detr import DeformableDETRConfig
from detrs.config.detr import DETRConfig
from detrs.config.dino import DINOConfig
from detrs.config.dynamic_detr import DynamicDETRConfig
from detrs.config.efficient_detr import EfficientDETRConfig
from detrs.config.faster_rcnn import FasterRCNNConfig
from detrs.config.models import MODELS, ModelConfig, check_model
from detrs.config.sparse_rcnn import SparseRCNNConfig
from detrs.config.training_options import check_options
from detrs.errors import UserError
from detrs.schema import OneOf, from_dict, to_dict

__all__ = [
    "AnchorDETRConfig",
    "BackboneConfig",
    "Classification",
    "ConditionalDETRConfig",
    "CriterionConfig",
    "DABDETRConfig",
    "DABDeformableDETRConfig",
    "DETRConfig",
    "DINOConfig",
    "DataConfig",
    "DeformableDETRConfig",
    "DynamicDETRConfig",
    "EfficientDETRConfig",
    "EvaluationConfig",
    "Experiment",
    "FasterRCNNConfig",
    "Focal",
    "ModelConfig",
    "OptimizerConfig",
    "RuntimeConfig",
    "ScheduleConfig",
    "Softmax",
    "SparseRCNNConfig",
    "Tracker",
    "load",
    "save",
    "validate",
    "with_setting",
]

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with the parameter groups of the official repositories (betas 0.9, 0.999; eps 1e-8)."""

    lr: Annotated[float, Gt(0)] = 2e-4
    """Learning rate of the transformer and the heads."""
    backbone_lr_factor: Annotated[float, Ge(0)] = 0.1
    """Learning rate of the backbone, relative to ``lr``; 0 freezes it."""
    sampling_lr_factor: Annotated[float, Ge(0)] = 0.1
    """Learning rate of sampling offsets and reference points, relative to ``lr`` (Deformable DETR, A.4);
    detectors without deformable attention have none."""
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    """Decoupled weight decay, applied to all parameters as in the official repositories."""
    clip_norm: Annotated[float, Gt(0)] | None = 0.1
    """L2 norm to which the gradient of all parameters together is clipped; None: no clipping."""
    ema_decay: Annotated[float, Ge(0), Lt(1)] | None = None
    """Decay per step of the exponential moving average (EMA) of the weights, which is evaluated and saved as ``best``;
    None: no average."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Length of the training and schedule of the learning rate."""

    epochs: Annotated[int, Ge(1)] = 50
    """Passes over the training images."""
    kind: Literal["step", "cosine"] = "step"
    """``step``: x 0.1 at each of ``drop_at``. ``cosine``: cosine decay to ``final_lr_factor``."""
    drop_at: tuple[Annotated[float, Gt(0), Lt(1)], ...] = (0.8,)
    """Fractions of the training at which the learning rate is divided by ten (``step`` only); 0.8 is epoch 40 of
    50."""
    final_lr_factor: Annotated[float, Ge(0), Le(1)] = 0.01
    """Learning rate at the end, relative to the start (``cosine`` only)."""
    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps of linear warm-up at batch size 16. Scaled by 16 / batch size, so that warm-up spans the same number of
    images, and limited to a tenth of the training."""
    max_minutes: Annotated[float, Gt(0)] | None = None
    """Wall-clock budget of the whole run, evaluations included; None: no limit. The schedule ends with the epochs
    or with the budget, whichever is first, so a run limited by its budget also ends at a low learning rate."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and how the validation split is scored."""

    every_epochs: Annotated[int, Ge(1)] = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    every_steps: Annotated[int, Ge(1)] | None = None
    """Optimizer steps between evaluations, for several in one epoch; None: use ``every_epochs``."""
    max_detections: Annotated[int, Ge(1)] = 100
    """Detections per image: the best ones are evaluated and predicted."""
    batch_size: Annotated[int, Ge(1)] | None = None
    """Images per forward pass; None: the batch size of training. It does not change scores, unless ``pad`` is set."""
    pad: bool = False
    """Pad consecutive images of different size to one batch, as the authors did: scores depend on the batch size. By
    default only images of equal size are batched, without padding, as in prediction."""
    clip: bool = True
    """Clip boxes to the image, in evaluation and in prediction. False: keep them as predicted, as the authors did."""
    nms: Annotated[float, Gt(0), Le(1)] | None = None
    """Non-maximum suppression in evaluation, prediction and exported files: a detection is dropped if its IoU with a
    better one of its class is above this. None or 1: no suppression, as in presets of the papers."""
    patience: Annotated[int, Ge(1)] | None = None
    """Stop after this many evaluations without a better AP; None: never."""

    @property
    def suppression(self) -> float | None:
        """``nms``, or ``None`` if nothing is suppressed."""
        return None if self.nms == 1 else self.nms


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
"""Experiment trackers."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Device, data loading and precision.

    They change results only by rounding. More processes or micro-batches also change statistics of BatchNorm and the
    random numbers of dropout and denoising, which are drawn for each micro-batch.
    """

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    workers: Annotated[int, Ge(0)] = 0
    """Loader processes; 0: load in the training process."""
    threads: Annotated[int, Ge(1)] | None = None
    """CPU threads of each training process; None: the default of PyTorch, one per core. Fewer are faster beside other
    programs."""
    cache_gib: Annotated[float, Ge(0)] = 1.0
    """Memory for decoded images of each split in the training process, in GiB; loader processes cache none."""
    cache_annotations: bool = True
    """Keep the checked annotations of a dataset in the cache folder of the user, or in DETRS_CACHE, so that it opens in
    about a second the next time. They are used only if no file has changed."""
    precision: Precision = "auto"
    """Precision of the detector's arithmetic. ``auto``: ``bf16`` where the device multiplies it in hardware, else
    ``fp32``; a run keeps the precision it started with. Weights, coordinates, scores and losses are float32 in each."""
    accumulate: Annotated[int, Ge(1)] = 1
    """Micro-batches per optimizer step (gradient accumulation)."""
    checkpoint_activations: bool = False
    """Recompute encoder and decoder layers in the backward pass: less memory, about a third more time."""
    save_every_minutes: Annotated[float, Ge(0)] = 10.0
    """Save ``last.safetensors`` every N minutes within an epoch, and after each epoch if saving then takes at most a
    twentieth of the time."""
    log_every: Annotated[int, Ge(1)] = 20
    """Log to ``metrics.jsonl`` every N steps."""
    track: tuple[Tracker, ...] = ()
    """Experiment trackers that receive the metrics, figures and settings, besides the files of the run."""
    allow_changed_data: bool = False
    """Resume this once although images or annotations have changed, for example after removing a broken image."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a result, and how it is run."""

    name: str | None = None
    """Name of the preset this started from."""
    initial: str | None = None
    """Trained detector whose weights training starts from: a ``best.safetensors``, or published weights, of the same
    model. Weights of classes are kept by name; numbers of classes and queries may differ."""
    model: Annotated[ModelConfig, OneOf(MODELS)] = field(default_factory=DeformableDETRConfig)
    data: DataConfig = field(default_factory=DataConfig)
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    seed: Annotated[int, Ge(0), Lt(2**63)] = 42
    """Random seed of initialization, data order, augmentation and dropout."""


def with_setting(config: C, place: str, value: Any) -> C:
    """``config`` with another value of one setting, such as ``model.backbone.stages``."""
    section, _, rest = place.partition(".")
    changed: dict[str, Any] = {section: with_setting(getattr(config, section), rest, value) if rest else value}
    return replace(config, **changed)


def save(experiment: Experiment, path: Path) -> None:
    """Write ``experiment`` as indented JSON, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    files.write_text(path, json.dumps(to_dict(experiment), indent=2) + "\n")


def load(path: Path) -> Experiment:
    """Read a file written by ``save``.

    Raises:
        UserError: the file cannot be read or is not an experiment; with line and column of invalid JSON.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: invalid JSON at line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of too many digits, brackets without end
        raise UserError(f"{path} is not an experiment: {type(error).__name__}: {error}.") from None
    return typing.cast(Experiment, from_dict(Experiment, values))


def validate(experiment: Experiment) -> None:
    """Check that values are in range and settings do not contradict each other, before any data are read.

    Raises:
        UserError: naming the setting, its value and its range.
    """
    schema.check(experiment)
    check_model(experiment.model)
    check_options(experiment.criterion, experiment.model)
    check_augmentation(experiment.data)
    if experiment.data.val_split == NO_SPLIT:
        for name, value in (
            ("data.val_fraction", experiment.data.val_fraction),
            ("evaluation.patience", experiment.evaluation.patience),
        ):
            if value is not None:
                raise UserError(
                    f"{name} is {value}, but data.val_split {NO_SPLIT} trains without validation: remove one of the "
                    "two settings."
                )
