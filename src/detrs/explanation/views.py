"""The explanation of one image: detections, the path of the queries over the layers, and views of layers.

Tensors are on the CPU, floating-point ones in float32. M heads, L levels, P points, K classes; Q is the number of
queries of the decoder or of tokens of the encoder.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple

from jaxtyping import Float, Int, UInt8
from torch import Tensor

from detrs.errors import counted
from detrs.structures import Classes, Detections, Shapes

Stage = Literal["backbone", "encoder", "decoder"]


class Shown:
    """Base of dataclasses whose ``repr`` has the shapes of tensors instead of all their numbers."""

    def __repr__(self) -> str:
        parts = [f"{each.name}={_short(getattr(self, each.name))}" for each in fields(self)]  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(parts)})"


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_short(each)}" for key, each in value.items()) + "}"
    return f"Tensor{tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


@dataclass(frozen=True, eq=False, repr=False)
class LayerTrace(Shown):
    """All queries in one layer of the decoder (or stage of proposals)."""

    reference: Float[Tensor, "Q _"]
    """Reference points (x, y) or boxes (cx, cy, w, h) before the layer, in [0, 1] of the un-padded image; (Q, 0) for
    queries without reference."""
    boxes: Float[Tensor, "Q 4"]
    """Predicted boxes, cxcywh in [0, 1] of the un-padded image, not clipped."""
    scores: Float[Tensor, "Q K"]
    """Probability of each class, without "no object"."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ModuleView(Shown):
    """Which module a view is of."""

    stage: Stage
    layer: int
    """Index of the layer in its stage, or of the block of a backbone, from 0."""
    name: str
    """Qualified name of the module, for example ``decoder.layers.0.cross_attention.attention``."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SamplingView(ModuleView):
    """Sampling locations and attention weights of multi-scale deformable attention."""

    kind: ClassVar[str] = "sampling"
    queries: Int[Tensor, "Q"]
    """Indices of the queries (decoder) or tokens (encoder, in the order of ``Pyramid``) that the view contains."""
    grids: Shapes = ()
    """Encoder: (height, width) of the regular grid of each level that the tokens form, level after level, row-major;
    token i of a grid covers the i-th of height x width equal rectangles of the image. Decoder: empty."""
    locations: Float[Tensor, "Q M L P 2"]
    """(x, y) in [0, 1] of the un-padded image; sampled values are zero outside."""
    weights: Float[Tensor, "Q M L P"]
    """Attention weights; they add up to 1 for each query and head."""
    shapes: Shapes
    """(height, width) of each level in cells."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class AttentionView(ModuleView):
    """Attention weights of each query on one feature map."""

    kind: ClassVar[str] = "attention"
    queries: Int[Tensor, "Q"]
    """Indices of the queries (decoder) or tokens (encoder, row-major) that the view contains."""
    grids: Shapes = ()
    """Encoder: the size of the grid of tokens, as in ``SamplingView``, one for the single level. Decoder: empty."""
    weights: Float[Tensor, "Q M h w"]
    """Attention weights; they add up to 1 over the map for each query and head."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class RegionView(ModuleView):
    """Regions from which features are pooled, and the responses of each query's dynamic filters in its region."""

    kind: ClassVar[str] = "region"
    queries: Int[Tensor, "Q"]
    """Indices of the queries that the view contains."""
    boxes: Float[Tensor, "Q 4"]
    """cxcywh in [0, 1] of the un-padded image."""
    responses: Float[Tensor, "Q S S"] | None
    """Size of the filters' response at each cell of the region, rows top to bottom; None without dynamic filters."""
    objectness: Float[Tensor, "Q"] | None = None
    """Probability that a proposal is an object of any class (Faster R-CNN)."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class PointsView(ModuleView):
    """Points that a backbone or a convolution samples, without queries."""

    kind: ClassVar[str] = "points"
    points: Float[Tensor, "G h w 2"]
    """(x, y) in [0, 1] of the un-padded image: G groups of h x w points."""


View = SamplingView | AttentionView | RegionView | PointsView


class Duplicate(NamedTuple):
    """Another query with the same class at the same place."""

    query: int
    label: int
    score: float
    iou: float
    box: tuple[float, ...]
    """cxcywh in [0, 1] of the un-padded image."""


@dataclass(frozen=True, eq=False, repr=False)
class Gradients(Shown):
    """Derivatives of the outputs of ``detect`` for one detection with respect to the normalized input image."""

    detection: int
    """Index in ``Explanation.detections``."""
    maps: dict[str, Float[Tensor, "H W"]]
    """``score`` and ``x``, ``y``, ``w``, ``h`` (of the box, cxcywh in [0, 1], not clipped): the norm over the color
    channels at each pixel of the resized image."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Explanation:
    """What a detector computed for one image."""

    image: UInt8[Tensor, "3 H W"]
    """As decoded: RGB, upright, in its original size."""
    source: str | None
    """Path or URL; None for arrays."""
    detector: str
    """Name of the detector, for example ``DeformableDETR``."""
    input_size: tuple[int, int]
    """(height, width) in pixels of the image that the backbone received."""
    classes: Classes
    threshold: float
    """Smallest score of a detection."""
    detections: Detections
    """Those that ``Predictor`` returns for this image and threshold."""
    queries: list[int]
    """Index of the query, or proposal, that each detection comes from."""
    trace: tuple[LayerTrace, ...]
    """One per layer of the decoder."""
    views: tuple[View, ...]
    """In the order of the forward pass."""
    suppressed: tuple[tuple[Duplicate, ...], ...] | None = None
    """For each detection, the boxes that non-maximum suppression removed for it; None without suppression."""
    gradients: tuple[Gradients, ...] = ()
    """Of the first detections, as many as asked for."""

    def __repr__(self) -> str:
        parts = [f"{counted(len(self.detections), 'detection')} in {self.source!r}", counted(len(self.trace), "layer")]
        parts += [counted(len(self.views), "view"), f"gradients of {counted(len(self.gradients), 'detection')}"]
        return f"<Explanation: {self.detector}, {', '.join(parts)}>"

    def to_json(self) -> dict[str, Any]:
        """A dictionary for ``json.dumps``, with arrays reduced to what a page can hold; see ``encoding``."""
        from detrs.explanation.encoding import encode

        return encode(self)
