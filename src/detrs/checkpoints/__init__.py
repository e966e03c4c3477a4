"""Checkpoints: the verified file format."""

from detrs.checkpoints.format import Checkpoint, load, read_meta, save

__all__ = ["Checkpoint", "load", "read_meta", "save"]
