"""The gate of an export: the checkpoint and the exported file must give the same detections."""

from dataclasses import dataclass
from typing import Any

from detrs.checkpoints.detector import TrainedDetector
from detrs.data.sample import Dataset


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """The differences between a checkpoint and an exported file."""

    def to_json(self) -> dict[str, Any]:
        """Plain values: for ``--json`` and the metadata of the file."""
        return {}


def check(
    original: TrainedDetector, exported: TrainedDetector, *, dataset: Dataset | None = None, score: bool = False
) -> ParityReport:
    """Compare an exported file with its checkpoint.

    Args:
        original: the checkpoint, on the CPU, in evaluation mode.
        exported: the file, read back; its ``module`` is an ``ExportedModel``, whose ``export`` has the limits of the
            file: static size, smallest size, whether it takes padding.
        dataset: real images to compare on; without it, images are made.
        score: also compute the AP of both on ``dataset``.

    Raises:
        UserError: they disagree; with the numbers.
    """
    raise NotImplementedError
