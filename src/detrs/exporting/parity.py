"""The gate of an export: a file whose detections differ from those of its checkpoint is not written.

Both detectors run by ``TrainedDetector.detect``, with pre- and post-processing, as in evaluation and prediction.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.exported import ExportedModel
from detrs.config import RuntimeConfig
from detrs.data.sample import Dataset
from detrs.engine.evaluate import evaluate
from detrs.engine.runtime import Runtime
from detrs.errors import UserError
from detrs.exporting.inputs import GateInput, InputShapes, gate_inputs
from detrs.exporting.limits import ALWAYS_COMPARED, LIMITS, MIN_CONTRAST, MIN_INPUTS, Limits
from detrs.exporting.pairing import pair
from detrs.structures import Detections


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The differences between a checkpoint and an exported file."""

    precision: str
    """``float32``, ``float16`` or ``int8``: selects the limits."""
    num_inputs: int
    """Batches that both received."""
    num_images: int
    sizes: tuple[tuple[int, int], ...]
    """(height, width) in pixels of the inputs, without repetition."""
    images: str
    """``real``: two thirds of the images are from a dataset; ``made``: none."""
    num_detections: int
    """Detections that were compared."""
    num_agreeing: int
    """Those with the same class, and box and score within the limits."""
    max_box_difference: float
    """Largest difference of a coordinate among those that agree, relative to the image."""
    max_score_difference: float
    """Among those that agree."""
    relative_difference: float
    """Mean difference of scores, relative to ``contrast``."""
    contrast: float
    """Mean difference between the scores of two images."""
    original_ap: float | None = None
    """AP of the checkpoint on the dataset; ``None``: not computed, or undefined."""
    exported_ap: float | None = None

    @property
    def limits(self) -> Limits:
        return LIMITS[self.precision]

    def failures(self) -> list[str]:
        """What exceeds the limits, in words with numbers; empty if the file agrees with the checkpoint."""
        limits, found = self.limits, []
        if self.num_inputs < MIN_INPUTS or self.num_detections == 0:
            found.append(
                f"only {self.num_detections} detections of {self.num_inputs} inputs were compared, expected detections "
                f"of at least {MIN_INPUTS} inputs"
            )
            return found
        if not self.contrast >= MIN_CONTRAST:
            found.append(
                f"the scores of the checkpoint do not depend on the image (mean difference {self.contrast:.1e}), so "
                "that nothing can be compared"
            )
            return found
        if not self.num_agreeing >= limits.agreeing * self.num_detections:
            found.append(
                f"{self.num_detections - self.num_agreeing} of {self.num_detections} detections differ by more than "
                f"{limits.box:g} of the image or {limits.score:g} in score, or have another class"
            )
        if not self.relative_difference <= limits.relative:
            found.append(
                f"scores differ by {self.relative_difference:.2g} of the difference between two images, expected at "
                f"most {limits.relative:g}"
            )
        if self.original_ap is not None and self.exported_ap is not None:
            if not abs(self.original_ap - self.exported_ap) <= limits.ap:
                found.append(
                    f"AP is {self.exported_ap:.5f} instead of {self.original_ap:.5f}, expected a difference of at most "
                    f"{limits.ap:g}"
                )
        elif (self.original_ap is None) != (self.exported_ap is None):
            found.append("AP is undefined for one of them")
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values: for ``--json`` and the metadata of the file."""
        return dataclasses.asdict(self) | {"limits": dataclasses.asdict(self.limits)}

    def table(self) -> Table:
        """The report as a rich table."""
        limits = self.limits
        table = Table("exported file and checkpoint", "difference", "limit", box=SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.justify = "right"
        smallest, largest = min(self.sizes), max(self.sizes)
        table.add_row(
            f"{self.num_inputs} inputs, {self.num_images} {self.images} images, "
            f"{smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]} pixels",
            "",
            "",
        )
        share = self.num_agreeing / max(self.num_detections, 1)
        table.add_row(f"detections that agree, of {self.num_detections:,}", f"{share:.2%}", f"{limits.agreeing:.1%}")
        table.add_row("boxes, relative to the image (largest)", f"{self.max_box_difference:.1e}", f"{limits.box:g}")
        table.add_row("scores (largest)", f"{self.max_score_difference:.1e}", f"{limits.score:g}")
        table.add_row(
            "scores, relative to those of other images (mean)",
            f"{self.relative_difference:.1e}",
            f"{limits.relative:g}",
        )
        if self.original_ap is not None and self.exported_ap is not None:
            difference = abs(self.original_ap - self.exported_ap)
            table.add_row(
                f"AP {self.original_ap:.4f} and {self.exported_ap:.4f}", f"{difference:.1e}", f"{limits.ap:g}"
            )
        return table


def check(
    original: TrainedDetector, exported: TrainedDetector, *, dataset: Dataset | None = None, score: bool = False
) -> ParityReport:
    """Compare an exported file with its checkpoint.

    Args:
        original: the checkpoint, on the CPU, in evaluation mode.
        exported: the file, read back; its ``module`` is an ``ExportedModel``, whose ``export`` has the limits of the
            file: static size, smallest size, whether it takes padding.
        dataset: real images to compare on; without it, images are made.
        score: also compute the AP of both on ``dataset``.

    Raises:
        UserError: they disagree; with the numbers.
    """
    module = exported.module
    assert isinstance(module, ExportedModel)
    export = module.export
    shapes = InputShapes(
        resize_to=original.preprocessing.resize_to,
        static=export.static,
        min_size=export.min_size,
        padding=export.padding,
    )
    clips = export.postprocess and original.experiment.evaluation.clip
    report = compare(original, exported, gate_inputs(shapes, dataset), export.precision, clips=clips)
    report = replace(report, images="made" if dataset is None else "real")
    if score and dataset is not None and not report.failures():
        runtime = Runtime(RuntimeConfig(device="cpu", precision="fp32"))
        report = replace(
            report,
            original_ap=evaluate(original, dataset, runtime).report.ap,
            exported_ap=evaluate(exported, dataset, runtime).report.ap,
        )
    failures = report.failures()
    if export.precision == "int8" and report.original_ap is None and not failures:
        failures = ["the AP, which a file in int8 must keep, is undefined on this dataset (no objects?)"]
    if failures:
        raise UserError(
            f"The exported file does not give the detections of the checkpoint: {'; '.join(failures)}. "
            f"{_advice(report)}The file was not written."
        )
    return report


def _advice(report: ParityReport) -> str:
    """What to do about a refusal, if anything."""
    if report.num_detections == 0 and report.images == "made":
        return "Pass --data with images in which the checkpoint finds objects. "
    if report.precision != "float32":
        return "Export with full precision. "
    return ""


def compare(
    original: TrainedDetector,
    exported: TrainedDetector,
    inputs: Iterable[GateInput],
    precision: str = "float32",
    *,
    clips: bool = False,
) -> ParityReport:
    """The differences between the detections of two detectors.

    Images of a batch without padding are given to ``original`` one by one, so that the batches of ``exported`` must
    equal their single images.

    Args:
        original: the reference.
        exported: the other one, with at most as many detections per image.
        inputs: of ``gate_inputs``.
        precision: of ``exported``.
        clips: ``exported`` clips boxes to the image itself. Otherwise, boxes are compared before they are clipped.
    """
    most = original.experiment.evaluation.max_detections
    differences = Differences(LIMITS[precision], most, clips)
    wide = _unclipped(original, 2 * most)
    exported = _unclipped(exported, most)
    sizes: dict[tuple[int, int], None] = {}
    with _evaluating(original), _evaluating(exported):
        for batch, image_sizes, is_padded in inputs:
            differences.num_inputs += 1
            sizes[(batch.images.shape[2], batch.images.shape[3])] = None
            found = exported.detect(batch, image_sizes)
            if is_padded:
                expected = wide.detect(batch, image_sizes)
            else:
                parts = [
                    batch._replace(images=batch.images[i : i + 1], padding=batch.padding[i : i + 1])
                    for i in range(len(image_sizes))
                ]
                expected = [wide.detect(part, [size])[0] for part, size in zip(parts, image_sizes, strict=True)]
            for one, other in zip(expected, found, strict=True):
                differences.add(one, other)
    return differences.report(precision, tuple(sizes))


class Differences:
    """Collects the differences of all images.

    Args:
        limits: of the differences.
        most: largest number of detections per image.
        clips: boxes are clipped to the image.
    """

    def __init__(self, limits: Limits, most: int, clips: bool) -> None:
        self.limits, self.most, self.clips = limits, most, clips
        self.num_inputs = self.num_images = self.num_detections = self.num_agreeing = 0
        self.max_box = self.max_score = 0.0
        self._scores: list[Tensor] = []
        self._others: list[Tensor] = []

    def add(self, expected: Detections, found: Detections) -> None:
        """Compare the detections of one image.

        Args:
            expected: up to twice ``most`` detections, not clipped. Two whose scores are almost equal can change places,
                so that a detection at the end of ``found`` may be a later one of these.
            found: up to ``most`` detections.
        """
        limits, most = self.limits, self.most
        self.num_images += 1
        self._scores.append(_padded(expected.scores, most))
        self._others.append(_padded(found.scores, most))
        compared = _visible(found, limits, most)
        pairs = pair(expected, compared, limits, self.clips)
        agreeing = len(pairs.box_differences)
        # Detections that are clearly better than the last one that is compared must be among them.
        is_cut = len(compared) < len(found) or len(found) >= most
        last = float(compared.scores[-1]) if is_cut and len(compared) else 0.0
        required = expected.scores[:most] > max(last, limits.visible) + limits.score
        missing = int((required & ~pairs.is_paired[: len(required)]).sum())
        self.num_detections += len(compared) + missing
        self.num_agreeing += agreeing
        if agreeing:
            self.max_box = max(self.max_box, float(pairs.box_differences.max()))
            self.max_score = max(self.max_score, float(pairs.score_differences.max()))

    def report(self, precision: str, sizes: tuple[tuple[int, int], ...]) -> ParityReport:
        """The differences of all images so far."""
        contrast = relative = 0.0
        if self._scores:
            scores, others = torch.stack(self._scores), torch.stack(self._others)  # (I, N)
            contrast = float((scores[:, None] - scores[None]).abs().mean())
            relative = float((scores - others).abs().mean()) / max(contrast, 1e-30)
        return ParityReport(
            precision=precision,
            num_inputs=self.num_inputs,
            num_images=self.num_images,
            sizes=sizes,
            images="made",
            num_detections=self.num_detections,
            num_agreeing=self.num_agreeing,
            max_box_difference=self.max_box,
            max_score_difference=self.max_score,
            relative_difference=relative,
            contrast=contrast,
        )


def _visible(found: Detections, limits: Limits, most: int) -> Detections:
    """The detections that are compared: the visible ones, and always some of the best."""
    count = max(int((found.scores >= limits.visible).sum()), min(ALWAYS_COMPARED, most))
    return replace(found, boxes_xyxy=found.boxes_xyxy[:count], scores=found.scores[:count], labels=found.labels[:count])


def _padded(scores: Tensor, most: int) -> Tensor:
    """The best ``most`` scores in float64, 0 where there are fewer."""
    out = torch.zeros(most, dtype=torch.float64)
    out[: len(scores)] = scores[:most]
    return out


def _unclipped(detector: TrainedDetector, count: int) -> TrainedDetector:
    """The detector with ``count`` detections per image, whose boxes are not clipped."""
    experiment = detector.experiment
    evaluation = replace(experiment.evaluation, max_detections=count, clip=False)
    return replace(detector, experiment=replace(experiment, evaluation=evaluation))


@contextmanager
def _evaluating(detector: TrainedDetector) -> Iterator[None]:
    """Evaluation mode, restored."""
    was_training = detector.module.training
    detector.module.eval()
    try:
        yield
    finally:
        detector.module.train(was_training)
