"""Faster R-CNN with a feature pyramid, the baseline."""

from dataclasses import replace
from typing import Any

from detrs.config import Experiment, OptimizerConfig, ScheduleConfig
from detrs.config.criterion import CriterionConfig
from detrs.config.faster_rcnn import FasterRCNNConfig
from detrs.presets.deformable_detr import deformable_detr_small, deformable_detr_tiny
from detrs.presets.recipes import R50, official_data, official_evaluation


def region_loss(giou_weight: float) -> CriterionConfig:
    """Box loss of the second stage of Faster R-CNN: smooth L1 without GIoU (0), or GIoU alone."""
    return CriterionConfig(box_weight=0.0 if giou_weight else 1.0, giou_weight=giou_weight)


def faster_rcnn_r50_fpn() -> Experiment:
    """AP 42.0 (DETR's baseline: 42.0, 180 GFLOPs, 42 M parameters): 109 epochs, random crops and GIoU loss.

    The length, the augmentation and the loss are those of the baseline of DETR (A.4), batch size 16. The optimizer is
    AdamW with a weight decay of 0.05, and the learning rate drops after 93 and 97 % of the training, as in other long
    schedules. The weight of the GIoU loss is that of mmdetection.
    """
    return Experiment(
        model=FasterRCNNConfig(),
        data=official_data(R50, batch_size=16),
        criterion=region_loss(giou_weight=10.0),
        optimizer=OptimizerConfig(
            lr=1e-4, backbone_lr_factor=1.0, sampling_lr_factor=1.0, weight_decay=0.05, clip_norm=None
        ),
        schedule=ScheduleConfig(epochs=109, kind="step", drop_at=(0.926, 0.975), warmup_steps=500),
        evaluation=official_evaluation(R50),
    )


def faster_rcnn_small() -> Experiment:
    """For a few hundred images and for CPUs: the baseline of deformable-detr-small, on its backbone; our own design."""
    small = deformable_detr_small()
    return replace(
        small,
        model=FasterRCNNConfig(
            backbone=replace(small.model.backbone, stages=(2, 3, 4, 5)),
            dim=128,
            hidden_dim=256,
            anchor_sizes=(16.0, 32.0, 64.0, 128.0, 256.0),
            num_proposals=300,
            num_training_proposals=600,
            num_samples=128,
            canonical_size=112.0,
            roi_aligned=True,
        ),
        criterion=region_loss(giou_weight=0.0),
        optimizer=replace(small.optimizer, lr=1e-3, clip_norm=None, weight_decay=0.05),
        evaluation=replace(small.evaluation, nms=None),  # it has its own
    )


def faster_rcnn_tiny() -> Experiment:
    """From scratch on small images: the baseline of deformable-detr-tiny, on its backbone; our own design."""
    small, tiny = faster_rcnn_small(), deformable_detr_tiny()
    model: Any = small.model
    return replace(
        tiny,
        model=replace(
            model,
            backbone=replace(tiny.model.backbone, stages=(2, 3, 4, 5)),
            dim=64,
            anchor_sizes=(12.0, 24.0, 48.0, 96.0),
            num_samples=64,
            canonical_size=56.0,
        ),
        criterion=small.criterion,
        optimizer=replace(tiny.optimizer, clip_norm=None, weight_decay=0.05),
        evaluation=small.evaluation,
    )
