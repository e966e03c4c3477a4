"""``detrs predict``: detect objects in images; write JSON and annotated images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from detrs.cli.arguments import Flag, new_folder, parse
from detrs.cli.image_results import (
    counts,
    create_output_folder,
    origin,
    raise_errors,
    raise_only_error,
    stem,
    write_summary,
)
from detrs.cli.report import console, print_json
from detrs.errors import UserError, counted, printable


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
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from detrs.predictor import Predictor, check_threshold
    from detrs.visualization.draw import Style, draw_detections

    if arguments.show_labels and arguments.hide_labels:
        raise UserError("--show-labels and --hide-labels exclude each other: pass only one of them.")
    style = Style(show_labels=not arguments.hide_labels, line_width=arguments.line_width, color_by=arguments.color_by)
    if arguments.threshold is not None:
        check_threshold(arguments.threshold)
    predictor = Predictor.load(arguments.checkpoint, arguments.device)
    threshold = predictor.threshold if arguments.threshold is None else arguments.threshold
    errors: dict[str, UserError] = {}
    images: list[dict[str, Any]] = []
    table = Table("image", "detections", box=SIMPLE_HEAD)
    table.columns[0].overflow = "fold"
    everything = predictor.predict_iter(
        arguments.sources,
        threshold=0.0,
        batch_size=arguments.batch_size,
        allow_urls=arguments.allow_urls,
        on_error=errors.__setitem__,
    )
    output = create_output_folder(arguments.output or new_folder("predict"))  # arguments are checked by now
    predictions = output / "predictions.json"
    values = {"checkpoint": arguments.checkpoint, "threshold": threshold}
    best = 0.0
    try:
        with console(as_json=True).status("predicting") as status:
            for image, all_found in everything:
                best = max(best, *all_found.scores[:1].tolist(), 0.0)  # sorted by score
                found = all_found.filter(threshold)
                source = found.source or ""
                drawn = draw_detections(image, found, threshold, style=style)
                path = free_name(output, stem(source))
                try:
                    drawn.save(path, quality=95)
                    name = path.name
                except OSError as error:
                    path.unlink(missing_ok=True)
                    errors[source] = UserError(f"Cannot write '{path}': {error.strerror or error}.")
                    name = None
                images.append({**found.to_json(), "annotated_image": name})
                table.add_row(Text(printable(source)), Text(counts(found)))
                status.update(counted(len(images), "image"))
    finally:
        skipped = write_summary(predictions, values, images, errors)
    raise_only_error(images, errors)

    screen = console(as_json=arguments.json)
    objects = sum(len(image["detections"]) for image in images)
    if images:
        screen.print(table)
    screen.print(f"threshold {threshold}: {origin(arguments.threshold, predictor.detector.threshold)}")
    screen.print(f"{counted(objects, 'detection')} in {counted(len(images), 'image')}: {predictions}", soft_wrap=True)
    if images and not objects:
        screen.print(f"No detection reaches the threshold {threshold}; the highest score is {best:.3f}.")
    if arguments.json:
        summary = {"num_images": len(images), "num_detections": objects, "skipped": skipped}
        print_json({"output": str(output), "predictions": str(predictions), **values, **summary})
    raise_errors(errors, predictions)


def free_name(folder: Path, stem: str) -> Path:
    """``STEM.jpg`` in ``folder``, or ``STEM-2.jpg`` and so on if the name is taken."""
    path, number = folder / f"{stem}.jpg", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.jpg", number + 1
    return path
