"""Settings of Faster R-CNN; ``models/faster_rcnn.py`` builds it."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Le

from detrs.config.backbone import BackboneConfig
from detrs.config.checks import check_consecutive_stages
from detrs.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FasterRCNNConfig:
    """Faster R-CNN with a feature pyramid network."""

    num_classes: Annotated[int, Ge(1), Le(100_000)] = 90
    """Number of classes (K), without background; training sets it from the dataset."""
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(stages=(2, 3, 4, 5)))
    dim: Annotated[int, Ge(1), Le(8_192)] = 256
    """Channels of the feature pyramid (C)."""
    hidden_dim: Annotated[int, Ge(1), Le(65_536)] = 1024
    """Hidden dimension of the head that classifies proposals."""
    anchor_sizes: tuple[Annotated[float, Gt(0)], ...] = (32.0, 64.0, 128.0, 256.0, 512.0)
    """Square root of the area of the anchors of each level in pixels, fine to coarse; also sets the number of levels,
    of which those beyond the backbone's are subsampled."""
    aspect_ratios: tuple[Annotated[float, Gt(0)], ...] = (0.5, 1.0, 2.0)
    """Height / width of the anchors of each cell."""
    num_proposals: Annotated[int, Ge(1), Le(100_000)] = 1000
    """Proposals per image in evaluation and prediction."""
    num_training_proposals: Annotated[int, Ge(1), Le(100_000)] = 2000
    """Proposals per image in training, of which ``num_samples`` are sampled."""
    num_samples: Annotated[int, Ge(1), Le(100_000)] = 512
    """Proposals per image for the loss of the second stage, at most a quarter of them with objects."""
    canonical_size: Annotated[float, Gt(0)] = 224.0
    """Side in pixels of a square box that is pooled from the level of stride 16 (FPN, Eq. 1)."""
    roi_aligned: bool = False
    """Centers of pixels at half coordinates in RoIAlign, as in Detectron2; False: as in torchvision."""
    min_score: Annotated[float, Ge(0), Le(1)] = 0.05
    """Smallest score of a detection."""
    nms_iou: Annotated[float, Gt(0), Le(1)] = 0.5
    """Detections of one class that overlap more are duplicates."""

    def check(self) -> None:
        """Check that settings do not contradict each other.

        Raises:
            UserError: naming the setting.
        """
        stages = self.backbone.stages
        check_consecutive_stages(self)
        if len(self.anchor_sizes) < len(stages):
            raise UserError(
                f"model.anchor_sizes has {len(self.anchor_sizes)} sizes, but there must be at least one for each of "
                f"the {len(stages)} feature maps of the backbone (model.backbone.stages)."
            )
        if not self.aspect_ratios:
            raise UserError("model.aspect_ratios is empty, but must contain at least one ratio.")

    def check_capacity(self, max_objects: int) -> None:
        """Proposals are not matched one to one: no number of objects is too large."""
