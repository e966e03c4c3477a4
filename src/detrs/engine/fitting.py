"""Settings that follow from the training images, for the presets for few images.

The number of optimizer steps that a small detector needs hardly depends on the number of images, so fewer images need
more epochs. The other settings follow from the steps and from the objects.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from detrs.config import Experiment, with_setting
from detrs.data.loader import steps_per_epoch
from detrs.data.preprocessing import resized_size
from detrs.data.sample import Dataset
from detrs.errors import counted

STEPS = 3_000
"""Optimizer steps of a training from a backbone trained on ImageNet."""
EPOCHS = (12, 300)
"""Fewest and most epochs."""
MANY_IMAGES = 2_000
"""Training images from which the batch is twice as large."""
AVERAGED = 6
"""The EMA averages this part of the steps, one sixth."""
EVALUATIONS = 12
"""Evaluations of a run."""
QUERIES_PER_OBJECT = 2
"""Queries of a detector per object of the image with most objects."""
SMALL_SHARE = 0.1
"""Fraction of objects that may be smaller than the stride of the finest feature map."""
FINER, FINEST = "model.backbone.stages", 2
"""Setting of the feature maps, and the finest stage, C2."""
LARGEST_FACTOR = 1.5
"""Largest factor of the image size."""
STEP = 32
"""Larger image sizes are multiples of this."""


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """What the settings follow from."""

    images: int
    most_objects: int
    """Objects of the image that has most."""
    boxes: tuple[tuple[int, int, float], ...]
    """(height, width) of the image and the side of the box, all in pixels, of each object; the side of a square of the
    same area."""


def training_images(dataset: Dataset) -> TrainingImages:
    """The facts of a training split, from its annotations."""
    truth = dataset.ground_truth()
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    objects = [each for each in truth["annotations"] if not each.get("iscrowd")]
    boxes = tuple((*sizes[each["image_id"]], math.sqrt(each["bbox"][2] * each["bbox"][3])) for each in objects)
    return TrainingImages(images=len(dataset), most_objects=dataset.max_objects, boxes=boxes)


def fitted(
    experiment: Experiment, data: TrainingImages, given: Collection[str] = ()
) -> tuple[Experiment, tuple[str, ...]]:
    """The experiment with settings that suit the data, and one sentence for each that changes.

    Args:
        experiment: of one of the presets ``FITTED``.
        data: facts of the training images.
        given: settings that stay as they are, such as ``schedule.epochs``.
    """
    reasons = []
    for place, value, reason in changes(experiment, data, given):
        before = attrgetter(place)(experiment)
        if place in given or value == before:
            continue
        experiment = with_setting(experiment, place, value)
        reasons.append(f"{place} {shown(value)} instead of {shown(before)}: {reason}")
    return experiment, tuple(reasons)


def changes(start: Experiment, data: TrainingImages, given: Collection[str]) -> Iterator[tuple[str, Any, str]]:
    """Settings, their values and reasons, in an order in which later ones depend on earlier ones."""
    batch = start.data.batch_size
    if "data.batch_size" not in given and data.images >= MANY_IMAGES:
        batch *= 2
        yield "data.batch_size", batch, f"{counted(data.images, 'image')} are enough for larger batches"
    if start.schedule.max_minutes is None:  # else the time decides how many steps there are
        yield from of_length(start, data, batch, given)
    if hasattr(start.model, "num_queries"):
        wanted = math.ceil(QUERIES_PER_OBJECT * data.most_objects / 50) * 50
        reason = f"two for each object of the image with most, {data.most_objects}"
        yield "model.num_queries", max(start.model.num_queries, wanted), reason
    if data.most_objects > start.evaluation.max_detections:
        most = math.ceil(data.most_objects / 100) * 100
        yield "evaluation.max_detections", most, f"an image has {data.most_objects} objects"
    if data.boxes:
        yield from for_small_objects(start, data, given)


def of_length(
    start: Experiment, data: TrainingImages, batch: int, given: Collection[str]
) -> Iterator[tuple[str, Any, str]]:
    """The settings that depend on the number of steps."""
    per_epoch, epochs = steps_per_epoch(data.images, batch), start.schedule.epochs
    if "schedule.epochs" not in given:
        epochs = min(max(round(STEPS / per_epoch), EPOCHS[0]), EPOCHS[1])
        limit = {EPOCHS[0]: f"at least {EPOCHS[0]} epochs", EPOCHS[1]: f"at most {EPOCHS[1]} epochs"}
        aim = limit.get(epochs, f"about {STEPS:,} steps are needed")
        steps = f"{epochs * per_epoch:,} steps of {counted(batch, 'image')}"
        yield "schedule.epochs", epochs, f"{counted(data.images, 'image')}, {steps}; {aim}"
    steps_in_all = epochs * per_epoch
    if start.optimizer.ema_decay is not None:
        decay = round(min(max(1 - AVERAGED / steps_in_all, 0.9), 0.9998), 4)
        yield "optimizer.ema_decay", decay, f"an average over one sixth of {steps_in_all:,} steps"
    if start.evaluation.every_steps is None:
        every = max(epochs // EVALUATIONS, 1)
        yield "evaluation.every_epochs", every, f"about {EVALUATIONS} evaluations in {counted(epochs, 'epoch')}"


def for_small_objects(
    start: Experiment, data: TrainingImages, given: Collection[str]
) -> Iterator[tuple[str, Any, str]]:
    """Settings with which at most a tenth of the objects are smaller than a cell of the finest feature map.

    First finer maps, which cost as much as images of twice the size, but only from the neck on.
    """
    size, stages = start.data.resize_to, start.model.backbone.stages
    sides = sorted(side * resized_size((h, w), size)[0] / h for h, w, side in data.boxes)
    at = max(sides[int(SMALL_SHARE * len(sides))], 1e-6)

    def reason() -> str:
        stride = 2 ** min(stages)
        return (
            f"a tenth of the objects are smaller than {at:.1f} pixels, and the finest feature map has stride {stride}"
        )

    if at < 2 ** min(stages) and min(stages) > FINEST and FINER not in given:
        finer = tuple(stage - 1 for stage in stages)
        yield FINER, finer, reason()
        stages = finer
    factor = max(2 ** min(stages) / at, 1.0)
    if factor > 1:
        wanted = tuple(math.ceil(side * factor / STEP - 1e-9) * STEP for side in size)
        largest = tuple(math.floor(side * LARGEST_FACTOR / STEP) * STEP for side in size)
        larger = tuple(map(min, wanted, largest))
        yield "data.resize_to", larger, reason() + f"; at most {LARGEST_FACTOR} times larger" * (larger != wanted)


def shown(value: Any) -> str:
    """A value as it is written after its flag."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
