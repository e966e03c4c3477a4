"""Limits of the differences between a checkpoint and an exported file, for each precision."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest differences with which a file is written."""

    box: float
    """Of a coordinate of a box, relative to the width or height of the image; of a box that is larger than the image,
    relative to that box."""
    score: float
    """Of the score of a detection."""
    agreeing: float
    """Smallest fraction of the detections that agree: same class, box and score within the limits."""
    relative: float
    """Mean difference of scores, relative to the mean difference between the scores of two images. An untrained
    detector has scores of 0.01 everywhere, so that wrong ones are within ``score``; this limit is independent of their
    scale."""
    ap: float
    """Of the AP on a dataset."""
    visible: float
    """Detections with smaller scores are not compared, except the best ``ALWAYS_COMPARED`` of each image."""
    noise: float
    """Standard deviation of noise on normalized images, of the size of rounding errors; one step of a pixel is 0.02."""


ALWAYS_COMPARED = 10
"""Detections of each image that are compared whatever their score, so that there is no comparison of nothing."""
NUM_SAMPLES = 8
"""Samples of noise that decide whether rounding errors change the detections of an image."""
MAX_UNDECIDED = 0.25
"""Largest fraction of the images that are left out for this; where more disagree, none is."""
MIN_INPUTS = 20
"""Batches."""
MIN_CONTRAST = 1e-6
"""Smallest mean difference between the scores of two images. Below, scores do not depend on the image beyond rounding,
and agreement has no meaning."""

LIMITS = {
    "float32": Limits(box=1e-4, score=1e-3, agreeing=0.999, relative=0.01, ap=1e-4, visible=0.0, noise=1e-5),
    "float16": Limits(box=1e-2, score=2e-2, agreeing=0.98, relative=0.1, ap=5e-3, visible=0.1, noise=1e-3),
    "int8": Limits(box=5e-2, score=1e-1, agreeing=0.9, relative=0.3, ap=1e-2, visible=0.2, noise=1e-2),
}
"""By ``ExportInfo.precision``."""
