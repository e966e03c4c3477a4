"""Settings of Dynamic DETR; ``models/dynamic_detr.py`` builds it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from detrs.config.backbone import BackboneConfig
from detrs.config.checks import check_consecutive_stages, check_heads, check_queries
from detrs.config.classification import Focal
from detrs.errors import UserError

GROUPS = 16
"""Groups of GroupNorm after each deformable convolution."""
Fusion = Literal["mean", "sum"]


@dataclass(frozen=True, kw_only=True)
class DynamicDETRConfig:
    """Dynamic DETR and its variants."""

    num_classes: Annotated[int, Ge(1), Le(100_000)] = 80
    """Number of classes (K); training sets it from the dataset."""
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(stages=(2, 3, 4, 5)))
    num_levels: Annotated[int, Ge(1), Le(16)] = 5
    """Levels of the pyramid; those beyond the backbone's are every second cell of the level before."""
    dim: Annotated[int, Ge(1), Le(8_192)] = 256
    """Embedding dimension (C); a multiple of 16 and of ``num_heads``."""
    num_heads: Annotated[int, Ge(1), Le(1_024)] = 4
    """M, heads of the self-attention of queries."""
    encoder_layers: Annotated[int, Ge(0), Le(100)] = 6
    """Layers of the dynamic encoder."""
    decoder_layers: Annotated[int, Ge(1), Le(100)] = 6
    """Layers of the decoder; each makes a prediction and refines the boxes."""
    ffn_dim: Annotated[int, Ge(1), Le(65_536)] = 256
    """Hidden dimension of the feed-forward networks; unknown. With 2048 there are 5.5 M more parameters."""
    interaction: Literal["depthwise", "shared", "bottleneck"] = "depthwise"
    """Filters that a query predicts; unknown. ``depthwise``: one number per channel, then a linear layer of the whole
    region. ``shared``: one C x C filter from a generator that all layers share, then the mean of the region, without
    positions in the box (59 M parameters). ``bottleneck``: two filters per layer, as in Sparse R-CNN (112 M)."""
    dynamic_dim: Annotated[int, Ge(1), Le(8_192)] = 64
    """Channels between the two filters (``bottleneck`` only)."""
    box_encoding: bool = True
    """Add an embedding of the reference box to queries and keys of self-attention; its form is unknown."""
    se_reduction: Annotated[int, Ge(1), Le(256)] = 16
    """Reduction of channels in squeeze-and-excitation; unknown."""
    relu_reduction: Annotated[int, Ge(1), Le(256)] = 4
    """Reduction of channels in dynamic ReLU; unknown."""
    fusion: Fusion = "mean"
    """Of the weighted convolutions of a level and its neighbors; unknown. The authors' later code has the mean."""
    residual: bool = False
    """Add a level to its new content in each encoder layer; unknown."""
    neck_norm: Literal["none", "group"] = "group"
    """GroupNorm of each level before the encoder, whose offsets depend on the scale of the maps; unknown."""
    canonical_size: Annotated[float, Gt(0)] = 224.0
    """Square root of the area of the boxes that are pooled from stride 16, in pixels of the resized image."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout after attention and inside feed-forward networks, in training."""
    num_queries: Annotated[int, Ge(1), Le(100_000)] = 300
    """Object queries (Q); each is matched with one object at most, so no image may have more objects."""
    classification: Focal = field(default_factory=Focal)
    """One sigmoid per class."""

    def check(self) -> None:
        """Check that settings do not contradict each other.

        Raises:
            UserError: naming the setting.
        """
        check_heads(self)
        stages = self.backbone.stages
        if self.dim % GROUPS:
            raise UserError(f"model.dim is {self.dim}, but must be a multiple of {GROUPS}.")
        if max(self.se_reduction, self.relu_reduction) > self.dim:
            raise UserError(f"model.se_reduction and model.relu_reduction must be at most model.dim ({self.dim}).")
        check_consecutive_stages(self)
        if self.num_levels < len(stages):
            raise UserError(
                f"model.num_levels is {self.num_levels}, but the backbone has {len(stages)} feature maps "
                "(model.backbone.stages): use more levels or fewer stages."
            )

    def check_capacity(self, max_objects: int) -> None:
        """Check that no image has more objects than queries."""
        check_queries(max_objects, self.num_queries, enough=max_objects)
