"""``detrs explain``: what a detector computed for images, as pages to explore, JSON and figures."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from detrs.cli.arguments import Flag, new_folder, parse
from detrs.cli.image_results import (
    counts,
    create_output_folder,
    origin,
    raise_errors,
    raise_only_error,
    stem,
    unique_name,
    write_summary,
)
from detrs.cli.inputs import check_checkpoint, check_only_source
from detrs.cli.report import console, print_json
from detrs.config.detection import check_nms, check_threshold
from detrs.errors import UserError, counted, printable

if TYPE_CHECKING:
    from detrs.explanation.views import Explanation

FORMATS = ("html", "json", "png")
SUMMARY = "explanations"
"""Stem of the file that lists all images."""


@dataclass(frozen=True, kw_only=True)
class ExplainArguments:
    """Show what a detector computed for images: attention, sampling points, the path of the boxes, gradients.

    Writes NAME.html, a page to explore without server or network, NAME.json, the same as data, and NAME.png, a figure
    of the best detections, for each image to a new folder. Unreadable images are skipped and reported at the end, with
    exit code 2.
    """

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """Path of a best.safetensors, folder of a run, or published weights: Hub id, folder, .pth file."""
    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE...")] = ()
    """Files, folders or quoted glob patterns (** includes subfolders)."""
    output: Path | None = None
    """Output folder, new or empty. Default: runs/explain-N."""
    threshold: float | None = None
    """Minimum score of a detection. Default: as in detrs predict."""
    nms: float | None = None
    """IoU above which a detection is suppressed by a better one of its class; 1: none. Default: as in training."""
    gradients: int = 0
    """Detections, best first, whose gradients with respect to the image are computed: five backward passes for each."""
    format: str = "html,json,png"
    """Files for each image, separated by commas."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    allow_urls: Flag = False
    """Allow http:// and https:// URLs as sources."""
    json: Flag = False
    """Print one JSON object to stdout; the table goes to stderr."""


def run(argv: list[str]) -> None:
    """Explain and write."""
    arguments = parse(ExplainArguments, argv, "detrs explain")
    if not arguments.sources:
        raise UserError(
            "No sources given. Usage: detrs explain CHECKPOINT SOURCE..., with files, folders or glob patterns."
        )
    formats = parse_formats(arguments.format)
    if arguments.gradients < 0:
        raise UserError(f"--gradients is {arguments.gradients}, but must be at least 0.")
    if arguments.threshold is not None:
        check_threshold(arguments.threshold)
    check_nms(arguments.nms)
    check_checkpoint(arguments.checkpoint)
    check_only_source(arguments.sources, videos=False)
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from detrs.explanation.explain import check_layers, explain_iter
    from detrs.predictor import Predictor

    predictor = Predictor.load(arguments.checkpoint, arguments.device, nms=arguments.nms)
    check_layers(predictor.detector.module)
    threshold = predictor.threshold if arguments.threshold is None else arguments.threshold
    errors: dict[str, UserError] = {}
    images: list[dict[str, Any]] = []
    best = 0.0
    table = Table("image", "detections", "files", box=SIMPLE_HEAD)
    for column in (table.columns[0], table.columns[2]):
        column.overflow = "fold"
    explanations = explain_iter(
        predictor,
        arguments.sources,
        threshold=threshold,
        num_gradients=arguments.gradients,
        allow_urls=arguments.allow_urls,
        on_error=errors.__setitem__,
    )
    output = create_output_folder(arguments.output or new_folder("explain"))  # arguments are checked by now
    summary = output / f"{SUMMARY}.json"
    values = {
        "checkpoint": arguments.checkpoint,
        "threshold": threshold,
        "nms": predictor.nms,
        "num_gradients": arguments.gradients,
    }
    try:
        with console(as_json=True).status("explaining") as status:
            for each in explanations:
                source, names = each.source or "", []
                try:
                    for name in write_files(output, each, formats):
                        names.append(name)
                except OSError as error:
                    errors[source] = UserError(f"Cannot write to '{output}': {error.strerror or error}.")
                scores = each.trace[-1].scores
                best = max(best, float(scores.max()) if scores.numel() else 0.0)
                images.append({**each.detections.to_json(), "queries": each.queries, "files": names})
                table.add_row(Text(printable(source)), Text(counts(each.detections)), Text(printable(listed(names))))
                status.update(counted(len(images), "image"))
    finally:
        skipped = write_summary(summary, values, images, errors)
    raise_only_error(images, errors)

    screen = console(as_json=arguments.json)
    if images:
        screen.print(table)
    screen.print(f"threshold {threshold}: {origin(arguments.threshold, predictor.detector.threshold)}")
    screen.print(f"{counted(len(images), 'image')}: {output}", soft_wrap=True)
    if images and not any(image["detections"] for image in images):
        screen.print(f"No detection reaches the threshold {threshold}; the highest score is {best:.3f}.")
    pages = [name for image in images for name in image["files"] if name.endswith(".html")]
    if pages:
        screen.print(f"Open in a browser: {printable(str(output / pages[0]))}", soft_wrap=True)
    if arguments.json:
        print_json({"output": str(output), "summary": str(summary), **values, "images": images, "skipped": skipped})
    raise_errors(errors, summary)


def listed(names: list[str]) -> str:
    """The files of one image in short: ``["a.html", "a.json"]`` as ``a.html, .json``."""
    return ", ".join([*names[:1], *(Path(name).suffix for name in names[1:])])


def parse_formats(text: str) -> list[str]:
    """``"html, png"`` as ``["html", "png"]``.

    Raises:
        UserError: a format is unknown, or there is none.
    """
    formats = [each.strip().lower() for each in text.split(",") if each.strip()]
    unknown = [each for each in formats if each not in FORMATS]
    if unknown or not formats:
        raise UserError(f"--format expects some of {', '.join(FORMATS)}, separated by commas, got '{text}'.")
    return list(dict.fromkeys(formats))


def write_files(folder: Path, explanation: "Explanation", formats: list[str]) -> Iterator[str]:
    """Write the files of one image.

    Yields:
        The name of each file that was written. A file that cannot be written is removed.

    Raises:
        OSError: a file cannot be written, for example because the disk is full.
    """
    from detrs.visualization import explanation_figure
    from detrs.visualization.explorer import explorer_page

    name = free_stem(folder, stem(explanation.source or "image"), formats)
    values = explanation.to_json() if {"html", "json"} & {*formats} else {}
    for each in formats:
        path = folder / f"{name}.{each}"
        try:
            if each == "html":
                path.write_text(explorer_page(values), encoding="utf-8")
            elif each == "json":
                path.write_text(json.dumps(values, allow_nan=False), encoding="utf-8")
            else:
                explanation_figure.figure(explanation).savefig(path, format="png", dpi=explanation_figure.DPI)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        yield path.name


def free_stem(folder: Path, stem: str, formats: list[str]) -> str:
    """``STEM``, or ``STEM-2`` and so on, such that no file of this name exists in ``folder`` in any of ``formats``."""
    return unique_name(
        stem, lambda name: name.lower() == SUMMARY or any((folder / f"{name}.{each}").exists() for each in formats)
    )
