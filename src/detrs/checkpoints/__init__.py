"""Checkpoints: trained detectors, and the verified file format."""

from typing import TYPE_CHECKING

from detrs.on_demand import on_demand

if TYPE_CHECKING:
    from detrs.checkpoints.detector import TrainedDetector, load_detector, save_detector
    from detrs.checkpoints.format import Checkpoint, load, read_meta, save

__all__ = ["Checkpoint", "TrainedDetector", "load", "load_detector", "read_meta", "save", "save_detector"]

__getattr__ = on_demand(
    __name__,
    {
        **dict.fromkeys(("Checkpoint", "load", "read_meta", "save"), "detrs.checkpoints.format"),
        **dict.fromkeys(("TrainedDetector", "load_detector", "save_detector"), "detrs.checkpoints.detector"),
    },
)
