"""How good a detector is on a data set: the same code in training, on the command line and from Python."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from detrs import config
from detrs.classification import Classification, classification_of
from detrs.config import Experiment, RuntimeConfig
from detrs.data import open_dataset
from detrs.data.collate import normalize
from detrs.data.loader import evaluation_batches
from detrs.data.sample import Dataset
from detrs.engine.detector_file import load_detector
from detrs.engine.runtime import Runtime
from detrs.errors import UserError
from detrs.evaluation.coco import CocoReport, coco_report
from detrs.postprocess import detections
from detrs.structures import Classes

Results = list[dict[str, Any]]


class Scores(NamedTuple):
    """An evaluation: the figures, and the detections they are of."""

    report: CocoReport
    results: Results
    """COCO results in the order of the images, best first within an image; ids are the data set's own."""


@torch.no_grad()
def evaluate(
    detector: nn.Module,
    dataset: Dataset,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    runtime: Runtime,
    classification: Classification,
    max_detections: int = 100,
    workers: int = 0,
    names: Sequence[str] | None = None,
) -> Scores:
    """Score ``detector``, in float32; every process calls this and gets the same figures.

    Batches do not depend on the number of processes; they do depend on ``batch_size``, since images are padded to the
    largest of their batch.

    Args:
        detector: on ``runtime.device``; in evaluation mode meanwhile.
        dataset: images and ground truth.
        image_size: (short, long) in pixels.
        batch_size: images per forward pass.
        mean: of each colour channel, as in training.
        std: likewise.
        runtime: where to run.
        classification: what the detector's logits mean.
        max_detections: per image.
        workers: loader processes.
        names: class names in the order of the detector's labels; by default those of ``dataset``.

    Raises:
        UserError: boxes or scores are not finite, or an image cannot be read.
    """
    classes = classes_in_order(dataset.classes, names or dataset.classes.names)
    own: Results = []
    was_training = detector.training
    detector.eval()
    try:
        for batch in evaluation_batches(
            dataset, image_size, batch_size, workers=workers, rank=runtime.rank, world_size=runtime.world_size
        ):
            batch = normalize(batch.to(runtime.device), mean, std)
            predictions = detector(batch.images, batch.padding)
            sizes = [target.original_size for target in batch.targets]
            found = detections(predictions.last, sizes, classes, classification, max_detections=max_detections)
            for target, of_image in zip(batch.targets, found, strict=True):
                own.extend(of_image.to_coco(target.image_id))
    finally:
        detector.train(was_training)
    position = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    results = sorted(runtime.gather(own), key=lambda result: position[result["image_id"]])
    report = coco_report(dataset.ground_truth(), results, max_detections=max_detections) if runtime.is_main else None
    shared = runtime.from_main(report)
    assert shared is not None
    return Scores(shared, results)


def evaluate_checkpoint(
    path: Path | str,
    *,
    data: str = "",
    split: str = "",
    image_size: tuple[int, int] | None = None,
    batch_size: int = 0,
    max_detections: int = 0,
    device: str = "auto",
    workers: int = 0,
) -> Scores:
    """Score the detector of a checkpoint; without further arguments, as training did when it saved it.

    Args:
        path: a ``best.safetensors``.
        data: data set; by default the one it was trained on.
        split: by default the validation split of training.
        image_size: (short, long) in pixels; by default as in training.
        batch_size: images per forward pass; by default as in training.
        max_detections: per image; by default as in training.
        device: ``auto``, ``cpu``, ``cuda``, ...
        workers: loader processes.

    Raises:
        UserError: no such checkpoint or data set, they have other classes, or an argument is out of range.
    """
    runtime = Runtime(RuntimeConfig(device=device))
    detector, trained, classes, meta = load_detector(Path(path))
    experiment = replace(
        trained,
        data=replace(
            trained.data,
            path=data or trained.data.path,
            val_split=split or trained.data.val_split,
            image_size=image_size or trained.data.image_size,
            augment="none",  # which may be of a fixed size, and is no part of an evaluation
        ),
        evaluation=replace(
            trained.evaluation,
            batch_size=batch_size or trained.evaluation.batch_size,
            max_detections=max_detections or trained.evaluation.max_detections,
        ),
        runtime=RuntimeConfig(device=device, workers=workers),
    )
    config.validate(experiment)
    folder = experiment.data.path
    try:
        dataset = open_dataset(folder, experiment.data.val_split)  # no cache: every picture is looked at once
    except UserError as error:
        if data or os.path.isdir(os.path.expanduser(folder)):
            raise
        raise UserError(f"{error} It is the data set of training: if it has moved, name it with --data.") from None
    check_same_classes(classes.names, dataset.classes.names, f"the checkpoint '{path}'", f"the data set '{folder}'")
    return evaluate(
        detector.to(runtime.device),
        dataset,
        image_size=experiment.data.image_size,
        batch_size=evaluation_batch_size(experiment),
        mean=meta["preprocessing"]["mean"],
        std=meta["preprocessing"]["std"],
        runtime=runtime,
        max_detections=experiment.evaluation.max_detections,
        workers=workers,
        names=classes.names,
        classification=classification_of(experiment.model.classification),
    )


def evaluation_batch_size(experiment: Experiment) -> int:
    """Images per forward pass in evaluation."""
    return experiment.evaluation.batch_size or experiment.data.batch_size


def classes_in_order(classes: Classes, names: Sequence[str]) -> Classes:
    """``classes`` in the order of ``names``, each with its own id."""
    if tuple(names) == classes.names:
        return classes
    ids = dict(zip(classes.names, classes.category_ids, strict=True))
    return Classes(tuple(names), tuple(ids[name] for name in names))


def check_same_classes(names: Sequence[str], others: Sequence[str], owner: str, other_owner: str) -> None:
    """Refuse to compare detections of one set of classes with objects of another; order does not matter.

    Raises:
        UserError: listing both.
    """
    if set(names) != set(others):
        raise UserError(
            f"The classes differ: {owner} has {', '.join(names)}; {other_owner} has {', '.join(others)}. "
            "Both must have the same class names, in any order."
        )
