"""``detrs evaluate``: COCO AP of a checkpoint."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from detrs.choices import Precision
from detrs.cli.arguments import Flag, Size, as_pair, check_data, check_tile_flags, parse
from detrs.cli.inputs import check_checkpoint, check_dataset
from detrs.cli.report import console, counting, print_json
from detrs.config.detection import check_nms, suppression_in_words
from detrs.errors import UserError
from detrs.files import is_present, os_errors, write_text
from detrs.tiling import tiling_of


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Compute the COCO AP of a checkpoint.

    By default, evaluates the validation split with the settings used during training.
    """

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """Path of a best.safetensors, folder of a run, exported file (.onnx, .pt2), or published weights: Hub id, folder,
    .pth file."""
    data: str | None = None
    """Folder or file of a dataset, hf:OWNER/NAME, or digits. Default: the dataset used in training."""
    split: str | None = None
    """Split to evaluate. Default: the validation split used in training."""
    image_size: Size | None = None
    """Short and long side in pixels, or one number for both. Default: as in training."""
    batch_size: int | None = None
    """Images per forward pass. Default: as in training."""
    max_detections: int | None = None
    """Detections per image. Default: as in training."""
    pad: bool | None = None
    """Pad images of different size to one batch, as the authors did. Default: as in training."""
    clip: bool | None = None
    """Clip boxes to the image. Default: as in training."""
    nms: float | None = None
    """IoU above which a detection is suppressed by a better one of its class, as in detrs predict.
    1: none. Default: as in training."""
    tile: int | None = None
    """Detect objects in overlapping tiles of this size in pixels, as in detrs predict. Default: in whole images."""
    overlap: float = 0.2
    """With --tile: smallest overlap of neighboring tiles, as a fraction of the tile."""
    tiles_only: Flag = False
    """With --tile: do not detect objects in the whole image, too."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "auto"
    """auto, fp32, bf16 or fp16. auto: bf16 where the processor or GPU multiplies it in hardware, else fp32."""
    workers: int = 0
    """Number of data loading processes; 0 loads in the main process."""
    no_cache: Flag = False
    """Check the dataset anew, and do not keep the result for the next time."""
    results: Path | None = None
    """Write the detections to this file, in the COCO results format."""
    report: Path | None = None
    """Write a report to this folder, new or with an earlier report: report.html, figures as PNG, report.json."""
    json: Flag = False
    """Print one JSON object to stdout; the table goes to stderr. With --report, including its numbers."""


def run(argv: list[str]) -> None:
    """Evaluate a checkpoint."""
    arguments = parse(EvaluateArguments, argv, "detrs evaluate")
    if arguments.results:
        check_writable(arguments.results)
    check_data(arguments.data)
    check_tile_flags(arguments.tile, argv)
    tiling_of(arguments.tile, arguments.overlap, not arguments.tiles_only)
    check_nms(arguments.nms)
    check_checkpoint(arguments.checkpoint)
    check_dataset(arguments.data)
    from detrs.engine.evaluate import evaluate_checkpoint
    from detrs.engine.runtime import is_main_process

    if arguments.report:
        from detrs.engine.report import check_report_folder, write_report

        check_report_folder(arguments.report)

    with counting("evaluating") as on_images:
        scores = evaluate_checkpoint(
            arguments.checkpoint,
            data=arguments.data,
            split=arguments.split,
            resize_to=as_pair(arguments.image_size) if arguments.image_size else None,
            batch_size=arguments.batch_size,
            max_detections=arguments.max_detections,
            pad=arguments.pad,
            clip=arguments.clip,
            nms=arguments.nms,
            tile=arguments.tile,
            overlap=arguments.overlap,
            whole_image=not arguments.tiles_only,
            device=arguments.device,
            precision=arguments.precision,
            workers=arguments.workers,
            cache_annotations=not arguments.no_cache,
            diagnose=arguments.report is not None,
            on_images=on_images,
        )
    if not is_main_process():
        return
    screen = console(as_json=arguments.json)
    screen.print(scores.report.table())
    screen.print(f"precision: {scores.precision}")
    suppression = scores.experiment.evaluation.suppression if scores.experiment else None
    screen.print(f"suppression: {suppression_in_words(suppression)}", soft_wrap=True)
    if arguments.results:
        write_text(arguments.results, json.dumps(scores.results))
    values = {
        "checkpoint": arguments.checkpoint,
        "precision": scores.precision,
        "nms": suppression,
        **scores.report.to_json(),
    }
    if arguments.report:
        path = write_report(scores, arguments.report)  # checked above; --results may be in the same folder
        screen.print(f"Report: {path}", soft_wrap=True)
        values |= {"report": str(path), "diagnosis": scores.diagnosis.to_json()}
    if arguments.json:
        print_json(values)


def check_writable(path: Path) -> None:
    """Check before the evaluation that its results can be written.

    Raises:
        UserError: ``path`` is not a regular file, its folder does not exist, or one of them is not writable.
    """
    with os_errors(f"--results: cannot write '{path}'"):
        is_present(path)
    if not os.path.isdir(path.parent):
        raise UserError(f"--results: the folder '{path.parent}' does not exist.")
    if os.path.isdir(path):
        raise UserError(f"--results must be a file, but '{path}' is a folder.")
    if os.path.exists(path) and not path.is_file():
        raise UserError(f"--results must be a regular file, but '{path}' is a pipe or a device.")
    if not all(os.access(each, os.W_OK) for each in (path.parent, path) if os.path.exists(each)):
        raise UserError(f"--results '{path}' is not writable: choose another file.")
