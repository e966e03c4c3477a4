"""Experiments worth a name: functions in one literal table, each saying its row of the paper.

The presets with a ResNet are the official recipes on COCO 2017 (118,287 training images): 50 epochs, batch 32, AdamW
with learning rate 2e-4 divided by ten after 40 epochs. AP is that of the authors' released weights on val2017.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from detrs.backbones.timm import BackboneConfig
from detrs.config import DataConfig, EvaluationConfig, Experiment, OptimizerConfig, ScheduleConfig
from detrs.errors import UserError, did_you_mean
from detrs.models.deformable_detr import DeformableDETRConfig

R50 = BackboneConfig(name="resnet50.tv_in1k")
R101 = BackboneConfig(name="resnet101.tv_in1k")


def official(model: DeformableDETRConfig) -> Experiment:
    """The training recipe of Deformable DETR (A.4) around ``model``."""
    return Experiment(
        model=model,
        data=DataConfig(image_size=(800, 1333), augment="official", batch_size=32),
        optimizer=OptimizerConfig(lr=2e-4, backbone_lr_factor=0.1, sampling_lr_factor=0.1, ema_decay=0.0),
        schedule=ScheduleConfig(epochs=50, kind="step", drop_at=(0.8,)),
    )


def single_scale(backbone: BackboneConfig, dilated: bool = False) -> Experiment:
    model = DeformableDETRConfig(backbone=replace(backbone, stages=(5,), dilated=dilated), num_levels=1)
    return replace(official(model), evaluation=EvaluationConfig(batch_size=1 if dilated else 0))


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
    """AP 41.5 (paper: 41.5, 128 GFLOPs, 215 V100 hours): dilated C5 alone. Evaluate with batch 1."""
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


def deformable_detr_r101_single_scale() -> Experiment:
    """No published AP: C5 of ResNet-101 alone."""
    return single_scale(R101)


def deformable_detr_r101_single_scale_dc5() -> Experiment:
    """No published AP: dilated C5 of ResNet-101 alone. Evaluate with batch 1."""
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
    """For a few hundred images and for CPUs: two-stage on MobileNetV2, 3.0 M parameters; our own design."""
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
        ),
        data=DataConfig(image_size=(288, 384), augment="flip", min_scale=0.75, batch_size=4),
        optimizer=OptimizerConfig(lr=1e-3, backbone_lr_factor=0.3, sampling_lr_factor=0.3, ema_decay=0.998),
        schedule=ScheduleConfig(epochs=60, kind="cosine", warmup_steps=50),
        evaluation=EvaluationConfig(every_epochs=5),
    )


def deformable_detr_tiny() -> Experiment:
    """From scratch in minutes, on small images, with no download: two-stage on a ResNet of 0.4 M; our own design."""
    small = deformable_detr_small()
    return replace(
        small,
        model=replace(
            small.model,
            backbone=BackboneConfig(name="test_resnet", weights="none", norm="batch", freeze_stem=False),
            num_queries=50,
        ),
        data=DataConfig(image_size=(128, 192), augment="flip", min_scale=0.8, batch_size=8),
        optimizer=OptimizerConfig(lr=1e-3, backbone_lr_factor=1.0, sampling_lr_factor=1.0, ema_decay=0.998),
    )


PRESETS: dict[str, Callable[[], Experiment]] = {
    "deformable-detr-tiny": deformable_detr_tiny,
    "deformable-detr-small": deformable_detr_small,
    "deformable-detr-r50-single-scale": deformable_detr_r50_single_scale,
    "deformable-detr-r50-single-scale-dc5": deformable_detr_r50_single_scale_dc5,
    "deformable-detr-r50": deformable_detr_r50,
    "deformable-detr-r50-refine": deformable_detr_r50_refine,
    "deformable-detr-r50-two-stage": deformable_detr_r50_two_stage,
    "deformable-detr-r101-single-scale": deformable_detr_r101_single_scale,
    "deformable-detr-r101-single-scale-dc5": deformable_detr_r101_single_scale_dc5,
    "deformable-detr-r101": deformable_detr_r101,
    "deformable-detr-r101-refine": deformable_detr_r101_refine,
    "deformable-detr-r101-two-stage": deformable_detr_r101_two_stage,
}


def preset(name: str) -> Experiment:
    """The experiment called ``name``; see ``PRESETS``.

    Raises:
        UserError: for an unknown name, with the nearest known one.
    """
    if name not in PRESETS:
        raise UserError(f"There is no preset '{name}'.{did_you_mean(name, PRESETS)} See: detrs presets")
    return replace(PRESETS[name](), name=name)
