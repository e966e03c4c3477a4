"""Accuracy and latency of several files of detectors, side by side: checkpoints and exported files."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.exported import ExportedModel
from detrs.checkpoints.file_names import OLD_WEIGHTS
from detrs.checkpoints.sources import Source, open_source
from detrs.choices import Precision
from detrs.data.sample import Dataset
from detrs.engine.validation import is_other_path, open_validation, validating
from detrs.errors import UserError
from detrs.exporting.inputs import InputShapes, gate_inputs
from detrs.structures import Batch


class Latency(NamedTuple):
    """Duration for one image in milliseconds."""

    median_ms: float
    p95_ms: float
    """95 % of the measurements are at most this."""


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """Accuracy and latency of one file."""

    path: str
    kind: str
    """What the file is, as in ``detrs checkpoint``; exported files with their precision."""
    num_bytes: int
    total: Latency
    """Of an image in memory: resizing, normalization, model, and detections in pixels."""
    model: Latency
    """Of the model and its suppression, on the normalized image."""
    ap: float | None = None
    """On the dataset; ``None``: not computed, or undefined."""
    ap50: float | None = None


@dataclass(frozen=True, kw_only=True)
class FilesReport:
    """Several files on the same images, measured in turn."""

    files: tuple[FileReport, ...]
    num_images: int
    """Images that were timed."""
    repeats: int
    """Measurements of each image."""
    device: str
    """And the number of CPU threads of PyTorch."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        values = dataclasses.asdict(self)
        for row in values["files"]:
            row |= {name: row[name]._asdict() for name in ("total", "model")}
        return values | {"files": list(values["files"])}

    def table(self) -> Table:
        """The report as a rich table; latencies with their ratio to those of the first file."""
        columns = ("file", "kind", "size", "AP", "AP50", "per image", "p95", "model only", "p95")
        table = Table(*columns, box=SIMPLE_HEAD)
        for column in table.columns[2:]:
            column.justify = "right"
        table.columns[0].overflow = "fold"
        first = self.files[0]
        for each in self.files:
            table.add_row(
                each.path,
                each.kind,
                f"{each.num_bytes / 1e6:.1f} MB",
                *("-" if value is None else f"{value:.4f}" for value in (each.ap, each.ap50)),
                _compared(each.total.median_ms, first.total.median_ms),
                f"{each.total.p95_ms:.1f} ms",
                _compared(each.model.median_ms, first.model.median_ms),
                f"{each.model.p95_ms:.1f} ms",
            )
        return table


def _compared(latency_ms: float, first_ms: float) -> str:
    return f"{latency_ms:.1f} ms ({latency_ms / first_ms:.2f})"


class Opened(NamedTuple):
    """A file to measure."""

    name: str
    kind: str
    num_bytes: int
    detector: TrainedDetector


def open_file(path: str | Path, device: torch.device, precision: Precision = "auto") -> Opened:
    """A detector on ``device``, with the size of its file.

    Args:
        path: a checkpoint or an exported file.
        device: where it is measured.
        precision: of a checkpoint; exported files have their own.

    Raises:
        UserError: it cannot be read, or cannot run on ``device`` or in ``precision``.
    """
    source = open_source(path)
    is_exported = isinstance(source.detector.module, ExportedModel)
    detector = source.detector.on(device, "auto" if is_exported else precision)
    return Opened(str(path), _kind(source, detector.precision), _num_bytes(source.path), detector)


def _kind(source: Source, precision: str) -> str:
    module = source.detector.module
    if not isinstance(module, ExportedModel):
        return f"{source.kind}, {precision}"
    export = module.export
    size = f", {export.static[0]} x {export.static[1]}" if export.static else ""
    return f"{export.format}, {export.precision}{size}"


def _num_bytes(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    files = [*path.glob("*.safetensors")] or [path / OLD_WEIGHTS]
    return sum(file.stat().st_size for file in files)


def time_files(
    files: Sequence[Opened],
    images: Sequence[Tensor],
    *,
    device: torch.device,
    repeats: int = 7,
    on_images: Callable[[int, int], None] | None = None,
) -> FilesReport:
    """The latency of each file, one image at a time.

    All files process the same image before the next one, in an order that rotates, so that a load of the machine that
    changes affects all of them. Decoding is not included.

    Args:
        files: of ``open_file``.
        images: (3, H, W), uint8.
        device: of the detectors.
        repeats: measurements of each image; one more pass over all images before is not measured.
        on_images: called after each image with the number of images done, and of all.

    Raises:
        UserError: there are no files or images, ``repeats`` is below 1, or a file does not take an image.
    """
    if min(len(files), len(images), repeats) < 1:
        raise UserError(
            f"Expected at least one file, image and repetition, got {len(files)} files, {len(images)} images and "
            f"repeats={repeats}."
        )
    totals: list[list[float]] = [[] for _ in files]
    models: list[list[float]] = [[] for _ in files]
    turn, all_turns = 0, (repeats + 1) * len(images)
    for repeat in range(repeats + 1):
        for image in images:
            for index in np.roll(np.arange(len(files)), -turn).tolist():
                total = _milliseconds(lambda: _detect(files[index].detector, image, device), device)  # noqa: B023
                batch = _batch(files[index].detector, image, device)
                batch = files[index].detector.preprocessing.normalize(batch)
                alone = _milliseconds(lambda: files[index].detector.boxes(batch), device)  # noqa: B023
                if repeat > 0:
                    totals[index].append(total)
                    models[index].append(alone)
            turn += 1
            if on_images is not None:
                on_images(turn, all_turns)
    reports = tuple(
        FileReport(
            path=file.name,
            kind=file.kind,
            num_bytes=file.num_bytes,
            total=_latency(np.array(total)),
            model=_latency(np.array(alone)),
        )
        for file, total, alone in zip(files, totals, models, strict=True)
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return FilesReport(
        files=reports,
        num_images=len(images),
        repeats=repeats,
        device=f"{name}, {torch.get_num_threads()} threads",
    )


def with_scores(report: FilesReport, scores: Sequence[tuple[float | None, float | None]]) -> FilesReport:
    """The report with AP and AP50 of each file."""
    rows = zip(report.files, scores, strict=True)
    return replace(report, files=tuple(replace(file, ap=ap, ap50=ap50) for file, (ap, ap50) in rows))


def dataset_of(detector: TrainedDetector, data: str | None, split: str | None, *, is_required: bool) -> Dataset | None:
    """The dataset on which a detector is evaluated, as in ``evaluate_checkpoint``.

    Args:
        detector: with the dataset and the split of its training.
        data: dataset; by default that of training.
        split: split; by default the validation split of training.
        is_required: raise an error if the detector has none, or it has moved.

    Raises:
        UserError: there is no such dataset; ``data`` is not given, and the dataset of training is missing.
    """
    if data is None and not is_required:
        return None
    experiment = validating(detector.experiment, data, split)
    return open_validation(
        experiment, is_given=data is not None, is_exact=split is not None, is_other=is_other_path(data, detector)
    )


def images_of(dataset: Dataset | None, count: int, detector: TrainedDetector) -> list[Tensor]:
    """Images to time: of a dataset, evenly distributed over it, or made ones of the detector's size without one."""
    if dataset is not None:
        count = min(count, len(dataset))
        indices = [number * len(dataset) // count for number in range(count)]
        return [dataset[index].image.as_subclass(Tensor) for index in indices]
    shapes = InputShapes(resize_to=detector.preprocessing.resize_to, static=detector.preprocessing.resize_to)
    made = [image for each in gate_inputs(shapes) for image in each.batch.images]
    return [made[number % len(made)] for number in range(count)]


@torch.no_grad()
def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """Duration including work that is queued on the device."""
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _detect(detector: TrainedDetector, image: Tensor, device: torch.device) -> object:
    return detector.detect(_batch(detector, image, device), [(image.shape[1], image.shape[2])])


def _batch(detector: TrainedDetector, image: Tensor, device: torch.device) -> Batch:
    """One image, resized."""
    resized = detector.preprocessing.resize(image)[None]
    padding = torch.zeros(1, *resized.shape[2:], dtype=torch.bool)
    return Batch(resized, padding, ()).to(device)


def _latency(milliseconds: NDArray[np.float64]) -> Latency:
    return Latency(float(np.median(milliseconds)), float(np.percentile(milliseconds, 95)))
