"""Dynamic DETR."""

from dataclasses import replace
from typing import Any

from detrs.config import Experiment, OptimizerConfig, ScheduleConfig
from detrs.config.dynamic_detr import DynamicDETRConfig
from detrs.presets.deformable_detr import deformable_detr_tiny
from detrs.presets.recipes import R50, official_data, official_evaluation


def dynamic_detr_r50() -> Experiment:
    """AP 42.9 (paper: 42.9; here 61 M parameters, paper: 58 M): 12 epochs; 36 with multi-scale training give 47.2.

    The learning rate drops after epochs 8 and 11. ``DynamicDETRConfig`` describes what the paper leaves open.
    """
    model = DynamicDETRConfig()
    return Experiment(
        model=model,
        data=replace(official_data(R50, batch_size=16), augment="flip", min_scale=1.0),
        optimizer=OptimizerConfig(lr=1e-4, backbone_lr_factor=0.1, sampling_lr_factor=1.0, clip_norm=1.0),
        schedule=ScheduleConfig(epochs=12, kind="step", drop_at=(8 / 12, 11 / 12), warmup_steps=1000),
        evaluation=official_evaluation(R50),
    )


def dynamic_detr_tiny() -> Experiment:
    """From scratch on small images: Dynamic DETR of the size of deformable-detr-tiny; our own design."""
    experiment = deformable_detr_tiny()
    tiny: Any = experiment.model
    return replace(
        experiment,
        model=DynamicDETRConfig(
            backbone=tiny.backbone,
            num_levels=3,
            dim=64,
            num_heads=4,
            encoder_layers=1,
            decoder_layers=3,
            canonical_size=56.0,
            num_queries=tiny.num_queries,
        ),
        optimizer=replace(experiment.optimizer, clip_norm=1.0),
    )
