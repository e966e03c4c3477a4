"""Multi-scale deformable attention: each query looks at a few points of each level instead of at everything."""

import torch
from jaxtyping import Float
from torch import Tensor

from detrs.ops import backend
from detrs.ops.ms_deform_attn import operator, reference
from detrs.structures import Shapes


def ms_deform_attn(
    value: Float[Tensor, "B S M D"],
    shapes: Shapes,
    locations: Float[Tensor, "B Q M L P 2"],
    weights: Float[Tensor, "B Q M L P"],
) -> Float[Tensor, "B Q M*D"]:
    """Weighted sums of bilinear samples (Deformable DETR, arXiv 2010.04159, Eq. 3 without its projections).

    Args:
        value: Tokens of all levels, fine to coarse, row-major within a level, cut into heads. Any strides.
        shapes: (height, width) of each level; the products add up to S.
        locations: Sampling locations (x, y), relative to each level: 0 and 1 are its outer edges. Samples beyond the
            edges are zero; a location that is NaN or infinite is beyond.
        weights: Attention weights, as they are: nothing is normalised here.

    Returns:
        One row per query in the type of ``value``. Everything is computed in float32, or in float64 where any input is.

    Raises:
        TypeError: An input is no floating-point tensor.
        ValueError: Shapes or devices contradict each other, or the forced backend cannot run.
    """
    _validate(value, shapes, locations, weights)
    compute = torch.float64 if torch.float64 in (value.dtype, locations.dtype, weights.dtype) else torch.float32
    locations = locations.to(compute)
    weights = weights.to(compute)
    if backend.current(value.device.type, value.dtype) == "numba":
        if compute == torch.float64:
            return operator.ms_deform_attn(value.double(), [n for s in shapes for n in s], locations, weights).to(value.dtype)
        return operator.ms_deform_attn(value, [size for shape in shapes for size in shape], locations, weights)
    return reference.ms_deform_attn(value.to(compute), shapes, locations, weights).to(value.dtype)


def _validate(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    for name, tensor in (("value", value), ("locations", locations), ("weights", weights)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device} and value on {value.device}: move them to one device")
    if value.ndim != 4:
        raise ValueError(f"value: expected (B, S, M, D), got {tuple(value.shape)}")
    batch, tokens, heads, _ = value.shape
    if locations.ndim != 6 or locations.shape[5] != 2:
        raise ValueError(f"locations: expected (B, Q, M, L, P, 2), got {tuple(locations.shape)}")
    if locations.shape[0] != batch or locations.shape[2] != heads or locations.shape[3] != len(shapes):
        raise ValueError(
            f"locations: expected (B={batch}, Q, M={heads}, L={len(shapes)}, P, 2) after value {tuple(value.shape)} and "
            f"{len(shapes)} levels, got {tuple(locations.shape)}"
        )
    if weights.shape != locations.shape[:5]:
        raise ValueError(f"weights: expected {tuple(locations.shape[:5])} after locations, got {tuple(weights.shape)}")
    if sum(h * w for h, w in shapes) != tokens:
        raise ValueError(f"shapes {tuple(shapes)} hold {sum(h * w for h, w in shapes)} tokens, but value has {tokens}")
