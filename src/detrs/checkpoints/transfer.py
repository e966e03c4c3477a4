"""Weights of a trained detector as the start of a model with other classes: rows of class heads are copied by name.

Which tensors depend on the classes is not listed: they are those whose shape changes with the number of classes. Their
rows belong to classes as the heads of the detector define it:

=============================  =======================================================================
tensor                         rows
=============================  =======================================================================
class logits (``Focal``)       one per class
class logits (``Softmax``)     one per class, then "no object"
Faster R-CNN, logits, boxes    background, then the classes; one row or four each
scorer of proposals            row 0 is "any object", the others are not used (Deformable DETR); or one
                               per class (Efficient DETR)
=============================  =======================================================================

Rows of classes that the source does not have keep the initialization of the model, with the prior of the focal loss.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detrs import models
from detrs.checkpoints.classes import match
from detrs.checkpoints.detector import TrainedDetector, shapes
from detrs.checkpoints.skeleton import Skeleton
from detrs.config.classification import Softmax
from detrs.config.faster_rcnn import FasterRCNNConfig
from detrs.config.models import ModelConfig
from detrs.models.detector import Model
from detrs.structures import Classes


class Rows(NamedTuple):
    """The rows of a tensor that depends on the classes."""

    per_class: int
    """Rows of each class."""
    before: int
    """Rows before those of class 0 (background)."""
    after: int
    """Rows after those of the last class ("no object")."""
    is_objectness: bool = False
    """Row 0 is "any object", not a class."""

    def copy(self, source: Tensor, target: Tensor, rows: Sequence[int | None]) -> None:
        """Copy the rows of shared classes, and those of no class.

        Args:
            source: first dimension ``before + per_class * (number of its classes) + after``.
            target: likewise; changed in place.
            rows: class of the source for each class of the target.
        """
        if self.is_objectness:
            target[: self.per_class].copy_(source[: self.per_class])
            return
        target[: self.before].copy_(source[: self.before])
        if self.after:
            target[-self.after :].copy_(source[-self.after :])
        for own, other in enumerate(rows):
            if other is not None:
                start, origin = (self.before + self.per_class * row for row in (own, other))
                target[start : start + self.per_class].copy_(source[origin : origin + self.per_class])


class Transfer(NamedTuple):
    """What a model got from another one."""

    kept: list[str]
    """Classes whose rows were copied, by their names in the dataset."""
    new: list[str]
    """Classes with new weights."""
    kept_queries: tuple[int, int] | None
    """Object queries that were copied, and that the source has; ``None``: all, or there are none."""


def class_rows(config: ModelConfig) -> dict[str, Rows]:
    """Every tensor of a model that depends on the classes, by its name in the state dict."""
    config_: Any = config
    with Skeleton():
        small = shapes(models.build(config))
        large = shapes(models.build(dataclasses.replace(config_, num_classes=config.num_classes + 1)))
    background, no_object = special_rows(config)
    labels = getattr(models.module_of(config), "PROPOSALS", "classes")
    found = {}
    for name, shape in small.items():
        if shape == large[name]:
            continue
        per_class = large[name][0] - shape[0]
        assert shape[1:] == large[name][1:], f"{name}: the first dimension is that of classes"
        special = per_class * (background + no_object)
        assert shape[0] == per_class * config.num_classes + special, f"{name}: unknown rows"
        is_objectness = name.startswith("queries.") and labels == "objectness"
        found[name] = Rows(per_class, per_class * background, per_class * no_object, is_objectness)
    return found


def special_rows(config: ModelConfig) -> tuple[int, int]:
    """Number of logits for background, before the classes, and for "no object", after them."""
    if isinstance(config, FasterRCNNConfig):
        return 1, 0
    return 0, int(isinstance(getattr(config, "classification", None), Softmax))


@torch.no_grad()
def transfer(source: TrainedDetector, target: Model, config: ModelConfig, classes: Classes) -> Transfer:
    """Initialize ``target`` with the weights of ``source``, a model with other classes and another number of queries.

    All other settings of both models that weights depend on must be equal. If there are more queries than in the
    source, the others keep their initialization; if there are fewer, the first ones are copied.

    Args:
        source: a trained detector.
        target: newly built; on any device.
        config: of ``target``.
        classes: of ``target``.

    Raises:
        UserError: the name of a class matches several classes of the source.
    """
    is_same = source.classes.names == classes.names
    rows = list(range(len(classes.names))) if is_same else match(source.classes.names, classes.names)
    of_classes, parameters = class_rows(config), dict(target.named_parameters(remove_duplicate=False))
    given: Mapping[str, Tensor] = source.module.state_dict()
    own = target.state_dict()
    assert own.keys() == given.keys(), "the settings of both models are equal"
    kept_queries = None
    for name, tensor in own.items():
        if name in of_classes and not is_same:
            of_classes[name].copy(given[name], tensor, rows)
        elif tensor.shape == given[name].shape:
            tensor.copy_(given[name])
        elif name in parameters:  # object queries; buffers of another shape are constants
            count = min(len(tensor), len(given[name]))
            tensor[:count].copy_(given[name][:count])
            times = config.num_queries // len(tensor)  # type: ignore[union-attr]  # patterns of Anchor DETR
            kept_queries = count * times, len(given[name]) * times
    names = classes.names
    kept = [name for name, row in zip(names, rows, strict=True) if row is not None]
    return Transfer(kept, [name for name, row in zip(names, rows, strict=True) if row is None], kept_queries)
