"""Presets: named experiments, functions in one literal table; each docstring gives the paper's row.

The presets with a ResNet are the official recipes on COCO 2017 (118,287 training images), AdamW with a learning rate
divided by ten after four fifths of the epochs: Deformable DETR 50 epochs, batch 32, 2e-4; DETR 500 epochs, batch 64,
1e-4; Conditional DETR 50 epochs, batch 16 (DC5: 8), 1e-4; Anchor DETR 50 epochs, batch 8, 1e-4; Sparse R-CNN 36 epochs,
batch 16, 2.5e-5, with two drops. AP is on val2017, of
the authors' released weights where the paper's differs; parameters and GFLOPs (multiply-adds, as papers count) are the
paper's rows, for 91 classes (Sparse R-CNN: 80).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from detrs.backbones.timm import BackboneConfig
from detrs.classification import Focal
from detrs.config import EvaluationConfig, Experiment, OptimizerConfig, ScheduleConfig
from detrs.criterion.set_criterion import CriterionConfig
from detrs.data.transforms import DataConfig
from detrs.errors import UserError, did_you_mean
from detrs.models.anchor_detr import AnchorDETRConfig
from detrs.models.conditional_detr import ConditionalDETRConfig
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.models.detr import DETRConfig
from detrs.models.dynamic_detr import DynamicDETRConfig
from detrs.models.efficient_detr import EfficientDETRConfig
from detrs.models.faster_rcnn import FasterRCNNConfig
from detrs.models.sparse_rcnn import SparseRCNNConfig

R50 = BackboneConfig(name="resnet50.tv_in1k")
R101 = BackboneConfig(name="resnet101.tv_in1k")


def together(backbone: BackboneConfig) -> int:
    """Images per device, padded to one size, in the authors' training: dilated feature maps are large."""
    return 1 if backbone.dilated else 2


def official_data(backbone: BackboneConfig, batch_size: int) -> DataConfig:
    """DETR's sizes and augmentation (A.4)."""
    return DataConfig(
        resize_to=(800, 1333), augment="official", batch_size=batch_size, padded_together=together(backbone)
    )


def official_evaluation(backbone: BackboneConfig) -> EvaluationConfig:
    """As many images per forward pass as on one device in training: with ``evaluation.pad``, the authors' padding."""
    return EvaluationConfig(batch_size=together(backbone))


def official(model: DeformableDETRConfig) -> Experiment:
    """The training recipe of Deformable DETR (A.4) around ``model``."""
    return Experiment(
        model=model,
        data=official_data(model.backbone, batch_size=32),
        optimizer=OptimizerConfig(lr=2e-4, backbone_lr_factor=0.1, sampling_lr_factor=0.1),
        schedule=ScheduleConfig(epochs=50, kind="step", drop_at=(0.8,)),
        evaluation=official_evaluation(model.backbone),
    )


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


def c5(backbone: BackboneConfig, dilated: bool = False) -> BackboneConfig:
    return replace(backbone, stages=(5,), dilated=dilated)


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


def deformable_detr_small() -> Experiment:
    """For a few hundred images and for CPUs: two-stage on MobileNetV2, 3.0 M parameters; our own design.

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
        optimizer=OptimizerConfig(lr=1e-3, backbone_lr_factor=0.3, sampling_lr_factor=0.3, ema_decay=0.998),
        schedule=ScheduleConfig(epochs=60, kind="cosine", warmup_steps=50),
        evaluation=EvaluationConfig(every_epochs=5),
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
        optimizer=OptimizerConfig(lr=1e-3, backbone_lr_factor=1.0, sampling_lr_factor=1.0, ema_decay=0.998),
    )


def tiny_on_c5(model: OnC5) -> Experiment:
    """Data, epochs and schedule of ``deformable-detr-tiny`` around ``model``, with its backbone (DC5: the finest in the
    papers), width, depth and number of queries.

    The class term has three times the papers' weight, in the loss and in the matching, and the backbone a higher
    learning rate than the rest: from scratch, the gradient of classes reaches the backbone through attention that is
    not focused yet. On digits, at similar learning rates, Conditional DETR classifies 5 of 10 matched objects correctly
    after 1,400 steps with this weight, and after 4,100 with the papers' weight.
    """
    experiment = deformable_detr_tiny()
    tiny = experiment.model
    taken = {
        name: getattr(tiny, name)
        for name in ("dim", "num_heads", "encoder_layers", "decoder_layers", "ffn_dim", "dropout", "num_queries")
    }
    classification: Any = replace(model.classification, weight=3 * model.classification.weight)
    return replace(
        experiment,
        model=replace(model, backbone=c5(tiny.backbone, dilated=True), classification=classification, **taken),
        optimizer=replace(experiment.optimizer, lr=8e-4, backbone_lr_factor=2.5),
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


def dynamic_detr_r50() -> Experiment:
    """AP 42.9 (paper: 42.9, 58 M parameters): 12 epochs; 36 epochs with multi-scale training give 47.2.

    The learning rate drops after epochs 8 and 11. Settings that the paper leaves open are those of its successors.
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
        optimizer=replace(small.optimizer, clip_norm=None, weight_decay=0.05),
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
    )


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
    """From scratch on small images: Sparse R-CNN, otherwise as deformable-detr-tiny; our own design."""
    experiment = deformable_detr_tiny()
    tiny = experiment.model
    model = SparseRCNNConfig(
        backbone=replace(tiny.backbone, stages=(2, 3, 4, 5)),
        **{name: getattr(tiny, name) for name in ("dim", "num_heads", "decoder_layers", "ffn_dim", "num_queries")},
        dynamic_dim=32,
        padding="excluded",
    )
    return replace(experiment, model=model, criterion=CriterionConfig(box_coordinates="xyxy"))


def deformable_detr_dat_tiny() -> Experiment:
    """From scratch on small images: deformable-detr-tiny on a DAT of 1.3 M parameters; our own design."""
    experiment = deformable_detr_tiny()
    model = replace(experiment.model, backbone=replace(experiment.model.backbone, name="test_dat"))
    return replace(experiment, model=model)


PRESETS: dict[str, Callable[[], Experiment]] = {
    "deformable-detr-tiny": deformable_detr_tiny,
    "deformable-detr-small": deformable_detr_small,
    "deformable-detr-r50-single-scale": deformable_detr_r50_single_scale,
    "deformable-detr-r50-single-scale-dc5": deformable_detr_r50_single_scale_dc5,
    "deformable-detr-r50": deformable_detr_r50,
    "deformable-detr-r50-refine": deformable_detr_r50_refine,
    "deformable-detr-r50-two-stage": deformable_detr_r50_two_stage,
    "deformable-detr-r50-single-scale-k1": deformable_detr_r50_single_scale_k1,
    "deformable-detr-r50-own-level-k1": deformable_detr_r50_own_level_k1,
    "deformable-detr-r50-own-level": deformable_detr_r50_own_level,
    "deformable-detr-r50-fpn": deformable_detr_r50_fpn,
    "deformable-detr-r50-bifpn": deformable_detr_r50_bifpn,
    "deformable-detr-r101-single-scale": deformable_detr_r101_single_scale,
    "deformable-detr-r101-single-scale-dc5": deformable_detr_r101_single_scale_dc5,
    "deformable-detr-r101": deformable_detr_r101,
    "deformable-detr-r101-refine": deformable_detr_r101_refine,
    "deformable-detr-r101-two-stage": deformable_detr_r101_two_stage,
    "detr-tiny": detr_tiny,
    "detr-r50": detr_r50,
    "detr-r50-dc5": detr_r50_dc5,
    "detr-r50-dc5-plus": detr_r50_dc5_plus,
    "detr-r101": detr_r101,
    "detr-r101-dc5": detr_r101_dc5,
    "conditional-detr-tiny": conditional_detr_tiny,
    "conditional-detr-r50": conditional_detr_r50,
    "conditional-detr-r50-dc5": conditional_detr_r50_dc5,
    "conditional-detr-r101": conditional_detr_r101,
    "conditional-detr-r101-dc5": conditional_detr_r101_dc5,
    "anchor-detr-tiny": anchor_detr_tiny,
    "anchor-detr-r50": anchor_detr_r50,
    "anchor-detr-r50-dc5": anchor_detr_r50_dc5,
    "anchor-detr-r101": anchor_detr_r101,
    "anchor-detr-r101-dc5": anchor_detr_r101_dc5,
    "deformable-detr-dat-tiny": deformable_detr_dat_tiny,
    "efficient-detr-tiny": efficient_detr_tiny,
    "efficient-detr-r50": efficient_detr_r50,
    "efficient-detr-r50-6enc": efficient_detr_r50_6enc,
    "efficient-detr-r101": efficient_detr_r101,
    "efficient-detr-r101-6enc": efficient_detr_r101_6enc,
    "dynamic-detr-tiny": dynamic_detr_tiny,
    "dynamic-detr-r50": dynamic_detr_r50,
    "faster-rcnn-tiny": faster_rcnn_tiny,
    "faster-rcnn-small": faster_rcnn_small,
    "faster-rcnn-r50-fpn": faster_rcnn_r50_fpn,
    "sparse-rcnn-tiny": sparse_rcnn_tiny,
    "sparse-rcnn-r50-100": sparse_rcnn_r50_100,
    "sparse-rcnn-r50-300": sparse_rcnn_r50_300,
    "sparse-rcnn-r101-100": sparse_rcnn_r101_100,
    "sparse-rcnn-r101-300": sparse_rcnn_r101_300,
}


def preset(name: str) -> Experiment:
    """The experiment called ``name``; see ``PRESETS``.

    Raises:
        UserError: for an unknown name, with the nearest known one.
    """
    if name not in PRESETS:
        raise UserError(f"There is no preset '{name}'.{did_you_mean(name, PRESETS)} See: detrs presets")
    return replace(PRESETS[name](), name=name)
