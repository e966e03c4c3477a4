"""Settings of DAB-DETR; ``models/dab_detr.py`` builds it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from detrs.config.backbone import BackboneConfig
from detrs.config.checks import check_queries, check_single_scale
from detrs.config.classification import Focal
from detrs.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DABDETRConfig:
    """DAB-DETR and, with ``content="unknown"``, DN-DETR."""

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
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Dropout on attention, after it and inside feed-forward networks, in training."""
    num_queries: Annotated[int, Ge(1), Le(100_000)] = 300
    """Object queries (Q); each is matched with one object at most, so no image may have more objects."""
    num_patterns: Annotated[int, Ge(0), Le(1_000)] = 0
    """Learned contents, each of which is combined with every learned box, as in Anchor DETR: there are Q / P boxes.
    0: contents start at zero, and there are Q boxes."""
    content: Literal["zero", "unknown"] = "zero"
    """Contents without patterns. ``unknown``: one learned vector, and a channel that is 1 if a query is being
    denoised (DN-DETR, 4.3)."""
    temperature: Annotated[float, Gt(0)] = 20.0
    """Of the sine features of tokens' positions (3.5); 10000 in DETR."""
    classification: Focal = field(default_factory=lambda: Focal(weight=1.0, cost_weight=2.0))
    """One sigmoid per class."""

    def check(self) -> None:
        """Check that settings do not contradict each other."""
        check_single_scale(self)
        if self.num_patterns and self.content != "zero":
            raise UserError("model.num_patterns needs model.content 'zero': patterns are the contents.")
        if self.num_queries % max(self.num_patterns, 1):
            raise UserError(
                f"model.num_queries is {self.num_queries}, but must be a multiple of model.num_patterns "
                f"({self.num_patterns})."
            )

    def check_capacity(self, max_objects: int) -> None:
        """Check that no image has more objects than queries."""
        patterns = max(self.num_patterns, 1)
        check_queries(max_objects, self.num_queries, enough=-(-max_objects // patterns) * patterns)
