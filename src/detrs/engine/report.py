"""The report of an evaluation: a page, figures and JSON in a folder."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from detrs.data.sample import Dataset
from detrs.errors import UserError
from detrs.evaluation.coco import Id
from detrs.evaluation.diagnosis import Diagnosis, ImageErrors
from detrs.evaluation.errors import found_objects
from detrs.evaluation.label_errors import LabelError
from detrs.evaluation.matching import Matching
from detrs.files import PARTIAL, atomic_write, write_text
from detrs.visualization.draw import grid
from detrs.visualization.page import Shown
from detrs.visualization.report_figures import figures
from detrs.visualization.report_images import Drawn, part, side_by_side
from detrs.visualization.report_page import page
from detrs.visualization.suspects import data_uri

if TYPE_CHECKING:
    from detrs.engine.evaluate import Scores

PAGE, NUMBERS = "report.html", "report.json"
WORST_ON_PAGE, WORST_IN_FIGURE = 12, 6
LABELS_OF_A_KIND = 12


def check_report_folder(folder: Path) -> None:
    """Check that a report can be written, and create the folder.

    Raises:
        UserError: it is a file, is not writable, or contains something else than a report. A report may be incomplete,
            since the disk was full, and have other files beside it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir() if not PARTIAL.fullmatch(path.name)}
        is_free = is_report(folder / NUMBERS) if NUMBERS in names else names <= {PAGE, *FIGURES}
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"--report must be a folder, but '{error.filename or folder}' is a file.") from error
    except OSError as error:
        raise UserError(f"--report: cannot create the folder '{folder}': {error.strerror}.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"--report: the folder '{folder}' is not writable: choose another one.")
    if not is_free:
        raise UserError(f"--report: the folder '{folder}' is not empty and contains no report: choose another one.")


def is_report(path: Path) -> bool:
    """Whether a file is the ``report.json`` of this library, and not one of another program."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "diagnosis" in values


def write_report(scores: "Scores", folder: Path) -> Path:
    """Write the report of an evaluation; files of an earlier report are replaced.

    Args:
        scores: of the evaluation.
        folder: has passed ``check_report_folder``.

    Returns:
        The page.

    Raises:
        UserError: the folder cannot be written, or an image cannot be read.
    """
    values = report_values(scores)
    for old in folder.glob("*.png"):
        if old.name in FIGURES:
            old.unlink()
    for name, figure in figures(values["diagnosis"]):
        with atomic_write(folder / name) as temporary:
            figure.savefig(temporary, format="png")
    assert scores.dataset is not None
    worst, candidates = worst_images(scores), label_images(scores.dataset, scores.diagnosis)
    if worst:
        first = worst[:WORST_IN_FIGURE]
        sheet = grid([each for _, each in first], columns=1, captions=[caption for caption, _ in first])
        _save(sheet, folder / "worst_images.png")
    if candidates:
        named = [(f"{kind}: {each[0]}", each[1]) for kind, found in candidates.items() for each in found]
        images, captions = [each for _, each in named], [caption for caption, _ in named]
        _save(grid(images, columns=6, captions=captions), folder / "labels_to_check.png")
    html = page(
        values,
        [Shown(caption, data_uri(image, "JPEG")) for caption, image in worst],
        {
            kind: [Shown(caption, data_uri(image, "JPEG")) for caption, image in found]
            for kind, found in candidates.items()
        },
    )
    write_text(folder / PAGE, html)
    write_text(folder / NUMBERS, json.dumps(values, allow_nan=False) + "\n")  # last: a folder with it is complete
    return folder / PAGE


FIGURES = {
    *("pr_curve.png", "f1_curve.png", "confusion_matrix.png", "errors.png", "calibration.png", "layers.png"),
    *("worst_images.png", "labels_to_check.png"),
}
"""All figures of a report; some are written only where there is something to show."""


def report_values(scores: "Scores") -> dict[str, Any]:
    """The content of ``report.json``."""
    experiment = scores.experiment
    assert experiment is not None
    kind = type(experiment.model).__name__.removesuffix("Config")
    short, long = experiment.data.resize_to
    size = f"{short}" if short == long else f"{short}, {long}"
    path = experiment.data.path
    name = "data in Python" if path is None else os.path.basename(os.path.normpath(path))
    split = name if path is None else f"split {experiment.data.val_split} of {path}"
    return {
        "name": f"{kind} on {name}",
        "about": f"{experiment.name or kind}, {split}, image size {size}, {scores.precision}",
        "report": scores.report.to_json(),
        "diagnosis": scores.diagnosis.to_json(),
    }


def worst_images(scores: "Scores") -> list[tuple[str, Image.Image]]:
    """Caption and image of those with most errors. Captions may be equal: folders repeat the names of files."""
    assert scores.dataset is not None
    dataset, found = scores.dataset, []
    for each in scores.diagnosis.worst_images[:WORST_ON_PAGE]:
        index = position(dataset, each.image_id)
        drawn = drawn_errors(dataset, index, scores.matching, each, scores.diagnosis.threshold)
        caption = f"{Path(dataset.path_of(index)).name}: {each.wrong} wrong, {each.lost} not found, {each.right} right"
        found.append((caption, drawn))
    return found


def drawn_errors(dataset: Dataset, index: int, matched: Matching, errors: ImageErrors, threshold: float) -> Image.Image:
    """The ground truth and the detections of an image side by side."""
    number = matched.image_ids.index(errors.image_id)
    objects = np.flatnonzero((matched.objects.image == number) & ~matched.objects.is_crowd)
    accepted = (matched.found.image == number) & (matched.found.scores >= threshold) & ~matched.ignored
    rows = np.flatnonzero(accepted)
    truth = Drawn(
        _corners(matched.objects.boxes[objects]),
        matched.objects.label[objects].tolist(),
        found_objects(matched, threshold)[objects].tolist(),
    )
    found = Drawn(
        _corners(matched.found.boxes[rows]),
        matched.found.label[rows].tolist(),
        matched.is_right[rows].tolist(),
        matched.found.scores[rows].tolist(),
    )
    return side_by_side(dataset[index].image, truth, found, matched.names)


def label_images(dataset: Dataset, diagnosis: Diagnosis) -> dict[str, list[tuple[str, Image.Image]]]:
    """Kind -> caption and image of the first candidates for wrong labels."""
    found: dict[str, list[tuple[str, Image.Image]]] = {}
    for each in diagnosis.label_errors:
        own = found.setdefault(each.kind, [])
        if len(own) < LABELS_OF_A_KIND:
            index = position(dataset, each.image_id)
            name = Path(dataset.path_of(index)).name
            own.append((f"{label_caption(each)}, {name}", part(dataset[index].image, each.box, each.detected_box)))
    return found


def label_caption(each: LabelError) -> str:
    """The classes in a few words."""
    if each.detected_label is None:
        return f"{each.label}, {each.score:.0%} of similar ones are found"
    if each.label is None:
        return f"{each.detected_label} {each.score:.2f}"
    if each.label == each.detected_label:
        return f"{each.label} {each.score:.2f}, IoU {each.iou:.2f}"
    return f"labeled {each.label}, detected {each.detected_label} {each.score:.2f}"


def position(dataset: Dataset, image_id: Id) -> int:
    """The index of an image."""
    return next(index for index, own in enumerate(dataset.image_ids) if own == image_id)


def _corners(boxes: np.ndarray) -> torch.Tensor:
    """x, y, w, h as x1, y1, x2, y2."""
    return torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)).float()


def _save(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")
