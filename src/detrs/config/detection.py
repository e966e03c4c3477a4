"""Settings of prediction and evaluation, and their ranges."""

from typing import Any, Literal

from detrs.errors import UserError

Threshold = float | Literal["per-class"]
"""A score in [0, 1], or ``per-class``: that of each class of the checkpoint."""
PER_CLASS: Literal["per-class"] = "per-class"


def check_threshold(threshold: Threshold) -> None:
    """Raise ``UserError`` if ``threshold`` is neither in [0, 1] nor ``per-class``, for example a percentage."""
    if isinstance(threshold, str):
        if threshold != PER_CLASS:
            raise UserError(f"threshold is {threshold!r}, but must be a number in [0, 1] or '{PER_CLASS}'.")
    elif not 0 <= threshold <= 1:
        raise UserError(f"threshold is {threshold}, but must be in [0, 1].")


def suppression_in_words(iou: float | None) -> str:
    """What non-maximum suppression does at this IoU.

    >>> suppression_in_words(0.8)
    'of detections with an IoU above 0.8 to a better one of their class'
    """
    return "none" if iou is None else f"of detections with an IoU above {iou:g} to a better one of their class"


def check_nms(iou: Any) -> None:
    """Raise ``UserError`` if the IoU of non-maximum suppression is not in (0, 1]; ``None``: no suppression."""
    if iou is not None and (isinstance(iou, bool) or not isinstance(iou, int | float) or not 0 < iou <= 1):
        raise UserError(f"nms is {iou!r}, but must be an IoU above 0 and at most 1, such as 0.7; 1 switches it off.")
