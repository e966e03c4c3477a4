"""``detrs predict``: objects in files and folders, as JSON and as annotated pictures."""

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import tyro

from detrs.cli.arguments import Flag, new_folder, parse
from detrs.cli.report import console, print_json
from detrs.errors import UserError, printable

if TYPE_CHECKING:
    from detrs.structures import Detections

MAX_STEM_BYTES = 200
"""Most file systems take names of 255 bytes; a number and .jpg follow."""


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Find objects in pictures.

    Writes every picture with its boxes, and predictions.json, to a new folder. Files that are no pictures are named at
    the end (exit code 2); the others are done all the same. What was found before Ctrl-C is written, too.
    """

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A best.safetensors."""
    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")] = ()
    """Files, folders, quoted glob patterns (** for sub-folders)."""
    output: Path | None = None
    """Folder to make; by default runs/predict-N."""
    threshold: float = 0.5
    """Smallest score of a detection."""
    batch_size: int = 8
    """Pictures to read at a time; those of one size go through the detector together."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    allow_urls: Flag = False
    """Fetch sources that begin with http:// or https://."""
    json: Flag = False
    """Print one JSON object; the table goes to the standard error stream."""


def run(argv: list[str]) -> None:
    """Predict, draw, write."""
    arguments = parse(PredictArguments, argv, "detrs predict")
    if not arguments.sources:
        raise UserError(
            "There is nothing to look at: detrs predict CHECKPOINT SOURCE... takes files, folders or globs."
        )
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from detrs.predictor import Predictor, check_threshold
    from detrs.visualization.draw import draw_detections

    check_threshold(arguments.threshold)
    predictor = Predictor.load(arguments.checkpoint, arguments.device)
    output = unused(arguments.output or new_folder("predict"))
    errors: dict[str, UserError] = {}
    images: list[dict[str, Any]] = []
    table = Table("picture", "found", box=SIMPLE_HEAD)
    table.columns[0].overflow = "fold"
    everything = predictor.predict_iter(
        arguments.sources,
        threshold=0.0,
        batch_size=arguments.batch_size,
        allow_urls=arguments.allow_urls,
        on_error=errors.__setitem__,
    )
    predictions = output / "predictions.json"
    values = {"checkpoint": str(arguments.checkpoint), "threshold": arguments.threshold}
    best = 0.0
    try:
        with console(as_json=True).status("looking") as status:
            for image, all_found in everything:
                best = max(best, *all_found.scores[:1].tolist(), 0.0)  # they are sorted
                found = all_found.filter(arguments.threshold)
                source = found.source or ""
                drawn = draw_detections(image, found, arguments.threshold)
                picture = free_name(output, stem(source))
                try:
                    drawn.save(picture, quality=95)
                    name = picture.name
                except OSError as error:
                    picture.unlink(missing_ok=True)
                    errors[source] = UserError(f"'{picture}' cannot be written: {error.strerror or error}.")
                    name = None
                images.append({**found.to_json(), "picture": name})
                table.add_row(Text(printable(source)), Text(counts(found)))
                status.update(f"{len(images)} pictures")
    finally:
        skipped = [{"source": source, "reason": str(error)} for source, error in errors.items()]
        write(predictions, {**values, "images": images, "skipped": skipped})

    screen = console(as_json=arguments.json)
    objects = sum(len(image["detections"]) for image in images)
    if images:
        screen.print(table)
    screen.print(f"{objects} objects in {len(images)} pictures: {predictions}", soft_wrap=True)
    if images and not objects:
        screen.print(f"No score reaches the threshold of {arguments.threshold:g}; the best is {best:.3f}.")
    if arguments.json:
        summary = {"num_images": len(images), "num_detections": objects, "skipped": skipped}
        print_json({"output": str(output), "predictions": str(predictions), **values, **summary})
    if errors:
        others = f" And {len(errors) - 1} more could not be done: see {predictions}." if len(errors) > 1 else ""
        raise UserError(f"{next(iter(errors.values()))}{others}")


def counts(found: "Detections") -> str:
    """``WBC 1, RBC 12``, the most frequent first."""
    return ", ".join(f"{name} {count}" for name, count in Counter(found.names).most_common()) or "-"


def write(path: Path, values: dict[str, Any]) -> None:
    """``values`` as JSON. Raises ``UserError``."""
    try:
        path.write_text(json.dumps(values, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"'{path}' cannot be written: {error.strerror}.") from error


def unused(path: Path) -> Path:
    """The folder ``path``, made if need be.

    Raises:
        UserError: it holds something already, for pictures are never overwritten, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The output folder '{path}' cannot be made: {error.strerror}.") from error
    if any(path.iterdir()):
        raise UserError(f"The output folder '{path}' is not empty: choose another.")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"The output folder '{path}' cannot be written: choose another.")
    return path


def stem(source: str) -> str:
    """What the drawing of ``source``, a file or a URL, is called: short enough for every file system."""
    path = urlsplit(source).path if "://" in source else source
    name = os.fsencode(Path(path).stem)[:MAX_STEM_BYTES]
    return name.decode(errors="ignore") or "picture"


def free_name(folder: Path, stem: str) -> Path:
    """``STEM.jpg`` in ``folder``, with a number behind it if pictures of several folders have the same name."""
    path, number = folder / f"{stem}.jpg", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.jpg", number + 1
    return path
