"""The images of ``detrs predict``: their rows in ``predictions.json``, and annotated copies."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrs.cli.image_results import counts, stem, unique_name
from detrs.errors import UserError, counted, printable

if TYPE_CHECKING:
    from torch import Tensor

    from detrs.cli.prediction_files import PredictionFiles
    from detrs.predictor import ImageDetections
    from detrs.structures import Detections
    from detrs.visualization.draw import Style


@dataclass(kw_only=True)
class Results:
    """What was found so far, and what failed."""

    output: Path
    threshold: float | tuple[float, ...]
    """Smallest score of a detection, or that of each class."""
    style: "Style"
    files: "PredictionFiles"
    """Crops, labels and table, if they are wanted."""
    images: list[dict[str, Any]] = field(default_factory=list)
    """One entry of ``predictions.json`` for each image."""
    videos: list[dict[str, Any]] = field(default_factory=list)
    """One entry of ``predictions.json`` for each video."""
    rows: list[tuple[str, str]] = field(default_factory=list)
    """Source and its detections, for the table."""
    errors: dict[str, UserError] = field(default_factory=dict)
    """Source -> why it, or a file of it, is missing."""
    best: float = 0.0
    """Highest score, also of detections below the threshold."""

    def at_threshold(self, everything: "Detections") -> "Detections":
        """The detections at the threshold; the best score of all is remembered."""
        self.best = max(self.best, *everything.scores[:1].tolist(), 0.0)  # sorted by score
        return everything.filter(self.threshold)

    def write_files(
        self,
        image: "Tensor",
        found: "Detections",
        name: str,
        *,
        frame_index: int | None = None,
        time_seconds: float | None = None,
    ) -> None:
        """Write the crops, labels and rows of an image, as ``PredictionFiles.add``; an error is recorded."""
        try:
            self.files.add(image, found, name, frame_index=frame_index, time_seconds=time_seconds)
        except UserError as error:
            self.errors.setdefault(found.source or "", error)

    @property
    def num_detections(self) -> int:
        """Detections in all images and frames."""
        in_videos: int = sum(video["num_detections"] for video in self.videos)
        return sum(len(image["detections"]) for image in self.images) + in_videos

    @property
    def num_frames(self) -> int:
        """Predicted frames of all videos."""
        return sum(video["num_frames"] for video in self.videos)


def predict_images(predicted: Iterable["ImageDetections"], results: Results, show: Callable[[str], object]) -> None:
    """Draw and record images, one by one.

    Args:
        predicted: images with all their detections.
        results: changed in place, so that an interruption loses nothing.
        show: called with the progress.
    """
    from detrs.visualization.draw import draw_detections

    for image, everything in predicted:
        found = results.at_threshold(everything)
        source = found.source or ""
        drawn = draw_detections(image, found, results.threshold, style=results.style)
        own = unique_name(stem(source), lambda stem: (results.output / f"{stem}.jpg").exists())
        path = results.output / f"{own}.jpg"
        try:
            drawn.save(path, quality=95)
            name = path.name
        except OSError as error:
            path.unlink(missing_ok=True)
            results.errors[source] = UserError(f"Cannot write '{path}': {error.strerror or error}.")
            name = None
        results.write_files(image, found, own)
        results.images.append({**found.to_json(), "annotated_image": name})
        results.rows.append((printable(source), counts(found)))
        show(counted(len(results.images), "image"))
