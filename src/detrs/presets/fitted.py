"""Presets for few images: their settings follow from the data in ``detrs train``, by ``engine/fitting.py``."""

FITTED = ("deformable-detr-small", "dino-small", "faster-rcnn-small")
FITTED_SETTINGS = (
    "data.batch_size",
    "schedule.epochs",
    "optimizer.ema_decay",
    "evaluation.every_epochs",
    "model.num_queries",
    "model.backbone.stages",
    "evaluation.max_detections",
    "data.resize_to",
)
"""The settings that may change."""
