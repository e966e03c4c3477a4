"""Sparse R-CNN."""

from dataclasses import replace
from typing import Literal

from detrs.config import Experiment, OptimizerConfig, ScheduleConfig
from detrs.config.backbone import BackboneConfig
from detrs.config.criterion import CriterionConfig
from detrs.config.sparse_rcnn import SparseRCNNConfig
from detrs.presets.deformable_detr import deformable_detr_tiny
from detrs.presets.recipes import R50, R101, official_data, official_evaluation, with_heavier_classes


def official_sparse(backbone: BackboneConfig, num_queries: int, augment: Literal["flip", "official"]) -> Experiment:
    """The training recipe of Sparse R-CNN (authors' code): 270,000 steps, drops after 210,000 and 250,000."""
    model = SparseRCNNConfig(backbone=replace(backbone, stages=(2, 3, 4, 5)), num_queries=num_queries)
    return Experiment(
        model=model,
        data=replace(official_data(backbone, batch_size=16), augment=augment),
        criterion=CriterionConfig(box_coordinates="xyxy"),
        optimizer=OptimizerConfig(lr=2.5e-5, backbone_lr_factor=1.0, sampling_lr_factor=1.0, clip_norm=1.0),
        schedule=ScheduleConfig(epochs=36, kind="step", drop_at=(21 / 27, 25 / 27), warmup_steps=1000),
        evaluation=official_evaluation(backbone),
    )


def sparse_rcnn_r50_100() -> Experiment:
    """AP 42.8 (paper: 42.8; authors' code: 129 GFLOPs, 106 M parameters): 100 proposals."""
    return official_sparse(R50, 100, "flip")


def sparse_rcnn_r50_300() -> Experiment:
    """AP 45.0 (paper: 45.0; authors' code: 148 GFLOPs, 106 M parameters): 300 proposals, random crops."""
    return official_sparse(R50, 300, "official")


def sparse_rcnn_r101_100() -> Experiment:
    """AP 44.1 (paper: 44.1; here 125 M parameters): 100 proposals."""
    return official_sparse(R101, 100, "flip")


def sparse_rcnn_r101_300() -> Experiment:
    """AP 46.4 (paper: 46.4; here 125 M parameters): 300 proposals, random crops."""
    return official_sparse(R101, 300, "official")


def sparse_rcnn_tiny() -> Experiment:
    """From scratch on small images: Sparse R-CNN of the size of deformable-detr-tiny; our own design."""
    experiment = deformable_detr_tiny()
    tiny = experiment.model
    model = SparseRCNNConfig(
        backbone=replace(tiny.backbone, stages=(2, 3, 4, 5)),
        **{name: getattr(tiny, name) for name in ("dim", "num_heads", "decoder_layers", "ffn_dim", "num_queries")},
        dynamic_dim=16,
        padding="excluded",
    )
    return with_heavier_classes(replace(experiment, model=model, criterion=CriterionConfig(box_coordinates="xyxy")))
