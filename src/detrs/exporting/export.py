"""``detrs.export``: from a checkpoint to a file that was compared with it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float
from torch import Tensor
from torch.export import ExportedProgram

from detrs.checkpoints.detector import TrainedDetector, metadata_of
from detrs.checkpoints.exported import ExportedModel, ExportInfo, ExportPrecision, Format, Padded
from detrs.checkpoints.sources import open_detector
from detrs.config.criterion import CriterionConfig
from detrs.criterion.objective import Objective
from detrs.data.sample import Dataset
from detrs.engine.validation import dataset_to_score, validating
from detrs.errors import UserError
from detrs.exporting import onnx_file, parity, program
from detrs.exporting.half import to_float16
from detrs.exporting.parity import ParityReport
from detrs.exporting.quantization import to_int8
from detrs.files import atomic_write, is_present, os_errors, user_path
from detrs.models.detector import Model
from detrs.schema import to_dict
from detrs.structures import Boxes

if TYPE_CHECKING:
    import onnx

PRECISIONS: "dict[ExportPrecision, Callable[[onnx.ModelProto], onnx.ModelProto]]" = {
    "float32": lambda model: model,
    "float16": to_float16,
    "int8": to_int8,
}
"""What changes a model in float32 to each precision."""
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2"}
"""Format -> suffix of the file."""
OPSETS = range(18, 24)
"""Versions of ONNX's operators that can be written. TensorRT computes GridSample of 20 wrongly, and of 18 rightly."""
MIN_SIZE = 8
"""Smallest side of the images of an ONNX file in pixels; the comparison includes it."""
MIN_STATIC, MAX_STATIC = 32, 16_384
"""Limits of the sides of a static size in pixels."""


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """A written file, and how it was compared with its checkpoint."""

    path: Path
    export: ExportInfo
    parity: ParityReport
    num_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {"path": str(self.path), "bytes": self.num_bytes, **to_dict(self.export)}


def export(
    checkpoint: str | Path,
    path: str | Path | None = None,
    *,
    format: Format = "onnx",
    half: bool = False,
    int8: bool = False,
    static: tuple[int, int] | None = None,
    gather: bool = False,
    preprocess: bool = False,
    postprocess: bool = False,
    padding: bool = False,
    data: str | Path | Dataset | None = None,
    split: str | None = None,
    nms: float | None = None,
    opset: int = 18,
    on_step: Callable[[str], object] = lambda step: None,
) -> ExportReport:
    """Write a detector as a file that runs without this library, after a comparison with the checkpoint.

    At least 20 inputs of different sizes run through both; with ``data``, both are also scored. The file is written
    only if they agree.

    Args:
        checkpoint: as for ``detrs.load``.
        path: the file to write or to replace; by default the name of the checkpoint with another suffix.
        format: ``onnx``, or ``torch`` for a program of ``torch.export``.
        half: weights and most of the arithmetic in float16, the boxes and scores in float32 (ONNX).
        int8: weights in int8 (ONNX); needs ``data``.
        static: (height, width) in pixels of all images; by default any size.
        gather: bilinear sampling as gathers and products, without GridSample.
        preprocess: take images as uint8, and normalize them in the graph.
        postprocess: also take the sizes of the original images, and return boxes in their pixels.
        padding: also take a mask of padding, for images of different size in one batch. With ``static``, images keep
            their aspect ratio and are padded; otherwise they are resized to that size.
        data: dataset to compare and to score on, as for ``detrs.evaluate``. By default, the images of training are
            used if they exist, without scores.
        split: of the dataset; by default as for ``detrs.evaluate``.
        nms: IoU of non-maximum suppression in the graph; 1: none; by default as in training.
        opset: version of ONNX's operators.
        on_step: called with a description before each step.

    Raises:
        UserError: an argument is out of range, a package is missing, the file cannot be written, or the exported
            detector differs from the checkpoint; with the numbers.
    """
    check_arguments(format, half, int8, static, opset, has_data=data is not None)
    if format == "onnx":
        onnx_file.check_packages()  # the conversion takes a minute
    target = user_path(path) if path is not None else default_path(checkpoint, format)
    check_target(target, format)
    original = open_detector(checkpoint)
    if isinstance(original.module, ExportedModel):
        raise UserError(f"'{checkpoint}' is an exported file. Export its checkpoint.")
    original = original.suppressing(nms)
    short = min(original.preprocessing.resize_to)
    if format == "torch" and static is None and short < program.MIN_TRACED:
        raise UserError(
            f"'{checkpoint}' resizes images to {short} pixels on the short side, but programs of torch.export for any "
            f"size take at least {program.MIN_TRACED}. Choose a static size (--static) or the format onnx."
        )
    dataset = images_for(checkpoint, original, data, split)
    info = ExportInfo(
        format=format,
        opset=opset if format == "onnx" else None,
        precision="float16" if half else "int8" if int8 else "float32",
        static=static,
        min_size=program.MIN_TRACED if format == "torch" and static is None else MIN_SIZE,
        gather=gather,
        preprocess=preprocess,
        postprocess=postprocess,
        padding=padding,
        max_detections=original.experiment.evaluation.max_detections,
    )
    on_step("tracing the model")
    traced = program.trace(original, info)
    if format == "onnx":
        on_step("converting it to ONNX")
    save, size = (onnx_writer if format == "onnx" else program_writer)(traced, original, info)
    with atomic_write(target, what="the exported file", needed=size) as temporary:
        save(temporary, info)
        on_step("comparing it with the checkpoint")
        report = compared(original, temporary, dataset, score=data is not None)
        info = replace(info, parity=report.to_json())
        save(temporary, info)
        open_detector(temporary)  # with the final metadata
        size = temporary.stat().st_size
    return ExportReport(path=target, export=info, parity=report, num_bytes=size)


Writer = tuple[Callable[[Path, ExportInfo], None], int]
"""Writes a file with its metadata; and about how many bytes it has."""


def onnx_writer(traced: ExportedProgram, original: TrainedDetector, info: ExportInfo) -> Writer:
    """Converts a program to ONNX, in the precision of the file."""
    model = PRECISIONS[info.precision](onnx_file.convert(traced, info))
    onnx_file.strip(model)  # after the precision, which depends on the names of modules

    def save(path: Path, info: ExportInfo) -> None:
        onnx_file.add_metadata(model, original, info)
        onnx_file.save(model, path)

    return save, model.ByteSize()


def program_writer(traced: ExportedProgram, original: TrainedDetector, info: ExportInfo) -> Writer:
    """Removes from a program what a file does not need."""
    from detrs.exporting import program_file

    program_file.strip(traced)

    def save(path: Path, info: ExportInfo) -> None:
        program_file.save(traced, path, original, info)

    return save, sum(tensor.nbytes for tensor in traced.state_dict.values())


def compared(original: TrainedDetector, temporary: Path, dataset: Dataset | None, *, score: bool) -> ParityReport:
    """The comparison of a checkpoint with a file that was written.

    Raises:
        UserError: they differ, or their metadata does.
    """
    exported = open_detector(temporary)
    fixed = exported.preprocessing.fixed
    evaluation = replace(original.experiment.evaluation, pad=exported.experiment.evaluation.pad)
    original = replace(
        original,
        module=AtSize(original.module, (fixed.height, fixed.width)) if fixed and fixed.keep_ratio else original.module,
        preprocessing=replace(original.preprocessing, fixed=fixed),
        experiment=replace(original.experiment, evaluation=evaluation),
    )
    own = metadata_of(exported)
    if different := [name for name, value in metadata_of(original).items() if own[name] != value]:
        raise UserError(
            f"The metadata of the exported file differs from the checkpoint in: {', '.join(different)}. The file was "
            "not written."
        )
    return parity.check(original, exported, dataset=dataset, score=score)


class AtSize(Model):
    """A model that detects in images padded to one size, as an exported file with that size does."""

    def __init__(self, model: Model, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.padded = model, Padded(size)

    def objective(self, config: CriterionConfig) -> Objective:
        return self.model.objective(config)

    def detect(
        self, images: Float[Tensor, "B 3 H W"], padding: Bool[Tensor, "B H W"], max_detections: int = 100
    ) -> Boxes:
        tensors = self.padded({"images": images, "padding": padding})
        return self.model.detect(tensors["images"], tensors["padding"], max_detections)


def default_path(checkpoint: str | Path, format: Format) -> Path:
    """Where the file of a checkpoint is written: beside it; in the working directory if it is from the Hub."""
    path = user_path(checkpoint)
    if os.path.isdir(path):
        stem = "best" if os.path.exists(path / "best.safetensors") else path.resolve().name
        return path / (stem + SUFFIXES[format])
    if os.path.exists(path):
        return path.with_suffix(SUFFIXES[format])
    return Path(path.name.partition("@")[0] + SUFFIXES[format])


def check_target(path: Path, format: Format) -> None:
    """Check before the work that the file can be written.

    Raises:
        UserError: it has another suffix or an invalid name, is a folder, or its folder does not exist or is not
            writable.
    """
    if path.suffix != SUFFIXES[format]:
        raise UserError(f"Expected an output file *{SUFFIXES[format]} for the format {format}, got '{path}'.")
    with os_errors(f"Cannot write the output '{path}'"):
        is_present(path)
    if os.path.isdir(path):
        raise UserError(f"The output '{path}' is a folder. Expected the name of a file.")
    if not os.path.isdir(path.parent):
        raise UserError(f"The output's folder '{path.parent}' does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"The output's folder '{path.parent}' is not writable: choose another one (--output).")


def check_arguments(
    format: Format, half: bool, int8: bool, static: tuple[int, int] | None, opset: int, *, has_data: bool
) -> None:
    """Raise ``UserError`` if arguments are out of range or contradict each other."""
    if format not in SUFFIXES:
        raise UserError(f"format is {format!r}, but must be one of {', '.join(SUFFIXES)}.")
    if half and int8:
        raise UserError("half and int8 (--half, --int8) exclude each other: choose one precision.")
    if format == "torch" and (half or int8):
        raise UserError("half and int8 (--half, --int8) apply to the format onnx only.")
    if int8 and not has_data:
        raise UserError("int8 (--int8) changes scores. Pass data=... (--data), on which the AP is compared.")
    if opset not in OPSETS:
        raise UserError(f"opset is {opset}, but must be in {OPSETS[0]} ... {OPSETS[-1]}.")
    if static is not None and not all(MIN_STATIC <= side <= MAX_STATIC for side in static):
        raise UserError(
            f"static is {static[0]} x {static[1]}, but both sides must be in {MIN_STATIC} ... {MAX_STATIC} pixels."
        )


def images_for(
    checkpoint: str | Path, detector: TrainedDetector, data: str | Path | Dataset | None, split: str | None
) -> Dataset | None:
    """The dataset to compare on: the given one, or that of training if it can be opened.

    Raises:
        UserError: the given one cannot be opened, or its classes differ.
    """
    experiment = validating(detector.experiment, data, split)
    if data is None and split is None:
        try:
            return dataset_to_score(checkpoint, detector, experiment, None, None, warns=False)
        except UserError:  # it has moved, or is on another machine: the comparison uses made images
            return None
    return dataset_to_score(checkpoint, detector, experiment, data, split)
