"""What the official recipes share: backbones, sizes of images, and images per device."""

from dataclasses import replace

from detrs.backbones.timm import BackboneConfig
from detrs.config import EvaluationConfig
from detrs.data.transforms import DataConfig

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
