"""Files of ``detrs predict`` on request: crops of the objects, a dataset in the layout of YOLO, a table as CSV."""

import csv
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detrs.cli.image_results import unique_name
from detrs.errors import UserError, printable
from detrs.files import UniqueStems, link

if TYPE_CHECKING:
    from torch import Tensor

    from detrs.structures import Classes, Detections

QUALITY = 95
"""Of JPEG files."""
COLUMNS = (
    "source", "frame", "time_seconds", "class", "category_id", "score", "x1", "y1", "x2", "y2", "image_width",
    "image_height",
)  # fmt: skip
"""Of the table; frame and time only for videos, boxes in pixels."""
FORBIDDEN = re.compile(r'[\x00-\x1f<>:"/\\|?*]')
"""In names of folders, on any of the usual file systems."""
MAX_NAME_BYTES = 100


@dataclass(frozen=True, kw_only=True)
class FileChoice:
    """Which files are written."""

    crops: bool = False
    """``crops/CLASS/NAME-N.jpg``: detection N of an image, from 1 in the order of ``predictions.json``."""
    yolo: bool = False
    """``yolo/``: ``data.yaml``, ``images/train/`` and ``labels/train/``."""
    confidence: bool = False
    """The score at the end of each line of a label file, which is not valid in a dataset."""
    csv: bool = False
    """``detections.csv``: one row for each detection."""


class PredictionFiles:
    """The files of one command, written image by image, so that an interruption loses nothing.

    Args:
        folder: of the output; it exists.
        classes: of the detector.
        choice: which files to write.

    Raises:
        UserError: a file cannot be written.
    """

    def __init__(self, folder: Path, classes: "Classes", choice: FileChoice) -> None:
        self.folder, self.choice = folder, choice
        self._class_folders = folder_names(classes.names)
        self._stems = UniqueStems()
        with _writing(folder):
            if choice.csv:
                self._table = folder / "detections.csv"
                self._append(_csv_row(COLUMNS))
            if choice.yolo:
                for kind in ("images", "labels"):
                    (folder / "yolo" / kind / "train").mkdir(parents=True)
                (folder / "yolo" / "data.yaml").write_text(data_file(classes), encoding="utf-8")

    def add(
        self,
        image: "Tensor",
        found: "Detections",
        name: str,
        *,
        frame_index: int | None = None,
        time_seconds: float | None = None,
    ) -> None:
        """Write the files of one image.

        Args:
            image: (3, H, W) uint8, in which the objects were found.
            found: its detections at the threshold.
            name: stem of the files.
            frame_index: of a frame of a video; its number is added to ``name``.
            time_seconds: of a frame of a video.

        Raises:
            UserError: a file cannot be written. The others of this image may be missing, too.
        """
        is_frame = frame_index is not None  # their stems are not kept: they differ, and a camera may run for weeks
        stem = self._stems.unique(f"{name}-{frame_index:06}") if is_frame else self._stems.take(name)
        with _writing(self.folder):
            if self.choice.csv:
                self._append(_csv_rows(found, frame_index, time_seconds))
            if self.choice.yolo:
                self._add_labels(image, found, stem, is_file=frame_index is None)
            if self.choice.crops:
                self._add_crops(image, found, stem)

    def _append(self, text: str) -> None:
        """Add rows to the table, or none of them if the disk is full."""
        with self._table.open("ab", buffering=0) as file:
            size, content = file.tell(), text.encode()
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(size)
                raise

    def _add_labels(self, image: "Tensor", found: "Detections", stem: str, is_file: bool) -> None:
        from detrs.data.folders import IMAGE_SUFFIXES  # imports PyTorch

        folder = self.folder / "yolo"
        images = folder / "images" / "train"
        source = Path(found.source) if is_file and found.source else None
        if source is not None and source.suffix.lower() in IMAGE_SUFFIXES and source.is_file():
            link(source, images / f"{stem}{source.suffix.lower()}")
        else:
            _save(image, images / f"{stem}.jpg")
        lines = yolo_lines(found, confidence=self.choice.confidence)
        (folder / "labels" / "train" / f"{stem}.txt").write_text("".join(lines), encoding="utf-8")

    def _add_crops(self, image: "Tensor", found: "Detections", stem: str) -> None:
        boxes = (
            found.clipped().boxes_xyxy.double() * 100
        ).round() / 100  # as in JSON, so that 61.000004 ends before pixel 61
        low, high = boxes[:, :2].floor().long().tolist(), boxes[:, 2:].ceil().long().tolist()
        for number, ((x1, y1), (x2, y2), label) in enumerate(zip(low, high, found.labels.tolist(), strict=True), 1):
            if x1 < x2 and y1 < y2:
                folder = self.folder / "crops" / self._class_folders[label]
                folder.mkdir(parents=True, exist_ok=True)
                _save(image[:, y1:y2, x1:x2], folder / f"{stem}-{number}.jpg")


def yolo_lines(found: "Detections", *, confidence: bool = False) -> list[str]:
    """One line for each detection: class, center x, center y, width, height, and the score with ``confidence``.

    The class is the label, its index in the classes of the detector. Boxes are clipped to the image and in fractions of
    it; those without area there are left out.
    """
    height, width = found.image_size
    boxes = found.clipped().boxes_xyxy.double()
    boxes = boxes / boxes.new_tensor([width, height, width, height])
    center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    lines = []
    rows = zip(found.labels.tolist(), center.tolist(), size.tolist(), found.scores.tolist(), strict=True)
    for label, (x, y), (w, h), score in rows:
        values = [f"{value:.6f}" for value in (x, y, w, h)]
        if float(values[2]) > 0 and float(values[3]) > 0:
            lines.append(" ".join([str(label), *values, *([f"{score:.6f}"] if confidence else [])]) + "\n")
    return lines


def data_file(classes: "Classes") -> str:
    """The ``data.yaml`` of a YOLO dataset with the split ``train``."""
    import yaml  # not at the top: detrs --help is fast without

    content = {"train": "images/train", "names": dict(enumerate(classes.names))}
    return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=2**20)


def folder_names(names: tuple[str, ...]) -> list[str]:
    """A name of a folder for each class, different also on file systems that ignore case.

    >>> folder_names(("car", "traffic light", "a/b", "a:b", "..", "Car"))
    ['car', 'traffic light', 'a_b', 'a_b-2', 'class 4', 'Car-2']
    """
    found: list[str] = []
    taken: set[str] = set()
    for label, name in enumerate(names):
        short = os.fsencode(FORBIDDEN.sub("_", printable(name)))[:MAX_NAME_BYTES].decode(errors="ignore")
        plain = short.strip(" .") or f"class {label}"
        unique = unique_name(plain, lambda name: name.casefold() in taken)
        taken.add(unique.casefold())
        found.append(unique)
    return found


def _csv_rows(found: "Detections", frame_index: int | None, time_seconds: float | None) -> str:
    height, width = found.image_size
    names, ids = found.classes
    text = ""
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes_xyxy.double().tolist(), strict=True)
    for label, score, box in rows:
        frame = "" if frame_index is None else frame_index
        time = "" if time_seconds is None else round(time_seconds, 6)
        start = (printable(found.source or ""), frame, time, names[label], ids[label], round(score, 6))
        text += _csv_row((*start, *(round(value, 2) for value in box), width, height))
    return text


def _csv_row(values: tuple[object, ...]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _save(image: "Tensor", path: Path) -> None:
    """Write an image (3, H, W) as JPEG; a file that cannot be completed is removed."""
    from PIL import Image

    try:
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path, quality=QUALITY)
    except OSError:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raises errors of the file system as ``UserError``."""
    try:
        yield
    except OSError as error:
        name = printable(error.filename or folder)
        raise UserError(f"Cannot write '{name}': {error.strerror or error}.") from error
