"""Deformable DETR: the official recipe, the rows of its tables, and our own small and tiny presets."""

from dataclasses import replace
from typing import Any, Literal

from detrs.config import EvaluationConfig, Experiment, OptimizerConfig, ScheduleConfig
from detrs.config.backbone import BackboneConfig
from detrs.config.criterion import ContrastiveDenoising, CriterionConfig
from detrs.config.data import DataConfig
from detrs.config.deformable_detr import DeformableDETRConfig
from detrs.presets.recipes import R50, R101, c5, official_data, official_evaluation


def official(model: DeformableDETRConfig) -> Experiment:
    """The training recipe of Deformable DETR (A.4) around ``model``."""
    return Experiment(
        model=model,
        data=official_data(model.backbone, batch_size=32),
        optimizer=OptimizerConfig(lr=2e-4, backbone_lr_factor=0.1, sampling_lr_factor=0.1),
        schedule=ScheduleConfig(epochs=50, kind="step", drop_at=(0.8,)),
        evaluation=official_evaluation(model.backbone),
    )


def single_scale(backbone: BackboneConfig, dilated: bool = False) -> Experiment:
    return official(DeformableDETRConfig(backbone=c5(backbone, dilated), num_levels=1))


def multi_scale(
    backbone: BackboneConfig,
    reference: Literal["keep", "refine"] = "keep",
    queries: Literal["learned", "proposals"] = "learned",
) -> Experiment:
    return official(DeformableDETRConfig(backbone=backbone, reference=reference, queries=queries))


def deformable_detr_r50_single_scale() -> Experiment:
    """AP 39.4 (paper: 39.4, 78 GFLOPs, 160 V100 hours): C5 alone."""
    return single_scale(R50)


def deformable_detr_r50_single_scale_dc5() -> Experiment:
    """AP 41.5 (paper: 41.5, 128 GFLOPs, 215 V100 hours): dilated C5 alone."""
    return single_scale(R50, dilated=True)


def deformable_detr_r50() -> Experiment:
    """AP 44.5 (paper: 43.8, 173 GFLOPs, 325 V100 hours): four levels."""
    return multi_scale(R50)


def deformable_detr_r50_refine() -> Experiment:
    """AP 46.2 (paper: 45.4, 173 GFLOPs, 325 V100 hours): with iterative box refinement."""
    return multi_scale(R50, "refine")


def deformable_detr_r50_two_stage() -> Experiment:
    """AP 46.9 (paper: 46.2, 173 GFLOPs, 340 V100 hours): refinement and encoder proposals."""
    return multi_scale(R50, "refine", "proposals")


def deformable_detr_r50_single_scale_k1() -> Experiment:
    """AP 39.7 (paper, Table 2: 39.7): C5 alone, one sampling point."""
    return official(DeformableDETRConfig(backbone=c5(R50), num_levels=1, num_points=1))


def deformable_detr_r50_own_level_k1() -> Experiment:
    """AP 41.4 (paper, Table 2: 41.4): four levels without multi-scale attention, one sampling point."""
    return official(DeformableDETRConfig(backbone=R50, encoder_attention="own-level", num_points=1))


def deformable_detr_r50_own_level() -> Experiment:
    """AP 42.3 (paper, Table 2: 42.3): four levels without multi-scale attention."""
    return official(DeformableDETRConfig(backbone=R50, encoder_attention="own-level"))


def deformable_detr_r50_fpn() -> Experiment:
    """AP 43.8 (paper, Table 2: 43.8): four levels, FPN before the encoder."""
    return official(DeformableDETRConfig(backbone=R50, neck="fpn"))


def deformable_detr_r50_bifpn() -> Experiment:
    """AP 43.9 (paper, Table 2: 43.9): four levels, BiFPN before the encoder."""
    return official(DeformableDETRConfig(backbone=R50, neck="bifpn"))


def deformable_detr_r101_single_scale() -> Experiment:
    """No published AP: C5 of ResNet-101 alone."""
    return single_scale(R101)


def deformable_detr_r101_single_scale_dc5() -> Experiment:
    """No published AP: dilated C5 of ResNet-101 alone."""
    return single_scale(R101, dilated=True)


def deformable_detr_r101() -> Experiment:
    """No published AP: four levels on ResNet-101."""
    return multi_scale(R101)


def deformable_detr_r101_refine() -> Experiment:
    """No published AP: iterative box refinement on ResNet-101."""
    return multi_scale(R101, "refine")


def deformable_detr_r101_two_stage() -> Experiment:
    """AP 48.7 on test-dev (paper): refinement and encoder proposals on ResNet-101."""
    return multi_scale(R101, "refine", "proposals")


def deformable_detr_small() -> Experiment:
    """For a few hundred images and for CPUs: two-stage on MobileNetV2, 3.0 M parameters; our own design.

    Trained with denoising, and with scores that are a power of the IoU.
    Padding is excluded from queries and normalization, since images are not padded in evaluation and prediction.
    """
    return Experiment(
        model=DeformableDETRConfig(
            backbone=BackboneConfig(name="mobilenetv2_100.ra_in1k"),
            num_levels=3,
            dim=128,
            num_heads=4,
            encoder_layers=1,
            decoder_layers=3,
            ffn_dim=512,
            dropout=0.0,
            num_queries=100,
            queries="proposals",
            reference="refine",
            proposals="usable",
            neck_norm="group-masked",
        ),
        data=DataConfig(resize_to=(288, 384), augment="flip", min_scale=0.75, batch_size=4, padded_together=1),
        criterion=CriterionConfig(denoising=ContrastiveDenoising(pairs=50, hide_padding=True), quality="matchability"),
        optimizer=OptimizerConfig(lr=2e-3, backbone_lr_factor=0.3, sampling_lr_factor=0.3, ema_decay=0.998),
        schedule=ScheduleConfig(epochs=60, kind="cosine", warmup_steps=50),
        evaluation=EvaluationConfig(every_epochs=5, nms=0.8),
    )


def deformable_detr_tiny() -> Experiment:
    """From scratch in minutes, on small images, no download: two-stage on a ResNet of 0.4 M; our own design."""
    small = deformable_detr_small()
    model: Any = small.model
    return replace(
        small,
        model=replace(
            model,
            backbone=BackboneConfig(name="test_resnet", weights="none", norm="batch", freeze_stem=False),
            num_queries=50,
        ),
        data=DataConfig(resize_to=(128, 192), augment="flip", min_scale=0.8, batch_size=8, padded_together=1),
        criterion=CriterionConfig(),
        optimizer=OptimizerConfig(lr=1e-3, backbone_lr_factor=1.0, sampling_lr_factor=1.0, ema_decay=0.998),
    )


def deformable_detr_dat_tiny() -> Experiment:
    """From scratch on small images: deformable-detr-tiny on a DAT of 1.3 M parameters; our own design."""
    experiment = deformable_detr_tiny()
    model = replace(experiment.model, backbone=replace(experiment.model.backbone, name="test_dat"))
    return replace(experiment, model=model)
