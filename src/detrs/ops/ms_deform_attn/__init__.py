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
        value: Tokens of all levels, row-major within a level, cut into heads. Any strides.
        shapes: (height, width) of each level in pixels; the products add up to S.
        locations: Sampling locations (x, y) relative to each level: 0 and 1 are its outer edges, pixel centres lie at
            (i + 0.5) / size. Beyond the edges there are zeros; NaN and infinity are beyond.
        weights: Attention weights, used as they are (nothing is normalised here).

    Returns:
        One row per query in the type of ``value``. Computed in float32, or in float64 if any input is float64; for
        half precision give ``value`` in half and ``locations`` in float32, because half coordinates jump by pixels.

    Raises:
        TypeError: An input is not a floating-point tensor.
        ValueError: Sizes or devices contradict each other, or the forced backend cannot run here.
    """
    _validate(value, shapes, locations, weights)
    dtype = value.dtype
    compute = torch.float64 if torch.float64 in (dtype, locations.dtype, weights.dtype) else torch.float32
    locations = locations.to(compute)
    weights = weights.to(compute)
    if compute == torch.float64:
        value = value.double()
    if backend.current(value.device.type, value.dtype) == "numba":
        sizes = [size for shape in shapes for size in shape]
        return operator.ms_deform_attn(value, sizes, locations, weights).to(dtype)
    return reference.ms_deform_attn(value.to(compute), shapes, locations, weights).to(dtype)


def _validate(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> None:
    for name, tensor in (("value", value), ("locations", locations), ("weights", weights)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device} and value on {value.device}: move them to one device")
    if value.ndim != 4:
        raise ValueError(f"value: expected (B, S, M, D), got {tuple(value.shape)}")
    batch, tokens, heads, _ = value.shape
    if not shapes or min(min(shape) for shape in shapes) < 1 or sum(h * w for h, w in shapes) != tokens:
        raise ValueError(f"shapes: expected (height, width) of levels with {tokens} pixels in all, got {shapes}")
    if locations.ndim != 6 or locations.shape[5] != 2:
        raise ValueError(f"locations: expected (B, Q, M, L, P, 2), got {tuple(locations.shape)}")
    if (locations.shape[0], locations.shape[2], locations.shape[3]) != (batch, heads, len(shapes)):
        raise ValueError(
            f"locations: expected B={batch}, M={heads} (as value has) and L={len(shapes)} (as shapes has) "
            f"in (B, Q, M, L, P, 2), got {tuple(locations.shape)}"
        )
    if weights.shape != locations.shape[:5]:
        raise ValueError(f"weights: expected {tuple(locations.shape[:5])} as locations has, got {tuple(weights.shape)}")
