"""Settings of Conditional DETR; ``models/conditional_detr.py`` builds it."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le, Lt

from detrs.config.backbone import BackboneConfig
from detrs.config.checks import check_queries, check_single_scale
from detrs.config.classification import Focal


@dataclass(frozen=True, kw_only=True)
class ConditionalDETRConfig:
    """Conditional DETR and its variants."""

    num_classes: Annotated[int, Ge(1), Le(100_000)] = 91
    """Number of classes (K); training sets it from the dataset."""
    backbone: BackboneConfig = field(default_factory=lambda: BackboneConfig(stages=(5,)))
    dim: Annotated[int, Ge(1), Le(8_192)] = 256
    """Embedding dimension (C); a multiple of 4 and of ``num_heads``."""
    num_heads: Annotated[int, Ge(1), Le(1_024)] = 8
    """M, attention heads."""
    encoder_layers: Annotated[int, Ge(0), Le(100)] = 6
    """Layers of the encoder; 0: no encoder."""
    decoder_layers: Annotated[int, Ge(1), Le(100)] = 6
    """Layers of the decoder; each makes a prediction."""
    ffn_dim: Annotated[int, Ge(1), Le(65_536)] = 2048
    """Hidden dimension of the feed-forward networks."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Dropout on attention, after it and inside feed-forward networks, in training."""
    num_queries: Annotated[int, Ge(1), Le(100_000)] = 300
    """Object queries (Q); each is matched with one object at most, so no image may have more objects."""
    classification: Focal = field(default_factory=Focal)
    """One sigmoid per class."""

    def check(self) -> None:
        """Check that settings do not contradict each other."""
        check_single_scale(self)

    def check_capacity(self, max_objects: int) -> None:
        """Check that no image has more objects than queries."""
        check_queries(max_objects, self.num_queries, enough=max_objects)
