"""Efficient DETR."""

from dataclasses import replace

from detrs.config import Experiment, OptimizerConfig, ScheduleConfig
from detrs.config.backbone import BackboneConfig
from detrs.config.efficient_detr import EfficientDETRConfig
from detrs.presets.deformable_detr import deformable_detr_tiny
from detrs.presets.recipes import R50, R101, official_data, official_evaluation


def efficient(backbone: BackboneConfig, encoder_layers: int) -> Experiment:
    """36 epochs; the paper does not give the rest of its recipe, which is that of Deformable DETR at batch 32 here."""
    return Experiment(
        model=EfficientDETRConfig(backbone=backbone, encoder_layers=encoder_layers),
        data=official_data(backbone, batch_size=32),
        optimizer=OptimizerConfig(lr=2e-4, backbone_lr_factor=0.1, sampling_lr_factor=0.1),
        schedule=ScheduleConfig(epochs=36, kind="step", drop_at=(30 / 36,)),
        evaluation=official_evaluation(backbone),
    )


def efficient_detr_r50() -> Experiment:
    """AP 44.2 (paper: 44.2, 159 GFLOPs, 32 M parameters): 3 encoder layers, 1 decoder layer; here 120 GFLOPs."""
    return efficient(R50, encoder_layers=3)


def efficient_detr_r50_6enc() -> Experiment:
    """AP 45.1 (paper: 45.1, 210 GFLOPs, 35 M parameters): 6 encoder layers, 1 decoder layer; here 160 GFLOPs."""
    return efficient(R50, encoder_layers=6)


def efficient_detr_r101() -> Experiment:
    """AP 45.2 (paper: 45.2, 239 GFLOPs, 51 M parameters): 3 encoder layers, 1 decoder layer; here 183 GFLOPs."""
    return efficient(R101, encoder_layers=3)


def efficient_detr_r101_6enc() -> Experiment:
    """AP 45.7 (paper: 45.7, 289 GFLOPs, 54 M parameters): 6 encoder layers, 1 decoder layer; here 223 GFLOPs."""
    return efficient(R101, encoder_layers=6)


def efficient_detr_tiny() -> Experiment:
    """From scratch on small images: Efficient DETR, one encoder and one decoder layer, otherwise as
    deformable-detr-tiny; our own design."""
    experiment = deformable_detr_tiny()
    tiny = experiment.model
    taken = {
        name: getattr(tiny, name)
        for name in ("dim", "num_heads", "encoder_layers", "ffn_dim", "dropout", "num_queries", "num_levels")
    }
    model = EfficientDETRConfig(
        backbone=tiny.backbone, initial_queries=None, proposals="usable", neck_norm="group-masked", **taken
    )
    return replace(experiment, model=model)
