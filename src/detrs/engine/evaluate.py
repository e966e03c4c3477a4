"""Evaluation on a dataset: the same code in training, on the command line and in Python."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from detrs import config
from detrs.checkpoints.detector import LayerDetections, TrainedDetector
from detrs.checkpoints.sources import open_detector
from detrs.choices import Precision
from detrs.config import Experiment, RuntimeConfig
from detrs.config.detection import check_nms
from detrs.data.loader import evaluation_batches
from detrs.data.protocol import checked_ground_truth
from detrs.data.sample import Dataset
from detrs.engine.classes import scored_classes
from detrs.engine.runtime import Runtime
from detrs.engine.validation import dataset_to_score, validating
from detrs.errors import UserError, counted
from detrs.evaluation import diagnosis as diagnoses
from detrs.evaluation import matching as matches
from detrs.evaluation.coco import CocoReport, coco_report
from detrs.evaluation.diagnosis import Diagnosis
from detrs.evaluation.layers import ImageLayers
from detrs.evaluation.matching import Matching
from detrs.structures import Target
from detrs.tiling import Tiling, tiling_of

Results = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Scores:
    """An evaluation: the scores, and the detections that were scored."""

    report: CocoReport
    results: Results = field(repr=False)
    """COCO results in the order of the images, best first within an image; ids are the dataset's own."""
    dataset: Dataset | None = field(default=None, repr=False)
    """The images and the ground truth."""
    experiment: Experiment | None = field(default=None, repr=False)
    """The settings of this evaluation. The detector is not kept, so that its memory is free for the next one."""
    threshold: float | None = None
    """Of the checkpoint."""
    layers: Sequence[ImageLayers] = field(default=(), repr=False)
    """The detections of each decoder layer; empty without ``diagnose=True``, and with tiles."""
    max_detections: int = 100
    """The largest number of detections of an image; with tiles, of an image with the most tiles."""
    precision: str = "fp32"
    """Precision of the detector's arithmetic; of exported files also ``int8``."""

    @cached_property
    def matching(self) -> Matching:
        """The detections and objects that match."""
        assert self.dataset is not None
        return matches.matching(checked_ground_truth(self.dataset), self.results)

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """Where the detector fails: the numbers of ``write_report``, computed on first use.

        Numbers at a threshold refer to that of the checkpoint, which predictions use by default; if it has none, to the
        best F1 of this evaluation. AP of each layer and use of queries need ``diagnose=True``.
        """
        assert self.dataset is not None
        return diagnoses.diagnose(
            checked_ground_truth(self.dataset),
            self.results,
            matched=self.matching,
            threshold=self.threshold,
            max_detections=self.max_detections,
            layers=self.layers,
        )

    def write_report(self, folder: Path | str) -> Path:
        """Write the diagnosis as a page, figures and JSON.

        Args:
            folder: new, or with an earlier report, whose files are replaced.

        Returns:
            The page, ``report.html``.

        Raises:
            UserError: the folder cannot be written.
        """
        from detrs.engine import report  # draws: not needed for scores

        report.check_report_folder(Path(folder))
        return report.write_report(self, Path(folder))

    def __repr__(self) -> str:
        figures = {"AP": self.report.ap, "AP50": self.report.ap50, "AP75": self.report.ap75}
        scores = ", ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in figures.items())
        images = counted(self.report.num_images, "image")
        return f"<Scores: {scores}; {images}, {counted(len(self.results), 'detection')}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def evaluate(
    detector: TrainedDetector,
    dataset: Dataset,
    runtime: Runtime,
    *,
    workers: int = 0,
    tiling: Tiling | None = None,
    diagnose: bool = False,
    on_images: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score ``detector``, in its precision; every process calls this and gets the same scores.

    It scores what ``predict`` returns: images of equal size are batched without padding, so that scores do not depend
    on the batch size, the number of processes or other images; ``evaluation.pad`` reproduces the authors' padding.

    Args:
        detector: its module is on ``runtime.device``; in evaluation mode meanwhile.
        dataset: images and ground truth; the detector has all of its classes, by name. Detections of other classes
            are not scored.
        runtime: device and processes.
        workers: loader processes.
        tiling: detect objects in tiles of large images, as in prediction; ``evaluation.pad`` has no effect then.
        diagnose: keep the detections of each decoder layer, for ``Scores.diagnosis``; not with ``tiling``.
        on_images: called after each batch with the number of images done, and of all images.

    Raises:
        UserError: boxes or scores are not finite, an image cannot be read, or classes do not match.
    """
    experiment, module = detector.experiment, detector.module
    classes, is_scored = scored_classes(detector.classes.names, dataset.classes)
    detector = replace(detector, classes=classes)
    own: Results = []
    own_layers: list[ImageLayers] = []
    was_training, done = module.training, 0
    module.eval()
    batch_size = evaluation_batch_size(experiment)
    try:
        for batch in evaluation_batches(
            dataset,
            None if tiling else detector.preprocessing.resize_to,
            batch_size,
            pad=experiment.evaluation.pad and not tiling,
            fixed=detector.preprocessing.fixed,
            workers=workers,
            rank=runtime.rank,
            world_size=runtime.world_size,
        ):
            sizes = [target.original_size for target in batch.targets]
            if tiling:
                found = detector.detect_images(
                    batch.images.unbind(), device=runtime.device, batch_size=batch_size, tiling=tiling
                )
            elif diagnose:
                layers = detector.detect_layers(batch.to(runtime.device), sizes)
                own_layers += image_layers(layers, batch.targets, is_scored)
                found = layers[-1].detections
            else:
                found = detector.detect(batch.to(runtime.device), sizes)
            for target, of_image in zip(batch.targets, found, strict=True):
                labels = of_image.labels.tolist()
                scored = zip(of_image.to_coco(target.image_id), labels, strict=True)
                own.extend(result for result, label in scored if is_scored[label])
            if on_images is not None:
                done = min(done + len(sizes) * runtime.world_size, len(dataset))
                on_images(done, len(dataset))
    finally:
        module.train(was_training)
    position = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    results = sorted(runtime.gather(own), key=lambda result: position[result["image_id"]])
    all_layers = sorted(runtime.gather(own_layers), key=lambda each: position[each.image_id]) if diagnose else ()
    limit = experiment.evaluation.max_detections
    if tiling:
        limit *= max(len(tiling.views(dataset.size_of(index))) for index in range(len(dataset)))
    report = coco_report(checked_ground_truth(dataset), results, max_detections=limit) if runtime.is_main else None
    shared = runtime.from_main(report)
    assert shared is not None
    num_skipped = getattr(dataset, "num_skipped", 0)  # not a member of the protocol: datasets in Python skip nothing
    report = replace(shared, num_skipped=num_skipped)
    return Scores(report, results, dataset, experiment, detector.threshold, all_layers, limit, detector.arithmetic)


def image_layers(
    layers: Sequence[LayerDetections], targets: Sequence[Target], is_scored: Sequence[bool]
) -> list[ImageLayers]:
    """The detections of each layer by image, as arrays; of scored classes."""
    scored, found = torch.tensor(is_scored, dtype=torch.bool), []
    for index, target in enumerate(targets):
        arrays, keep = [], torch.zeros(0, dtype=torch.bool)
        for layer in layers:
            each = layer.detections[index]
            keep = scored[each.labels]
            boxes = each.boxes_xyxy[keep].double()
            ids = torch.tensor(each.classes.category_ids)[each.labels[keep]]
            sizes = boxes[:, 2:] - boxes[:, :2]
            columns = [boxes[:, :2], sizes, each.scores[keep, None].double(), ids[:, None].double()]
            arrays.append(torch.cat(columns, 1).numpy())
        queries = layers[-1].queries
        own = None if queries is None else queries[index][keep].numpy()
        found.append(ImageLayers(target.image_id, tuple(arrays), own, layers[-1].num_queries))
    return found


def evaluate_checkpoint(
    path: Path | str,
    *,
    data: str | Path | Dataset | None = None,
    split: str | None = None,
    resize_to: tuple[int, int] | None = None,
    batch_size: int | None = None,
    max_detections: int | None = None,
    pad: bool | None = None,
    clip: bool | None = None,
    nms: float | None = None,
    tile: int | None = None,
    overlap: float = 0.2,
    whole_image: bool = True,
    device: str = "auto",
    precision: Precision = "auto",
    workers: int = 0,
    cache_annotations: bool = True,
    diagnose: bool = False,
    on_images: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score the detector of a checkpoint; by default with the settings of its training.

    Args:
        path: a ``best.safetensors`` or the folder of a run, or published weights, as in ``detrs.load``.
        data: folder of a dataset, or an object with the ``Dataset`` protocol; by default that of training.
        split: by default the validation split of training, or the images that were held out there; ``val`` for a
            detector trained without validation.
        resize_to: (short, long) in pixels; by default as in training.
        batch_size: images per forward pass; by default as in training.
        max_detections: per image; by default as in training.
        pad: pad images of different size to one batch, as the authors did; by default as in training.
        clip: clip boxes to the image; by default as in training.
        nms: IoU of non-maximum suppression, as for ``Predictor``; 1: none; by default as in training.
        tile: sides in pixels of the tiles in which objects of larger images are detected, as for ``Predictor``; by
            default none. ``max_detections`` is the limit of each tile then, and ``pad`` has no effect.
        overlap: smallest overlap of neighboring tiles, a fraction of their side.
        whole_image: with ``tile``, also detect objects in the whole image.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``auto``, ``fp32``, ``bf16`` or ``fp16``, as for ``Predictor``.
        workers: loader processes.
        cache_annotations: use and keep checked annotations, as in ``detrs.data.open_dataset``.
        diagnose: keep the detections of each decoder layer, so that ``diagnosis`` and ``write_report`` of the result
            also have the AP of each layer and the use of queries; not with ``tile``.
        on_images: called after each batch with the number of images done, and of all images.

    Raises:
        UserError: there is no such checkpoint or dataset, their classes differ, or an argument is out of range.
    """
    check_nms(nms)
    tiling = tiling_of(tile, overlap, whole_image)
    runtime = Runtime(RuntimeConfig(device=device, precision="fp32"))  # that of the detector follows below
    detector = open_detector(path).suppressing(nms).on(runtime.device, precision)
    detector = replace(detector, precision=runtime.from_main(detector.precision))
    trained, fixed = validating(detector.experiment, data, split), detector.preprocessing.fixed
    if fixed and resize_to is not None:
        raise UserError(
            f"'{path}' takes images of {fixed.height} x {fixed.width} pixels only, which resize_to (--image-size) "
            "cannot change. Export the checkpoint again, with another size or without --static."
        )
    experiment = replace(
        trained,
        data=replace(
            trained.data,
            resize_to=resize_to or detector.preprocessing.resize_to,
            augment="none",  # the official recipe has a fixed size; evaluation does not augment
        ),
        evaluation=replace(
            trained.evaluation,
            batch_size=trained.evaluation.batch_size if batch_size is None else batch_size,
            max_detections=trained.evaluation.max_detections if max_detections is None else max_detections,
            pad=trained.evaluation.pad if pad is None else pad,
            clip=trained.evaluation.clip if clip is None else clip,
        ),
        runtime=RuntimeConfig(
            device=device, workers=workers, precision=detector.precision, cache_annotations=cache_annotations
        ),
    )
    config.validate(experiment)
    dataset = dataset_to_score(path, detector, experiment, data, split, warns=runtime.is_main)
    detector = replace(
        detector,
        experiment=experiment,
        preprocessing=replace(detector.preprocessing, resize_to=experiment.data.resize_to),
    )
    return evaluate(
        detector,
        dataset,
        runtime,
        workers=workers,
        tiling=tiling,
        diagnose=diagnose,
        on_images=on_images,
    )


def evaluation_batch_size(experiment: Experiment) -> int:
    """Images per forward pass in evaluation."""
    batch_size = experiment.evaluation.batch_size
    return experiment.data.batch_size if batch_size is None else batch_size
