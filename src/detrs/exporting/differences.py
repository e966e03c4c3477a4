"""The differences between the detections of a checkpoint and of an exported file."""

from typing import NamedTuple

import torch
from torch import Tensor

from detrs.exporting.limits import ALWAYS_COMPARED, Limits
from detrs.exporting.pairing import pair
from detrs.exporting.reference import Expected
from detrs.structures import Detections


class ImageDifference(NamedTuple):
    """The differences in one image."""

    num_detections: int
    """Detections that were compared."""
    num_agreeing: int
    """Those with the same class, and box and score within the limits."""
    box: float
    """Largest difference of a coordinate among those that agree, relative to the image."""
    score: float
    """Among those that agree."""
    expected: Tensor
    """(N,) scores of the checkpoint in float64, 0 where there is no detection."""
    found: Tensor
    """(N,) those of the exported file."""

    @property
    def agrees(self) -> bool:
        return self.num_agreeing == self.num_detections


def image_difference(
    expected: Expected, found: Detections, limits: Limits, most: int, *, clips: bool
) -> ImageDifference:
    """Compare the detections of one image.

    Args:
        expected: of the checkpoint.
        found: up to ``most`` detections of the exported file.
        limits: of the differences.
        most: largest number of detections per image.
        clips: boxes are clipped to the image.
    """
    scores = expected.detections.scores[: expected.num_expected]
    compared = _visible(found, limits, most)
    pairs = pair(expected.detections, compared, limits, clips)
    # Detections that are clearly better than the last one that can be among those compared must be among them.
    is_cut = len(compared) < len(found)
    last = float(compared.scores[-1]) if is_cut and len(compared) else 0.0
    required = scores > max(last, expected.last, limits.visible) + limits.score
    missing = int((required & ~pairs.is_paired[: len(required)]).sum())
    agreeing = len(pairs.box_differences)
    return ImageDifference(
        num_detections=len(compared) + missing,
        num_agreeing=agreeing,
        box=float(pairs.box_differences.max()) if agreeing else 0.0,
        score=float(pairs.score_differences.max()) if agreeing else 0.0,
        expected=_padded(scores, most),
        found=_padded(found.scores, most),
    )


def _visible(found: Detections, limits: Limits, most: int) -> Detections:
    """The detections that are compared: the visible ones, and always some of the best."""
    count = max(int((found.scores >= limits.visible).sum()), min(ALWAYS_COMPARED, most))
    return found.rows(torch.arange(min(count, len(found))))


def _padded(scores: Tensor, most: int) -> Tensor:
    """The best ``most`` scores in float64, 0 where there are fewer."""
    out = torch.zeros(most, dtype=torch.float64)
    out[: len(scores)] = scores[:most]
    return out
