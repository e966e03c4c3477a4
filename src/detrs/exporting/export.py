"""``export``: from a checkpoint to a checked file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrs.checkpoints.exported import ExportInfo, Format
from detrs.data.sample import Dataset
from detrs.exporting.parity import ParityReport


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """A written file."""

    path: Path
    export: ExportInfo
    parity: ParityReport
    num_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        raise NotImplementedError


def export(
    checkpoint: str | Path,
    path: str | Path | None = None,
    *,
    format: Format = "onnx",
    half: bool = False,
    int8: bool = False,
    static: tuple[int, int] | None = None,
    gather: bool = False,
    preprocess: bool = False,
    postprocess: bool = False,
    padding: bool = False,
    data: str | Path | Dataset | None = None,
    split: str | None = None,
    opset: int = 18,
) -> ExportReport:
    """Write a detector as a file that runs without this library, and check it against the checkpoint."""
    raise NotImplementedError
