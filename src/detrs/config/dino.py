"""Settings of DINO; ``models/dino.py`` builds it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from detrs.config.backbone import BackboneConfig
from detrs.config.checks import check_heads, check_levels, check_queries
from detrs.config.classification import Focal
from detrs.config.neck import NeckNorm

PositionFrame = Literal["padded", "image"]


@dataclass(frozen=True, kw_only=True)
class DINOConfig:
    """DINO and its variants."""

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
    encoder_layers: Annotated[int, Ge(0), Le(100)] = 6
    """Layers of the encoder; 0: no encoder."""
    decoder_layers: Annotated[int, Ge(1), Le(100)] = 6
    """Layers of the decoder; each makes a prediction."""
    ffn_dim: Annotated[int, Ge(1), Le(65_536)] = 2048
    """Hidden dimension of the feed-forward networks."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout after attention and inside feed-forward networks, in training."""
    num_queries: Annotated[int, Ge(1), Le(100_000)] = 900
    """Object queries (Q); each is matched with one object at most, so no image may have more objects."""
    proposals: Literal["all", "usable"] = "all"
    """Tokens that can become queries. ``all``: also those without a valid proposal, padding for example, as in the
    authors' code. ``usable``: these only if there are fewer others than queries."""
    position_frame: PositionFrame = "padded"
    """Coordinates of the boxes whose sine features are the queries' positions. ``padded``: relative to the padded map,
    as in the authors' code, so that predictions depend on padding. ``image``: relative to the image."""
    temperature: Annotated[float, Gt(0)] = 20.0
    """Of the sine features of tokens' positions; 10000 in Deformable DETR."""
    neck_norm: NeckNorm = "group"
    """GroupNorm of the neck. ``group``: over the whole map, padding included, as in the authors' code.
    ``group-masked``: over the cells of the image alone."""
    classification: Focal = field(default_factory=lambda: Focal(weight=1.0, cost_weight=2.0))
    """One sigmoid per class."""

    def check(self) -> None:
        """Check that settings do not contradict each other."""
        check_heads(self)
        check_levels(self)

    def check_capacity(self, max_objects: int) -> None:
        """Check that no image has more objects than queries."""
        check_queries(max_objects, self.num_queries, enough=max_objects)
