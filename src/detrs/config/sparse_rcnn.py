"""Settings of Sparse R-CNN; ``models/sparse_rcnn.py`` builds it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from detrs.config.backbone import BackboneConfig
from detrs.config.checks import check_consecutive_stages, check_heads, check_queries
from detrs.config.classification import Focal


@dataclass(frozen=True, kw_only=True)
class SparseRCNNConfig:
    """Sparse R-CNN and its variants."""

    num_classes: Annotated[int, Ge(1), Le(100_000)] = 80
    """Number of classes (K); training sets it from the dataset."""
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(stages=(2, 3, 4, 5)))
    dim: Annotated[int, Ge(1), Le(8_192)] = 256
    """Embedding dimension (C); a multiple of ``num_heads``."""
    num_heads: Annotated[int, Ge(1), Le(1_024)] = 8
    """M, heads of the self-attention of proposals."""
    decoder_layers: Annotated[int, Ge(1), Le(100)] = 6
    """Stages; each makes a prediction and refines the boxes."""
    ffn_dim: Annotated[int, Ge(1), Le(65_536)] = 2048
    """Hidden dimension of the feed-forward networks."""
    dynamic_dim: Annotated[int, Ge(1), Le(8_192)] = 64
    """Channels between the two dynamic convolutions."""
    class_tower: Annotated[int, Ge(0), Le(100)] = 1
    """Hidden layers of the class branch of each head."""
    box_tower: Annotated[int, Ge(0), Le(100)] = 3
    """Hidden layers of the box branch of each head."""
    canonical_size: Annotated[float, Gt(0)] = 224.0
    """Square root of the area of the boxes that are pooled from stride 16, in pixels of the resized image."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout after attention and inside feed-forward networks, in training; the paper's first version has 0.1."""
    num_queries: Annotated[int, Ge(1), Le(100_000)] = 100
    """Proposals (Q); each is matched with one object at most, so no image may have more objects."""
    padding: Literal["included", "excluded"] = "included"
    """Padding in the convolutions of FPN and in RoIs. ``included``: as in the authors' code. ``excluded``: predictions
    do not depend on it."""
    classification: Focal = field(default_factory=Focal)
    """One sigmoid per class."""

    def check(self) -> None:
        """Check that settings do not contradict each other."""
        check_heads(self)
        check_consecutive_stages(self, can_be_dilated=True)

    def check_capacity(self, max_objects: int) -> None:
        """Check that no image has more objects than proposals."""
        check_queries(max_objects, self.num_queries, enough=max_objects)
