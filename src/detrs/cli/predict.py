"""``detrs predict``: detect objects in images and videos; write JSON and annotated copies."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import tyro

from detrs.choices import Precision
from detrs.cli.arguments import Flag, check_tile_flags, is_given, new_folder, parse
from detrs.cli.image_results import create_output_folder, origin, raise_errors, raise_only_error, write_summary
from detrs.cli.imports import without_collection
from detrs.cli.inputs import check_checkpoint, check_only_source
from detrs.cli.predict_images import Results, predict_images
from detrs.cli.predict_sources import split_sources
from detrs.cli.predict_streams import Damage, predict_stream, source_name
from detrs.cli.prediction_files import FileChoice, PredictionFiles
from detrs.cli.report import console, print_json
from detrs.config.detection import PER_CLASS, check_nms, check_threshold, suppression_in_words
from detrs.errors import UserError, counted
from detrs.tiling import tiling_of

if TYPE_CHECKING:
    from rich.console import Console

    from detrs.config.detection import Threshold
    from detrs.predictor import Predictor


class DetectionArguments(TypedDict):
    """Those of the arguments of ``Predictor`` that are the same for images and videos."""

    classes: tuple[str, ...] | None
    tile: int | None
    overlap: float
    whole_image: bool


@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """Detect objects in images, videos, and the streams of cameras.

    Writes annotated images and videos, predictions.json, and for each video a file with one line of JSON per frame to a
    new folder. Unreadable images and damaged frames are skipped and reported at the end, with exit code 2. After
    Ctrl-C, the predictions made so far are saved.
    """

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """Path of a best.safetensors, folder of a run, exported file (.onnx, .pt2), or published weights: Hub id, folder,
    .pth file."""
    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")] = ()
    """Images and videos: files, folders or quoted glob patterns (** includes subfolders). Cameras: 0, /dev/video0. With
    --allow-urls also URLs of images and of streams (RTSP, RTMP, HTTP)."""
    output: Path | None = None
    """Output folder, new or empty. Default: runs/predict-N."""
    threshold: Annotated[str | None, tyro.conf.arg(metavar="FLOAT|per-class")] = None
    """Minimum score of a detection. Default: the one that maximizes F1 on the validation split of training, which is
    stored in the checkpoint; 0.5 if it has none. per-class: likewise, that of each class."""
    classes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME...")] = ()
    """Classes to return. Default: all."""
    nms: float | None = None
    """IoU above which a detection is suppressed by a better one of its class; 1: none. Default: as in training."""
    tile: int | None = None
    """Detect objects of larger images in overlapping tiles of this size in pixels. Default: in whole images."""
    overlap: float = 0.2
    """With --tile: smallest overlap of neighboring tiles, as a fraction of the tile."""
    tiles_only: Flag = False
    """With --tile: do not detect objects in the whole image, too."""
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
    precision: Precision = "auto"
    """auto, fp32, bf16 or fp16. auto: bf16 where the processor or GPU multiplies it in hardware, else fp32."""
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
    save_crops: Flag = False
    """Write the pixels of each object to crops/CLASS/."""
    save_yolo: Flag = False
    """Write a dataset with the detections as labels to yolo/, in the layout of YOLO."""
    save_confidence: Flag = False
    """With --save-yolo: add the score to each line of the labels, which is not valid in a dataset."""
    save_csv: Flag = False
    """Write detections.csv with one row per detection."""
    json: Flag = False
    """Print one JSON object to stdout; the table goes to stderr."""


def run(argv: list[str]) -> None:
    """Predict, draw and write."""
    arguments = parse(PredictArguments, argv, "detrs predict")
    if not arguments.sources:
        raise UserError(
            "No sources given. Usage: detrs predict CHECKPOINT SOURCE..., with files, folders, patterns or cameras."
        )
    if arguments.show_labels and arguments.hide_labels:
        raise UserError("--show-labels and --hide-labels exclude each other: pass only one of them.")
    given = parse_threshold(arguments.threshold)
    check_tile_flags(arguments.tile, argv)
    if is_given("classes", argv) and not arguments.classes:
        raise UserError("--classes expects at least one name, got none.")
    if arguments.save_confidence and not arguments.save_yolo:
        raise UserError("--save-confidence has no effect without --save-yolo: add it, or remove --save-confidence.")
    check_nms(arguments.nms)
    tiling_of(arguments.tile, arguments.overlap, not arguments.tiles_only)
    check_checkpoint(arguments.checkpoint)
    check_only_source(arguments.sources, videos=True)
    with without_collection():
        from detrs.video.reading import check_frame_arguments

        check_frame_arguments(arguments.stride, arguments.max_frames, arguments.reconnect)
        from detrs.detection_settings import thresholds_of
        from detrs.predictor import Predictor
        from detrs.visualization.draw import Style

        labels = not arguments.hide_labels
        style = Style(show_labels=labels, line_width=arguments.line_width, color_by=arguments.color_by)
        predictor = Predictor.load(
            arguments.checkpoint, arguments.device, precision=arguments.precision, nms=arguments.nms
        )
    choice = FileChoice(
        crops=arguments.save_crops,
        yolo=arguments.save_yolo,
        confidence=arguments.save_confidence,
        csv=arguments.save_csv,
    )
    threshold = thresholds_of(predictor.detector, given)
    classes = predictor.detector.classes
    detection: DetectionArguments = {
        "classes": arguments.classes or None,
        "tile": arguments.tile,
        "overlap": arguments.overlap,
        "whole_image": not arguments.tiles_only,
    }
    errors: dict[str, UserError] = {}
    sources = split_sources(arguments.sources, arguments.allow_urls)
    predicted = predictor.predict_iter(
        sources.images,
        threshold=0.0,
        batch_size=arguments.batch_size,
        allow_urls=arguments.allow_urls,
        on_error=errors.__setitem__,
        **detection,
    )
    output = create_output_folder(arguments.output or new_folder("predict"))  # arguments are checked by now
    predictions = output / "predictions.json"
    files = PredictionFiles(output, classes, choice)
    results = Results(output=output, threshold=threshold, style=style, files=files, errors=errors)
    shown = dict(zip(classes.names, threshold, strict=True)) if isinstance(threshold, tuple) else threshold
    values = {
        "checkpoint": arguments.checkpoint,
        "precision": predictor.precision,
        "threshold": shown,
        "nms": predictor.nms,
    }
    try:
        with console(as_json=True).status("predicting") as status:
            predict_images(predicted, results, status.update)
            for source in sources.videos:
                predict_video(predictor, source, arguments, detection, results, status.update)
    finally:
        skipped = write_summary(predictions, values, results.images, errors, results.videos)
    raise_only_error([*results.images, *results.videos], errors)

    screen = console(as_json=arguments.json)
    print_results(results, screen, origin(given, predictor.detector.threshold), predictor)
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
    predictor: "Predictor",
    source: str,
    arguments: PredictArguments,
    detection: DetectionArguments,
    results: Results,
    show: Callable[[str], object],
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
            **detection,
        )
    except UserError as error:
        results.errors[source_name(source)] = error
        return
    annotate = not arguments.no_video
    predict_stream(frames, source, results, damage, stride=arguments.stride, annotate=annotate, show=show)


def parse_threshold(text: str | None) -> "Threshold | None":
    """The value of ``--threshold``.

    Raises:
        UserError: it is neither a number in [0, 1] nor ``per-class``.
    """
    if text is None or text == PER_CLASS:
        return text
    try:
        threshold = float(text)
    except ValueError:
        raise UserError(f"--threshold expects a number in [0, 1] or {PER_CLASS}, got '{text}'.") from None
    check_threshold(threshold)
    return threshold


def print_results(results: Results, screen: "Console", threshold_origin: str, predictor: "Predictor") -> None:
    """A table with a row per source, the threshold, the precision, the suppression and the number of detections."""
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
    per_class = isinstance(results.threshold, tuple)
    screen.print(f"threshold {'per class' if per_class else results.threshold}: {threshold_origin}")
    screen.print(f"precision: {predictor.precision}")
    screen.print(f"suppression: {suppression_in_words(predictor.nms)}", soft_wrap=True)
    found = f"{counted(objects, 'detection')} in {' and '.join(everything)}"
    screen.print(f"{found}: {results.output / 'predictions.json'}", soft_wrap=True)
    if results.rows and not objects:
        highest = f"the highest score is {results.best:.3f}"
        screen.print(
            f"No detection reaches the threshold {'of its class' if per_class else results.threshold}; {highest}."
        )
