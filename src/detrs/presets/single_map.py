"""Detectors on one feature map, with the recipe of DETR: DETR, Conditional DETR and Anchor DETR."""

from dataclasses import replace

from detrs.config import EvaluationConfig, Experiment, OptimizerConfig, ScheduleConfig
from detrs.config.anchor_detr import AnchorDETRConfig
from detrs.config.backbone import BackboneConfig
from detrs.config.classification import Focal
from detrs.config.conditional_detr import ConditionalDETRConfig
from detrs.config.detr import DETRConfig
from detrs.presets.deformable_detr import deformable_detr_tiny
from detrs.presets.recipes import R50, R101, c5, official_data, official_evaluation, with_heavier_classes

OnC5 = DETRConfig | ConditionalDETRConfig | AnchorDETRConfig


def official_on_c5(model: OnC5, epochs: int, batch_size: int) -> Experiment:
    """The training recipe of DETR (A.4), shortened by Conditional and Anchor DETR, around ``model``."""
    return Experiment(
        model=model,
        data=official_data(model.backbone, batch_size),
        optimizer=OptimizerConfig(lr=1e-4, backbone_lr_factor=0.1, sampling_lr_factor=1.0),
        schedule=ScheduleConfig(epochs=epochs, kind="step", drop_at=(0.8,)),
        evaluation=official_evaluation(model.backbone),
    )


def detr_r50() -> Experiment:
    """AP 42.0 (paper: 42.0, 86 GFLOPs, 41 M parameters, 2000 V100 hours): 500 epochs; 300 (drop at 200) give 40.6."""
    return official_on_c5(DETRConfig(backbone=c5(R50)), epochs=500, batch_size=64)


def detr_r50_dc5() -> Experiment:
    """AP 43.3 (paper: 43.3, 187 GFLOPs, 41 M parameters, 7000 V100 hours): dilated C5."""
    return official_on_c5(DETRConfig(backbone=c5(R50, dilated=True)), epochs=500, batch_size=64)


def detr_r101() -> Experiment:
    """AP 43.5 (paper: 43.5, 152 GFLOPs, 60 M parameters)."""
    return official_on_c5(DETRConfig(backbone=c5(R101)), epochs=500, batch_size=64)


def detr_r101_dc5() -> Experiment:
    """AP 44.9 (paper: 44.9, 253 GFLOPs, 60 M parameters): dilated C5."""
    return official_on_c5(DETRConfig(backbone=c5(R101, dilated=True)), epochs=500, batch_size=64)


def detr_r50_dc5_plus() -> Experiment:
    """AP 36.2 (Deformable DETR: 36.2, 187 GFLOPs, 41 M parameters): focal loss, 300 queries.

    Its recipe is published as 50 epochs; learning rate and batch size are those of DETR here.
    """
    model = DETRConfig(backbone=c5(R50, dilated=True), classification=Focal(), num_queries=300)
    return official_on_c5(model, epochs=50, batch_size=64)


def conditional_detr_r50() -> Experiment:
    """AP 41.0 (paper: 40.9, 90 GFLOPs, 44 M parameters, 240 V100 hours): 50 epochs; 108 (drop at 80): 43.0."""
    return official_on_c5(ConditionalDETRConfig(backbone=c5(R50)), epochs=50, batch_size=16)


def conditional_detr_r50_dc5() -> Experiment:
    """AP 43.7 (paper: 43.8, 195 GFLOPs, 44 M parameters): dilated C5."""
    return official_on_c5(ConditionalDETRConfig(backbone=c5(R50, dilated=True)), epochs=50, batch_size=8)


def conditional_detr_r101() -> Experiment:
    """AP 42.8 (paper: 42.8, 156 GFLOPs, 63 M parameters): 50 epochs; 108 (drop at 80): 44.5."""
    return official_on_c5(ConditionalDETRConfig(backbone=c5(R101)), epochs=50, batch_size=16)


def conditional_detr_r101_dc5() -> Experiment:
    """AP 45.0 (paper: 45.0, 262 GFLOPs, 63 M parameters): dilated C5."""
    return official_on_c5(ConditionalDETRConfig(backbone=c5(R101, dilated=True)), epochs=50, batch_size=8)


def official_anchor(backbone: BackboneConfig, dilated: bool = False) -> Experiment:
    """Predictions depend on padding: images are padded one by one."""
    experiment = official_on_c5(AnchorDETRConfig(backbone=c5(backbone, dilated)), epochs=50, batch_size=8)
    return replace(
        experiment, data=replace(experiment.data, padded_together=1), evaluation=EvaluationConfig(batch_size=1)
    )


def anchor_detr_r50() -> Experiment:
    """AP 42.1 (paper: 42.1; authors' code: 89 GFLOPs, 37 M parameters)."""
    return official_anchor(R50)


def anchor_detr_r50_dc5() -> Experiment:
    """AP 44.3 (paper: 44.2; authors' code: 164 GFLOPs, 37 M parameters, 4 days, 8 2080 Ti)."""
    return official_anchor(R50, dilated=True)


def anchor_detr_r101() -> Experiment:
    """AP 43.5 (paper: 43.5; authors' code: 56 M parameters; here 151 GFLOPs)."""
    return official_anchor(R101)


def anchor_detr_r101_dc5() -> Experiment:
    """AP 45.1 (paper: 45.1; authors' code: 56 M parameters; here 225 GFLOPs): dilated C5."""
    return official_anchor(R101, dilated=True)


def tiny_on_c5(model: OnC5) -> Experiment:
    """Data, epochs and schedule of ``deformable-detr-tiny`` around ``model``, with its backbone (DC5: the finest in the
    papers), width, depth and number of queries. Classes have more weight than in the papers.
    """
    experiment = deformable_detr_tiny()
    tiny = experiment.model
    taken = {
        name: getattr(tiny, name)
        for name in ("dim", "num_heads", "encoder_layers", "decoder_layers", "ffn_dim", "dropout", "num_queries")
    }
    return with_heavier_classes(
        replace(experiment, model=replace(model, backbone=c5(tiny.backbone, dilated=True), **taken))
    )


def detr_tiny() -> Experiment:
    """From scratch on small images: DETR of the size of deformable-detr-tiny, to compare with it; our own design."""
    return tiny_on_c5(DETRConfig())


def conditional_detr_tiny() -> Experiment:
    """From scratch on small images: Conditional DETR, otherwise as detr-tiny; our own design."""
    return tiny_on_c5(ConditionalDETRConfig())


def anchor_detr_tiny() -> Experiment:
    """From scratch on small images: Anchor DETR, otherwise as detr-tiny, 2 patterns at 25 points; our own design."""
    return tiny_on_c5(AnchorDETRConfig(num_patterns=2, attention="decoupled-masked", neck_norm="group-masked"))
