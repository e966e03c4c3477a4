"""The gate of an export: a file whose detections differ from those of its checkpoint is not written.

Both detectors are ``TrainedDetector``s, with pre- and post-processing, as in evaluation and prediction.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.exported import ExportedModel
from detrs.config import RuntimeConfig
from detrs.data.sample import Dataset
from detrs.engine.evaluate import evaluate
from detrs.engine.runtime import Runtime
from detrs.errors import UserError
from detrs.exporting.differences import ImageDifference, image_difference
from detrs.exporting.inputs import GateInput, InputShapes, gate_inputs
from detrs.exporting.limits import LIMITS, MAX_UNDECIDED, MIN_CONTRAST, MIN_INPUTS, NUM_SAMPLES, Limits
from detrs.exporting.reference import Expected, Reference, evaluating, limited, only


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
    num_undecided: int
    """Images that are left out, since rounding errors change what the checkpoint detects."""
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
        if self.num_undecided:
            share = self.num_undecided / self.num_images
            table.add_row("images whose detections rounding changes (left out)", f"{share:.2%}", f"{MAX_UNDECIDED:.1%}")
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

    A detector that ranks candidates, such as the proposals of an encoder, detects something else where two of them are
    equal up to rounding and change places. So if few images disagree, those are left out in which ``original`` also
    disagrees with itself after noise of the size of rounding errors.

    Args:
        original: the reference.
        exported: the other one, with at most as many detections per image.
        inputs: of ``gate_inputs``.
        precision: of ``exported``.
        clips: ``exported`` clips boxes to the image itself. Otherwise, boxes are compared before they are clipped.
    """
    limits, most = LIMITS[precision], original.experiment.evaluation.max_detections
    reference, exported = Reference(original, most), limited(exported, most)

    given, images = list(inputs), list[ImageDifference]()
    disagreeing: dict[int, tuple[GateInput, Expected]] = {}  # by their place in ``images``
    with evaluating(original, exported):
        for each in given:
            pairs = zip(reference(each), exported.detect(each.batch, each.sizes), strict=True)
            for number, (expected, found) in enumerate(pairs):
                image = image_difference(expected, found, limits, most, clips=clips)
                if not image.agrees:
                    disagreeing[len(images)] = only(each, number), expected
                images.append(image)
        report = _report(precision, given, images, 0)
        if not report.failures() or len(disagreeing) > MAX_UNDECIDED * len(images):
            return report
        undecided = {
            place for place, image in disagreeing.items() if not is_decided(reference, *image, limits, clips=clips)
        }
    decided = [image for place, image in enumerate(images) if place not in undecided]
    return _report(precision, given, decided, len(undecided))


def is_decided(reference: Reference, each: GateInput, expected: Expected, limits: Limits, *, clips: bool) -> bool:
    """Whether noise of the size of rounding errors leaves the detections ``expected`` of one image as they are."""
    for seed in range(NUM_SAMPLES):
        [other] = reference(each, limits.noise, seed)
        found = other.detections.rows(torch.arange(other.num_expected))
        if not image_difference(expected, found, limits, reference.most, clips=clips).agrees:
            return False
    return True


def _report(
    precision: str, inputs: Sequence[GateInput], images: Sequence[ImageDifference], num_undecided: int
) -> ParityReport:
    contrast = relative = 0.0
    if images:
        scores = torch.stack([image.expected for image in images])  # (I, N)
        others = torch.stack([image.found for image in images])
        contrast = float((scores[:, None] - scores[None]).abs().mean())
        relative = float((scores - others).abs().mean()) / max(contrast, 1e-30)
    sizes = dict.fromkeys((each.batch.images.shape[2], each.batch.images.shape[3]) for each in inputs)
    return ParityReport(
        precision=precision,
        num_inputs=len(inputs),
        num_images=len(images) + num_undecided,
        sizes=tuple(sizes),
        images="made",
        num_detections=sum(image.num_detections for image in images),
        num_agreeing=sum(image.num_agreeing for image in images),
        num_undecided=num_undecided,
        max_box_difference=max((image.box for image in images), default=0.0),
        max_score_difference=max((image.score for image in images), default=0.0),
        relative_difference=relative,
        contrast=contrast,
    )
