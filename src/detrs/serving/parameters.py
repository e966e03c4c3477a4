"""Query parameters of ``/predict``."""

import torch
from pydantic import BaseModel, ConfigDict, Field

from detrs.detection_settings import DetectionSettings
from detrs.errors import did_you_mean, printable
from detrs.serving.problems import RequestProblem
from detrs.structures import Classes, Detections


class Parameters(BaseModel):
    """Which detections of an image are in the answer."""

    model_config = ConfigDict(extra="forbid")

    threshold: float | None = Field(
        None, ge=0, le=1, description="Minimum score of a detection. Default: that of the server, see /health."
    )
    classes: list[str] = Field(
        [],
        max_length=1000,
        description="Names of classes, repeated or separated by commas; other detections are left out.",
    )
    max_detections: int | None = Field(None, ge=1, description="Largest number of detections per image.")


def labels(names: list[str], classes: Classes) -> frozenset[int] | None:
    """Labels of the classes ``names``; ``None``: all.

    Args:
        names: each is the name of a class, or several separated by commas.
        classes: those of the detector.

    Raises:
        RequestProblem: there is no such class.
    """
    if not names:
        return None
    index = {name: label for label, name in enumerate(classes.names)}
    parts = [part for name in names for part in ([name] if name in index else name.split(","))]
    for part in parts:
        if part not in index:
            raise RequestProblem(
                422, f"There is no class '{printable(part[:80])}'.{did_you_mean(part[:80], index)} See /health for all."
            )
    return frozenset(index[part] for part in parts)


def selected(
    detections: Detections, threshold: float, labels: frozenset[int] | None, max_detections: int | None
) -> Detections:
    """The best ``max_detections`` of the detections of ``labels`` with a score of at least ``threshold``."""
    found = DetectionSettings(thresholds=threshold, labels=labels).selected(detections)
    return found if max_detections is None else found.rows(torch.arange(min(max_detections, len(found))))
