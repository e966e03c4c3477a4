"""Settings of Deformable DETR; ``models/deformable_detr.py`` builds it."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le, Lt

from detrs.config.backbone import BackboneConfig
from detrs.config.checks import check_heads, check_levels, check_queries
from detrs.config.classification import Focal
from detrs.config.neck import NeckNorm
from detrs.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DeformableDETRConfig:
    """Deformable DETR and its variants."""

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
    """P, sampling points per head and level; K in the paper."""
    encoder_attention: Literal["multi-scale", "own-level"] = "multi-scale"
    """Levels that a token of the encoder samples. ``multi-scale``: all. ``own-level``: its own, so that levels exchange
    no information before the decoder, which samples all (Table 2, without multi-scale attention)."""
    encoder_layers: Annotated[int, Ge(0), Le(100)] = 6
    """Layers of the encoder; 0: no encoder."""
    decoder_layers: Annotated[int, Ge(1), Le(100)] = 6
    """Layers of the decoder; each makes a prediction."""
    ffn_dim: Annotated[int, Ge(1), Le(65_536)] = 1024
    """Hidden dimension of the feed-forward networks."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Dropout after attention and inside feed-forward networks, in training."""
    num_queries: Annotated[int, Ge(1), Le(100_000)] = 300
    """Object queries (Q); each is matched with one object at most, so no image may have more objects."""
    queries: Literal["learned", "proposals"] = "learned"
    """``learned``: one-stage. ``proposals``: two-stage, the encoder's best proposals; needs ``refine``."""
    proposals: Literal["all", "usable"] = "all"
    """Tokens that can become queries (two-stage only). ``all``: also those without a valid proposal, padding for
    example, as in the authors' code. ``usable``: these only if there are fewer others than queries."""
    neck: Literal["projection", "fpn", "bifpn"] = "projection"
    """``projection``: one convolution per level. ``fpn``: FPN on the backbone's maps, with GroupNorm after each output;
    further levels as before. ``bifpn``: BiFPN on the projections."""
    bifpn_layers: Annotated[int, Ge(1), Le(100)] = 3
    """Layers of BiFPN (``neck="bifpn"`` only); EfficientDet-D0 has 3."""
    neck_norm: NeckNorm = "group"
    """GroupNorm of the neck. ``group``: over the whole map, padding included, as in the authors' code.
    ``group-masked``: over the cells of the image alone."""
    reference: Literal["keep", "refine"] = "keep"
    """``refine``: iterative box refinement between decoder layers, each with a separate head."""
    classification: Focal = field(default_factory=Focal)
    """One sigmoid per class."""

    def check(self) -> None:
        """Check that settings do not contradict each other."""
        check_heads(self)
        check_levels(self)
        if self.neck == "bifpn" and self.num_levels < 2:
            raise UserError("model.neck 'bifpn' needs model.num_levels of at least 2: it connects levels.")
        if self.queries == "proposals" and self.reference == "keep":
            raise UserError(
                "model.queries 'proposals' needs model.reference 'refine': two-stage always refines its boxes."
            )

    def check_capacity(self, max_objects: int) -> None:
        """Check that no image has more objects than queries."""
        check_queries(max_objects, self.num_queries, enough=max_objects)
