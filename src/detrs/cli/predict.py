"""``detrs predict``: detect objects in images and videos; write JSON and annotated copies."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from detrs.cli.arguments import Flag, new_folder, parse
from detrs.cli.image_results import create_output_folder, origin, raise_errors, raise_only_error, write_summary
from detrs.cli.predict_images import Results, predict_images
from detrs.cli.predict_streams import Damage, predict_stream, source_name
from detrs.cli.report import console, print_json
from detrs.errors import UserError, counted

if TYPE_CHECKING:
    from rich.console import Console

    from detrs.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Detect objects in images, videos, and the streams of cameras.

    Writes annotated images and videos, predictions.json, and for each video a file with one line of JSON per frame to a
    new folder. Unreadable images and damaged frames are skipped and reported at the end, with exit code 2. After
    Ctrl-C, the predictions made so far are saved.
    """

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """Path of a best.safetensors, folder of a run, or published weights: Hub id, folder, .pth file."""
    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")] = ()
    """Images and videos: files, folders or quoted glob patterns (** includes subfolders). Cameras: 0, /dev/video0. With
    --allow-urls also URLs of images and of streams (RTSP, RTMP, HTTP)."""
    output: Path | None = None
    """Output folder, new or empty. Default: runs/predict-N."""
    threshold: float | None = None
    """Minimum score of a detection. Default: the one that maximizes F1 on the validation split of training, which is
    stored in the checkpoint; 0.5 if it has none."""
    batch_size: int = 8
    """Images or frames read at a time; those of equal size share a forward pass."""
    stride: int = 1
    """Step between two predicted frames of a video: 5 predicts frames 0, 5, 10, ..."""
    max_frames: int | None = None
    """Predicted frames after which a video ends. Default: all."""
    reconnect: int = 4
    """Attempts to open a live stream again after it broke off, 1, 2, 4, ... seconds apart."""
    no_video: Flag = False
    """Write no annotated videos, only their detections."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    allow_urls: Flag = False
    """Allow URLs as sources."""
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
            "No sources given. Usage: detrs predict CHECKPOINT SOURCE..., with files, folders, patterns or cameras."
        )
    from detrs.cli.predict_sources import split_sources
    from detrs.detection_settings import check_threshold
    from detrs.predictor import Predictor
    from detrs.video.reading import check_frame_arguments
    from detrs.visualization.draw import Style

    if arguments.show_labels and arguments.hide_labels:
        raise UserError("--show-labels and --hide-labels exclude each other: pass only one of them.")
    style = Style(show_labels=not arguments.hide_labels, line_width=arguments.line_width, color_by=arguments.color_by)
    if arguments.threshold is not None:
        check_threshold(arguments.threshold)
    predictor = Predictor.load(arguments.checkpoint, arguments.device)
    threshold = predictor.threshold if arguments.threshold is None else arguments.threshold
    errors: dict[str, UserError] = {}
    check_frame_arguments(arguments.stride, arguments.max_frames, arguments.reconnect)
    sources = split_sources(arguments.sources, arguments.allow_urls)
    predicted = predictor.predict_iter(
        sources.images,
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
            for source in sources.videos:
                predict_video(predictor, source, arguments, results, status.update)
    finally:
        skipped = write_summary(predictions, values, results.images, errors, results.videos)
    raise_only_error([*results.images, *results.videos], errors)

    print_results(results, console(as_json=arguments.json), origin(arguments.threshold, predictor.detector.threshold))
    if arguments.json:
        summary = {
            "num_images": len(results.images),
            "num_videos": len(results.videos),
            "num_frames": results.num_frames,
            "num_detections": results.num_detections,
            "skipped": skipped,
        }
        print_json({"output": str(output), "predictions": str(predictions), **values, **summary})
    raise_errors(errors, predictions)


def predict_video(
    predictor: "Predictor", source: str, arguments: PredictArguments, results: Results, show: Callable[[str], object]
) -> None:
    """Predict the frames of one video; an error of its name is recorded."""
    damage = Damage()
    try:
        frames = predictor.predict_video(
            source,
            threshold=0.0,
            batch_size=arguments.batch_size,
            stride=arguments.stride,
            max_frames=arguments.max_frames,
            allow_urls=arguments.allow_urls,
            reconnect=arguments.reconnect,
            on_error=damage.add,
        )
    except UserError as error:
        results.errors[source_name(source)] = error
        return
    annotate = not arguments.no_video
    predict_stream(frames, source, results, damage, stride=arguments.stride, annotate=annotate, show=show)


def print_results(results: Results, screen: "Console", threshold_origin: str) -> None:
    """A table with a row per source, the threshold and the number of detections."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table("source" if results.videos else "image", "detections", box=SIMPLE_HEAD)
    table.columns[0].overflow = "fold"
    for source, detections in results.rows:
        table.add_row(Text(source), Text(detections))
    objects, everything = results.num_detections, []
    if results.images or not results.videos:
        everything.append(counted(len(results.images), "image"))
    if results.videos:
        everything.append(f"{counted(len(results.videos), 'video')} ({counted(results.num_frames, 'frame')})")
    if results.rows:
        screen.print(table)
    screen.print(f"threshold {results.threshold}: {threshold_origin}")
    found = f"{counted(objects, 'detection')} in {' and '.join(everything)}"
    screen.print(f"{found}: {results.output / 'predictions.json'}", soft_wrap=True)
    if results.rows and not objects:
        highest = f"the highest score is {results.best:.3f}"
        screen.print(f"No detection reaches the threshold {results.threshold}; {highest}.")
