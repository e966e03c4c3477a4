"""Settings of Efficient DETR; ``models/efficient_detr.py`` builds it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

from detrs.config.backbone import BackboneConfig
from detrs.config.checks import check_heads, check_levels, check_queries
from detrs.config.classification import Focal
from detrs.config.neck import NeckNorm
from detrs.errors import UserError

COCO_36_EPOCHS = 36 * 118_287


@dataclass(frozen=True, kw_only=True)
class EfficientDETRConfig:
    """Efficient DETR and its variants."""

    num_classes: Annotated[int, Ge(1), Le(100_000)] = 91
    """Number of classes (K); training sets it from the dataset."""
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_levels: Annotated[int, Ge(1), Le(16)] = 4
    """Levels of the pyramid (L); those beyond the backbone's are computed by strided convolutions."""
    dim: Annotated[int, Ge(1), Le(8_192)] = 256
    """Embedding dimension (C); a multiple of 32 and of ``num_heads``."""
    num_heads: Annotated[int, Ge(1), Le(1_024)] = 8
    """M, attention heads."""
    num_points: Annotated[int, Ge(1), Le(1_024)] = 4
    """P, sampling points per head and level."""
    encoder_layers: Annotated[int, Ge(0), Le(100)] = 3
    """Layers of the encoder; 0: no encoder."""
    decoder_layers: Annotated[int, Ge(1), Le(100)] = 1
    """Layers of the decoder; each makes a prediction, all with the head of the dense part."""
    ffn_dim: Annotated[int, Ge(1), Le(65_536)] = 1024
    """Hidden dimension of the feed-forward networks."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Dropout after attention and inside feed-forward networks, in training."""
    num_queries: Annotated[int, Ge(1), Le(100_000)] = 100
    """Proposals that become queries (Q) in prediction and at the end of training; no image may have more objects."""
    initial_queries: Annotated[int, Ge(1), Le(100_000)] | None = 300
    """Proposals that become queries at the start of training; None: always ``num_queries``."""
    decrease_images: Annotated[int, Ge(1)] = COCO_36_EPOCHS
    """Training images over which the number of queries decreases linearly from ``initial_queries`` to ``num_queries``:
    epochs times images of the dataset. A checkpoint stores the number of images that its model was trained on."""
    proposals: Literal["all", "usable"] = "usable"
    """Tokens that can become queries. ``usable``: those without a valid proposal, padding for example, only if there
    are fewer others than queries. ``all``: every token."""
    token_transform: bool = True
    """Transform tokens by a linear layer and a normalization before the dense prediction."""
    neck_norm: NeckNorm = "group"
    """GroupNorm of the neck. ``group``: over the whole map, padding included, as in Deformable DETR's code.
    ``group-masked``: over the cells of the image alone."""
    classification: Focal = field(default_factory=Focal)
    """One sigmoid per class."""

    def check(self) -> None:
        """Check that settings do not contradict each other."""
        check_heads(self)
        check_levels(self)
        if self.initial_queries is not None and self.initial_queries < self.num_queries:
            raise UserError(
                f"model.initial_queries is {self.initial_queries}, but must be at least model.num_queries "
                f"({self.num_queries}), or None for a constant number of queries."
            )

    def check_capacity(self, max_objects: int) -> None:
        """Check that no image has more objects than queries."""
        check_queries(max_objects, self.num_queries, enough=max_objects)
