"""What the official recipes share: backbones, sizes of images, and images per device."""

from dataclasses import replace
from typing import Any

from detrs.config import EvaluationConfig, Experiment
from detrs.config.backbone import BackboneConfig
from detrs.config.data import DataConfig

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


def c5(backbone: BackboneConfig, dilated: bool = False) -> BackboneConfig:
    return replace(backbone, stages=(5,), dilated=dilated)


def with_heavier_classes(experiment: Experiment) -> Experiment:
    """For training from scratch: three times the papers' weight of the class term, in the loss and in the matching, and
    a higher learning rate of the backbone than of the rest.

    From scratch, the gradient of classes reaches the backbone through attention or regions that do not fit the objects
    yet. On digits, at similar learning rates, Conditional DETR classifies 5 of 10 matched objects correctly after 1,400
    steps with this weight, and after 4,100 with the papers' weight. Dynamic DETR learns more slowly with it.
    """
    model: Any = experiment.model
    classification = replace(model.classification, weight=3 * model.classification.weight)
    return replace(
        experiment,
        model=replace(model, classification=classification),
        optimizer=replace(experiment.optimizer, lr=8e-4, backbone_lr_factor=2.5),
    )
