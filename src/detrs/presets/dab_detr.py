"""DAB-DETR, DN-DETR, their deformable variants and DINO: the official recipes, and our own tiny presets."""

from dataclasses import replace
from typing import Any

from detrs.config import EvaluationConfig, Experiment, OptimizerConfig, ScheduleConfig
from detrs.config.backbone import BackboneConfig
from detrs.config.classification import Focal
from detrs.config.criterion import ContrastiveDenoising, CriterionConfig, GroupDenoising
from detrs.config.dab_deformable_detr import DABDeformableDETRConfig
from detrs.config.dab_detr import DABDETRConfig
from detrs.config.dino import DINOConfig
from detrs.presets.deformable_detr import deformable_detr_small, deformable_detr_tiny
from detrs.presets.recipes import R50, c5, official_data, official_evaluation, with_heavier_classes

SWIN_L = BackboneConfig(name="swin_large_patch4_window12_384.ms_in22k", map_norm="layer", freeze_stem=False)
"""Pretrained on ImageNet-22k; every layer is trained."""
SIZES = ("dim", "num_heads", "encoder_layers", "decoder_layers", "ffn_dim", "dropout")
DAB_FAMILY = DABDETRConfig | DABDeformableDETRConfig | DINOConfig


def official(model: DAB_FAMILY, epochs: int, drop_at: float, criterion: CriterionConfig) -> Experiment:
    """The training recipe of the authors: batch 16, no lower learning rate for sampling offsets."""
    return Experiment(
        model=model,
        data=official_data(model.backbone, batch_size=16),
        criterion=criterion,
        optimizer=OptimizerConfig(lr=1e-4, backbone_lr_factor=0.1, sampling_lr_factor=1.0),
        schedule=ScheduleConfig(epochs=epochs, kind="step", drop_at=(drop_at,)),
        evaluation=official_evaluation(model.backbone),
    )


def dab_detr_r50() -> Experiment:
    """AP 42.2 (paper: 42.2, 94 GFLOPs, 44 M parameters): 50 epochs."""
    return official(DABDETRConfig(backbone=c5(R50)), 50, 0.8, CriterionConfig())


def dab_detr_r50_dc5() -> Experiment:
    """AP 44.5 (paper: 44.5, 202 GFLOPs, 44 M parameters): dilated C5."""
    return official(DABDETRConfig(backbone=c5(R50, dilated=True)), 50, 0.8, CriterionConfig())


def dn_detr_r50() -> Experiment:
    """AP 44.4 (paper: 44.1, 94 GFLOPs, 44 M parameters): DAB-DETR with five denoising groups."""
    model = DABDETRConfig(backbone=c5(R50), content="unknown")
    return official(model, 50, 0.8, CriterionConfig(denoising=GroupDenoising()))


def dab_deformable_detr_r50() -> Experiment:
    """AP 48.7 (authors' code: 48.7, 47 M parameters): learned boxes, deformable attention."""
    return official(DABDeformableDETRConfig(), 50, 0.8, CriterionConfig())


def dn_deformable_detr_r50() -> Experiment:
    """AP 49.5 (authors' code: 49.5, 47 M parameters): DAB-Deformable-DETR with five denoising groups."""
    model = DABDeformableDETRConfig(indicator=True)
    return official(model, 50, 0.8, CriterionConfig(denoising=GroupDenoising()))


def dino(backbone: BackboneConfig, num_levels: int, epochs: int, drop_at: float) -> Experiment:
    """Evaluated one image at a time, since predictions depend on padding."""
    criterion = CriterionConfig(denoising=ContrastiveDenoising())
    experiment = official(DINOConfig(backbone=backbone, num_levels=num_levels), epochs, drop_at, criterion)
    return replace(experiment, evaluation=EvaluationConfig(batch_size=1))


def dino_r50_4scale() -> Experiment:
    """AP 49.0 (paper: 49.0, 279 GFLOPs, 47 M parameters): 12 epochs, four levels."""
    return dino(R50, 4, epochs=12, drop_at=11 / 12)


def dino_r50_4scale_24() -> Experiment:
    """AP 50.4 (paper: 50.4, 279 GFLOPs, 47 M parameters): 24 epochs, four levels."""
    return dino(R50, 4, epochs=24, drop_at=20 / 24)


def dino_r50_4scale_36() -> Experiment:
    """AP 50.9 (paper: 50.9, 279 GFLOPs, 47 M parameters): 36 epochs, four levels."""
    return dino(R50, 4, epochs=36, drop_at=30 / 36)


def dino_r50_5scale() -> Experiment:
    """AP 49.4 (paper: 49.4, 860 GFLOPs, 47 M parameters): 12 epochs, with C2."""
    return with_c2(dino_r50_4scale())


def dino_swin_l_4scale() -> Experiment:
    """AP 56.8 (authors' code: 56.8, 217 M parameters): 12 epochs, Swin-L, four levels; 58.0 in 36 epochs."""
    return dino(SWIN_L, 4, epochs=12, drop_at=11 / 12)


def dino_swin_l_5scale() -> Experiment:
    """AP 57.3 (authors' code: 57.3, 218 M parameters): 12 epochs, with C2; 58.5 in 36 epochs."""
    return with_c2(dino_swin_l_4scale())


def with_c2(experiment: Experiment) -> Experiment:
    """One level more, from C2; half as many images per process in the authors' code."""
    model: Any = experiment.model
    model = replace(model, backbone=replace(model.backbone, stages=(2, 3, 4, 5)), num_levels=5)
    return replace(experiment, model=model, data=replace(experiment.data, padded_together=1))


def tiny(model: Any, criterion: CriterionConfig) -> Experiment:
    """Data, epochs and schedule of ``deformable-detr-tiny`` around ``model``, with its backbone, width and depth."""
    experiment = deformable_detr_tiny()
    taken: dict[str, Any] = {name: getattr(experiment.model, name) for name in SIZES}
    return replace(experiment, model=replace(model, **taken), criterion=criterion)


def sized_like(small: Any) -> DINOConfig:
    """DINO with backbone, levels, width and depth of a Deformable DETR, and without the effects of padding."""
    names = ("backbone", "num_levels", "num_queries", "proposals", "neck_norm", *SIZES)
    taken: dict[str, Any] = {name: getattr(small, name) for name in names}
    return DINOConfig(position_frame="image", classification=Focal(), **taken)


def dino_small() -> Experiment:
    """For a few hundred images and for CPUs: DINO with the size and recipe of deformable-detr-small; our own design."""
    experiment = deformable_detr_small()
    return replace(experiment, model=sized_like(experiment.model))


def dino_tiny() -> Experiment:
    """From scratch in minutes, on small images, no download: DINO of the size of deformable-detr-tiny; our own design.

    Padding is excluded from queries, positions, normalization and losses. Trained with twice the learning
    rate of deformable-detr-tiny, with denoising, and with scores that are a power of the IoU.
    """
    experiment = deformable_detr_tiny()
    denoising = ContrastiveDenoising(pairs=25, hide_padding=True)
    return replace(
        experiment,
        model=sized_like(experiment.model),
        criterion=CriterionConfig(denoising=denoising, quality="matchability"),
        optimizer=replace(experiment.optimizer, lr=2 * experiment.optimizer.lr),
    )


def dab_deformable_detr_tiny() -> Experiment:
    """From scratch on small images: DAB-Deformable-DETR, otherwise as dino-tiny; our own design."""
    small: Any = deformable_detr_tiny().model
    model = DABDeformableDETRConfig(
        backbone=small.backbone,
        num_levels=small.num_levels,
        num_queries=small.num_queries,
        position_frame="image",
        neck_norm="group-masked",
        classification=Focal(),
    )
    return tiny(model, CriterionConfig())


def dn_deformable_detr_tiny() -> Experiment:
    """From scratch on small images: DN-Deformable-DETR, otherwise as dab-deformable-detr-tiny; our own design."""
    experiment = dab_deformable_detr_tiny()
    model: Any = experiment.model
    criterion = CriterionConfig(denoising=GroupDenoising(hide_padding=True))
    return replace(experiment, model=replace(model, indicator=True), criterion=criterion)


def dab_detr_tiny() -> Experiment:
    """From scratch on small images: DAB-DETR, otherwise as detr-tiny; our own design."""
    small: Any = deformable_detr_tiny().model
    model = DABDETRConfig(
        backbone=c5(small.backbone, dilated=True), num_queries=small.num_queries, classification=Focal()
    )
    return with_heavier_classes(tiny(model, CriterionConfig()))


def dn_detr_tiny() -> Experiment:
    """From scratch on small images: DN-DETR, otherwise as dab-detr-tiny; our own design."""
    experiment = dab_detr_tiny()
    model: Any = experiment.model
    criterion = CriterionConfig(denoising=GroupDenoising(hide_padding=True))
    return replace(experiment, model=replace(model, content="unknown"), criterion=criterion)
