"""Checkpoints: trained detectors, and the verified file format."""

from detrs.checkpoints.detector import TrainedDetector, load_detector, save_detector
from detrs.checkpoints.format import Checkpoint, load, read_meta, save

__all__ = ["Checkpoint", "TrainedDetector", "load", "load_detector", "read_meta", "save", "save_detector"]
