"""``detrs evaluate``: how good."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from detrs.cli.arguments import Flag, Size, both, check_data, parse
from detrs.cli.report import console, print_json
from detrs.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Score a checkpoint on a data set; without further flags, exactly as training scored it."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A best.safetensors."""
    data: str | None = None
    """Folder with COCO annotations, or digits; by default the data set of training."""
    split: str | None = None
    """Split to score; by default the validation split of training."""
    image_size: Size | None = None
    """Short and long side in pixels, or one number for both; by default as in training."""
    batch_size: int | None = None
    """Images per forward pass; by default as in training."""
    max_detections: int | None = None
    """Detections per image; by default as in training."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    workers: int = 0
    """Loader processes; 0: load in this process."""
    results: Path | None = None
    """File to write the detections to, in COCO's format of results."""
    json: Flag = False
    """Print one JSON object; the table goes to the standard error stream."""


def run(argv: list[str]) -> None:
    """Score a checkpoint."""
    arguments = parse(EvaluateArguments, argv, "detrs evaluate")
    if arguments.results:
        check_writable(arguments.results)
    check_data(arguments.data)
    from detrs.engine.evaluate import evaluate_checkpoint
    from detrs.engine.runtime import is_main_process

    scores = evaluate_checkpoint(
        arguments.checkpoint,
        data=arguments.data,
        split=arguments.split,
        resize_to=both(arguments.image_size) if arguments.image_size else None,
        batch_size=arguments.batch_size,
        max_detections=arguments.max_detections,
        device=arguments.device,
        workers=arguments.workers,
    )
    if not is_main_process():
        return
    console(as_json=arguments.json).print(scores.report.table())
    if arguments.results:
        try:
            arguments.results.write_text(json.dumps(scores.results))
        except OSError as error:
            raise UserError(f"--results '{arguments.results}' cannot be written: {error.strerror}.") from error
    if arguments.json:
        print_json({"checkpoint": str(arguments.checkpoint), **scores.report.to_json()})


def check_writable(path: Path) -> None:
    """Refuse before an evaluation what would fail after it.

    Raises:
        UserError: ``path`` is a folder, lies in none, or may not be written.
    """
    if not path.parent.is_dir():
        raise UserError(f"The folder of --results does not exist: '{path.parent}'.")
    if path.is_dir():
        raise UserError(f"--results '{path}' is a folder: name a file.")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--results '{path}' cannot be written: name another file.")
