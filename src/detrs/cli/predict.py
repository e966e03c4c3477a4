"""``detrs predict``: detect objects in images; write JSON and annotated images."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from detrs.cli.arguments import Flag, new_folder, parse
from detrs.cli.image_results import create_output_folder, origin, raise_errors, raise_only_error, write_summary
from detrs.cli.predict_images import Results, predict_images
from detrs.cli.report import console, print_json
from detrs.errors import UserError, counted

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Detect objects in images.

    Writes annotated images and predictions.json to a new folder. Unreadable images are skipped and reported at the
    end, with exit code 2. After Ctrl-C, the predictions made so far are saved.
    """

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """Path of a best.safetensors, folder of a run, or published weights: Hub id, folder, .pth file."""
    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")] = ()
    """Files, folders or quoted glob patterns (** includes subfolders)."""
    output: Path | None = None
    """Output folder, new or empty. Default: runs/predict-N."""
    threshold: float | None = None
    """Minimum score of a detection. Default: the one that maximizes F1 on the validation split of training, which is
    stored in the checkpoint; 0.5 if it has none."""
    batch_size: int = 8
    """Images read at a time; images of equal size share a forward pass."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    allow_urls: Flag = False
    """Allow http:// and https:// URLs as sources."""
    show_labels: Flag = False
    """Draw class names and scores beside the boxes. This is the default."""
    hide_labels: Flag = False
    """Draw boxes only."""
    line_width: int | None = None
    """Width of the boxes' outlines in pixels. Default: proportional to the image, thinner around small objects."""
    color_by: Literal["class", "instance"] = "class"
    """One color per class, or another color for each object."""
    json: Flag = False
    """Print one JSON object to stdout; the table goes to stderr."""


def run(argv: list[str]) -> None:
    """Predict, draw and write."""
    arguments = parse(PredictArguments, argv, "detrs predict")
    if not arguments.sources:
        raise UserError(
            "No sources given. Usage: detrs predict CHECKPOINT SOURCE..., with files, folders or glob patterns."
        )
    from detrs.detection_settings import check_threshold
    from detrs.predictor import Predictor
    from detrs.visualization.draw import Style

    if arguments.show_labels and arguments.hide_labels:
        raise UserError("--show-labels and --hide-labels exclude each other: pass only one of them.")
    style = Style(show_labels=not arguments.hide_labels, line_width=arguments.line_width, color_by=arguments.color_by)
    if arguments.threshold is not None:
        check_threshold(arguments.threshold)
    predictor = Predictor.load(arguments.checkpoint, arguments.device)
    threshold = predictor.threshold if arguments.threshold is None else arguments.threshold
    errors: dict[str, UserError] = {}
    predicted = predictor.predict_iter(
        arguments.sources,
        threshold=0.0,
        batch_size=arguments.batch_size,
        allow_urls=arguments.allow_urls,
        on_error=errors.__setitem__,
    )
    output = create_output_folder(arguments.output or new_folder("predict"))  # arguments are checked by now
    predictions = output / "predictions.json"
    results = Results(output=output, threshold=threshold, style=style, errors=errors)
    values = {"checkpoint": arguments.checkpoint, "threshold": threshold}
    try:
        with console(as_json=True).status("predicting") as status:
            predict_images(predicted, results, status.update)
    finally:
        skipped = write_summary(predictions, values, results.images, errors)
    raise_only_error(results.images, errors)

    print_results(results, console(as_json=arguments.json), origin(arguments.threshold, predictor.detector.threshold))
    if arguments.json:
        summary = {"num_images": len(results.images), "num_detections": results.num_detections, "skipped": skipped}
        print_json({"output": str(output), "predictions": str(predictions), **values, **summary})
    raise_errors(errors, predictions)


def print_results(results: Results, screen: "Console", threshold_origin: str) -> None:
    """A table with a row per source, the threshold and the number of detections."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table("image", "detections", box=SIMPLE_HEAD)
    table.columns[0].overflow = "fold"
    for source, detections in results.rows:
        table.add_row(Text(source), Text(detections))
    images, objects = len(results.images), results.num_detections
    if images:
        screen.print(table)
    screen.print(f"threshold {results.threshold}: {threshold_origin}")
    found = f"{counted(objects, 'detection')} in {counted(images, 'image')}"
    screen.print(f"{found}: {results.output / 'predictions.json'}", soft_wrap=True)
    if images and not objects:
        highest = f"the highest score is {results.best:.3f}"
        screen.print(f"No detection reaches the threshold {results.threshold}; {highest}.")
