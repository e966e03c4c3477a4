"""The videos of ``detrs predict``: one line of JSON for each frame, and an annotated copy."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrs.cli.image_results import stem, unique_name
from detrs.cli.predict_images import Results
from detrs.errors import UserError, counted, printable
from detrs.video.sources import is_camera, redacted, scheme

if TYPE_CHECKING:
    from detrs.predictor import FrameDetections
    from detrs.structures import Detections
    from detrs.video.writing import VideoWriter


class Damage:
    """Counts the errors of a video; only the first is kept, since a camera may run for weeks."""

    def __init__(self) -> None:
        self.count, self.first = 0, UserError("")

    def add(self, source: str, error: UserError) -> None:
        """For ``on_error``."""
        self.first = self.first if self.count else error
        self.count += 1

    def error(self) -> UserError:
        """The first error, with the number of the others."""
        others = f", and {self.count - 1:,} more" if self.count > 1 else ""
        return UserError(f"{str(self.first).removesuffix('.')}{others}.")


class JsonLines:
    """A file with one JSON object per line, each written at once: after an interruption all lines are complete.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._size = path, 0
        try:
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise UserError(f"Cannot write '{path}': {error.strerror}.") from error

    def write(self, values: dict[str, Any]) -> None:
        """Add a line. If the disk has no space for all of it, none of it remains."""
        line = json.dumps(values, allow_nan=False).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written < len(line):  # the second attempt raises the reason
                self._file.write(line[written:])
        except OSError as error:
            self._file.truncate(self._size)
            raise UserError(f"Cannot write '{self.path}': {error.strerror}.") from error
        self._size += len(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class VideoFiles:
    """The files of one video, and its entry in ``predictions.json``.

    Args:
        name: of the source.
        path: of the files, without suffix.
        annotate: whether to write an annotated video.
        results: for errors of the annotated video.

    Raises:
        UserError: the lines cannot be written.
    """

    def __init__(self, name: str, path: Path, annotate: bool, results: Results) -> None:
        from detrs.video.writing import VideoWriter

        self._results = results
        self._lines = JsonLines(path.with_name(f"{path.name}.jsonl"))
        self._writer: VideoWriter | None = VideoWriter(path.with_name(f"{path.name}.mp4")) if annotate else None
        self.classes: Counter[str] = Counter()
        """Number of detections of each class."""
        self.entry: dict[str, Any] = {
            "source": name,
            "frames": self._lines.path.name,
            "annotated_video": self._writer.path.name if self._writer else None,
            "num_frames": 0,
            "num_detections": 0,
            "damaged_frames": 0,
            "dropped_frames": 0,
            "complete": False,
        }

    def add(self, frame: "FrameDetections", found: "Detections", *, stride: int, damaged: int) -> None:
        """Write a frame with the detections at the threshold.

        Args:
            frame: with its image.
            found: its detections at the threshold.
            stride: step between two frames.
            damaged: number of damaged frames before it.
        """
        self._lines.write(frame._replace(detections=found).to_json())
        self.entry["num_frames"] += 1
        self.entry["damaged_frames"] = damaged
        self.entry["dropped_frames"] = max(frame.frame_index // stride + 1 - self.entry["num_frames"] - damaged, 0)
        self.entry["num_detections"] += len(found)
        self.classes.update(found.names)
        number, time = frame.frame_index, frame.time_seconds
        self._results.write_files(frame.image, found, self._lines.path.stem, frame_index=number, time_seconds=time)
        self._annotate(lambda writer: writer.write(self._drawn(frame, found), frame.time_seconds))

    def close(self) -> None:
        """Complete the files."""
        self._annotate(lambda writer: writer.close())
        self._lines.close()

    def _drawn(self, frame: "FrameDetections", found: "Detections") -> Any:
        from detrs.visualization.draw import draw_detections

        return draw_detections(frame.image, found, self._results.threshold, min_size=0, style=self._results.style)

    def _annotate(self, step: Callable[["VideoWriter"], None]) -> None:
        """One step of the annotated video; if it fails, the video is removed, and the lines continue."""
        writer = self._writer
        if writer is None:
            return
        try:
            step(writer)
        except UserError as error:
            self._results.errors[self.entry["source"]] = error
            self.entry["annotated_video"] = self._writer = None
            writer.discard()


def predict_stream(
    frames: Iterator["FrameDetections"],
    source: str,
    results: Results,
    damage: Damage,
    *,
    stride: int,
    annotate: bool,
    show: Callable[[str], object],
) -> None:
    """Write the lines and the annotated video of one source, frame by frame.

    Args:
        frames: the frames with all their detections.
        source: its name, as typed.
        results: changed in place, so that an interruption loses nothing.
        damage: of this source.
        stride: step between two frames.
        annotate: whether to write an annotated video.
        show: called with the progress.

    Raises:
        UserError: the lines cannot be written; or a frame cannot be predicted, for example for lack of memory.
    """
    from detrs.video.connection import BrokenOffError

    name = source_name(source)
    with closing(frames):  # type: ignore[type-var]  # a generator
        try:
            first = next(frames, None)
        except UserError as error:
            results.errors[name] = error
            return
        if first is None:
            results.errors[name] = damage.error() if damage.count else UserError(f"{name} has no frames.")
            return
        is_number = is_camera(source) and source.isdecimal()
        path = free_stem(results.output, f"camera-{source}" if is_number else stem(name))
        with closing(VideoFiles(name, path, annotate, results)) as files:
            entry = files.entry
            results.videos.append(entry)
            try:
                for frame in chain([first], frames):
                    found = results.at_threshold(frame.detections)
                    files.add(frame, found, stride=stride, damaged=damage.count)
                    show(f"{name}: frame {frame.frame_index} ({frame.time_seconds:.1f} s)")
                entry["complete"] = True
            except BrokenOffError as error:
                results.errors.setdefault(name, error)
            entry["damaged_frames"] = damage.count
    if damage.count:
        results.errors.setdefault(name, damage.error())
    classes = ", ".join(f"{label}: {count:,}" for label, count in files.classes.most_common()) or "-"
    results.rows.append((printable(name), f"{counted(entry['num_frames'], 'frame')}: {classes}"))


def source_name(source: str) -> str:
    """A source in results and messages: a URL has no password."""
    return printable(redacted(source)) if scheme(source) else source


def free_stem(folder: Path, stem: str) -> Path:
    """``STEM`` in ``folder``, or ``STEM-2`` and so on if a video has this name."""
    return folder / unique_name(
        stem, lambda name: any((folder / f"{name}{suffix}").exists() for suffix in (".mp4", ".jsonl"))
    )
