"""Settings of Anchor DETR; ``models/anchor_detr.py`` builds it."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

from detrs.config.backbone import BackboneConfig
from detrs.config.checks import check_queries, check_single_scale
from detrs.config.classification import Focal
from detrs.config.neck import NeckNorm
from detrs.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AnchorDETRConfig:
    """Anchor DETR and its variants."""

    num_classes: Annotated[int, Ge(1), Le(100_000)] = 91
    """Number of classes (K); training sets it from the dataset."""
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(stages=(5,)))
    dim: Annotated[int, Ge(1), Le(8_192)] = 256
    """Embedding dimension (C); a multiple of 32 and of ``num_heads``."""
    num_heads: Annotated[int, Ge(1), Le(1_024)] = 8
    """M, attention heads."""
    encoder_layers: Annotated[int, Ge(0), Le(100)] = 6
    """Layers of the encoder; 0: no encoder."""
    decoder_layers: Annotated[int, Ge(1), Le(100)] = 6
    """Layers of the decoder; each makes a prediction."""
    ffn_dim: Annotated[int, Ge(1), Le(65_536)] = 1024
    """Hidden dimension of the feed-forward networks."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout on attention, after it and inside feed-forward networks, in training."""
    num_queries: Annotated[int, Ge(1), Le(100_000)] = 900
    """Object queries (Q), one per pattern and anchor point; a multiple of ``num_patterns``. Each is matched with one
    object at most, so no image may have more objects."""
    num_patterns: Annotated[int, Ge(1), Le(1_000)] = 3
    """N_p, queries at each anchor point, each with its own initial content."""
    anchors: Literal["learned", "grid"] = "learned"
    """``learned``: points are parameters. ``grid``: a fixed square grid, with the number of points nearest to
    ``num_queries / num_patterns`` (17 x 17 for 300)."""
    attention: Literal["decoupled", "decoupled-masked", "global"] = "decoupled"
    """``decoupled``: along rows and columns. ``decoupled-masked``: the same, with keys that exclude padding.
    ``global``: all cells."""
    neck_norm: NeckNorm = "group"
    """GroupNorm of the neck. ``group``: over the whole map, padding included, as in the authors' code.
    ``group-masked``: over the cells of the image alone."""
    classification: Focal = field(default_factory=Focal)
    """One sigmoid per class."""

    def check(self) -> None:
        """Check that settings do not contradict each other."""
        check_single_scale(self)
        if self.dim % 32:
            raise UserError(f"model.dim is {self.dim}, but must be a multiple of 32 (GroupNorm).")
        if self.num_queries % self.num_patterns:
            raise UserError(
                f"model.num_queries is {self.num_queries}, but must be a multiple of model.num_patterns "
                f"({self.num_patterns}): every anchor point has one query per pattern."
            )

    def check_capacity(self, max_objects: int) -> None:
        """Check that no image has more objects than queries; a grid can have fewer than ``num_queries``."""
        points = -(-max_objects // self.num_patterns)
        if self.anchors == "grid":
            side = math.isqrt(points - 1) + 1 if points else 0
            num_queries = grid_side(self) ** 2 * self.num_patterns
            points = side * (side - 1) + 1  # the fewest points whose nearest square is that of side
        else:
            num_queries = self.num_queries
        check_queries(max_objects, num_queries, enough=points * self.num_patterns)


def grid_side(config: AnchorDETRConfig) -> int:
    """Anchor points along each side of the grid."""
    return max(round(math.sqrt(config.num_queries // config.num_patterns)), 1)
