"""Multi-scale deformable attention: each query looks at a few points of each level instead of at everything."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from detrs.ops import backend
from detrs.ops.ms_deform_attn import operator, reference
from detrs.structures import Shapes

LARGEST_SIDE = 2**24
"""Whole numbers up to here are exact in float32, in which pixels are found."""

MOST_TOKENS = 2**31 - 1
"""Kernels number them in int32."""

Points = tuple[int, ...]
"""Number of points of each level."""


def ms_deform_attn(
    value: Float[Tensor, "B S M D"],
    shapes: Shapes | Tensor,
    locations: Tensor,
    weights: Tensor,
    points: Sequence[int] | None = None,
) -> Float[Tensor, "B Q M*D"]:
    """Weighted sums of bilinear samples (Deformable DETR, arXiv 2010.04159, Eq. 3 without its projections).

    Args:
        value: Tokens of all levels, row-major within a level, cut into heads: (B, S, M, D) with any strides. Where
            heads come first, give ``value.transpose(1, 2)``.
        shapes: (height, width) of each level in pixels; the products add up to S. May be a tensor (L, 2), but the host
            has to wait for one that is on a GPU.
        locations: Sampling locations (x, y) relative to each level, (B, Q, M, L, P, 2): 0 and 1 are its outer edges,
            pixel centres lie at (i + 0.5) / size. Beyond the edges there are zeros; NaN and infinity are beyond.
        weights: Attention weights (B, Q, M, L, P), used as they are (nothing is normalised here).
        points: Number of points of each level where it differs. Then there is one axis for all K points, level after
            level: ``locations`` are (B, Q, M, K, 2) and ``weights`` (B, Q, M, K).

    Returns:
        One row per query in the type of ``value``. Computed in float32, or in float64 if any input is float64; for
        half precision give ``value`` in half and ``locations`` in float32, because half coordinates jump by pixels.

    Raises:
        TypeError: An input is not a floating-point tensor.
        ValueError: Sizes or devices contradict each other, or the forced backend cannot run here.
    """
    levels = _as_tuples(shapes)
    _check_value(value, levels, locations=locations, weights=weights)
    counts, locations, weights = _flat(value, levels, points, "locations", locations, "weights", weights)
    return _dispatch(value, levels, counts, locations, weights, None, None)


def ms_deform_attn_fused(
    value: Float[Tensor, "B S M D"],
    shapes: Shapes | Tensor,
    offsets: Tensor,
    logits: Tensor,
    reference: Float[Tensor, "B Q L _"],
    padding: Bool[Tensor, "B S"] | None = None,
    points: Sequence[int] | None = None,
) -> Float[Tensor, "B Q M*D"]:
    """``ms_deform_attn`` together with what comes before it: masking, softmax and the arithmetic of locations.

    What a layer computes around the operator takes as much time as the operator does. Here all of it happens inside the
    kernel, forward and backward, and nothing of the size of the locations is stored in between.

    Args:
        value: As for ``ms_deform_attn``.
        shapes: As for ``ms_deform_attn``.
        offsets: Sampling offsets (x, y) as the query predicts them, (B, Q, M, L, P, 2). Around a point they are
            measured in pixels of the level (4.1 of the paper); around a box in half boxes over P (A.2).
        logits: (B, Q, M, L, P); their softmax over all L*P points of a head are the attention weights.
        reference: Points (x, y) or boxes (cx, cy, w, h), relative to each level: (B, Q, L, 2 or 4).
        padding: True for tokens that count as zero: (B, S).
        points: As for ``ms_deform_attn``: ``offsets`` are then (B, Q, M, K, 2) and ``logits`` (B, Q, M, K).

    Returns:
        One row per query in the type of ``value``, computed as for ``ms_deform_attn``.

    Raises:
        TypeError: An input is not a floating-point tensor, or the padding is not boolean.
        ValueError: Sizes or devices contradict each other, or the forced backend cannot run here.
    """
    levels = _as_tuples(shapes)
    _check_value(value, levels, offsets=offsets, logits=logits, reference=reference)
    counts, offsets, logits = _flat(value, levels, points, "offsets", offsets, "logits", logits)
    batch, queries = offsets.shape[:2]
    if reference.ndim != 4 or reference.shape[:3] != (batch, queries, len(levels)) or reference.shape[3] not in (2, 4):
        expected = f"({batch}, {queries}, {len(levels)}, 2 or 4)"
        raise ValueError(f"reference: expected (B, Q, L, 2 or 4), here {expected}, got {tuple(reference.shape)}")
    if padding is not None:
        if padding.dtype != torch.bool:
            raise TypeError(f"padding: expected bool, True where there is no image, got {padding.dtype}")
        if padding.shape != value.shape[:2] or padding.device != value.device:
            expected = f"(B, S) = {tuple(value.shape[:2])} on {value.device}"
            raise ValueError(f"padding: expected {expected}, got {tuple(padding.shape)} on {padding.device}")
    return _dispatch(value, levels, counts, offsets, logits, reference, padding)


def _dispatch(
    value: Tensor,
    shapes: Shapes,
    points: Points,
    locations: Tensor,
    weights: Tensor,
    center: Tensor | None,
    padding: Tensor | None,
) -> Tensor:
    """Decide on a type to compute in and on who computes."""
    dtype = value.dtype
    types = (
        (dtype, locations.dtype, weights.dtype)
        if center is None
        else (dtype, locations.dtype, weights.dtype, center.dtype)
    )
    compute = torch.float64 if torch.float64 in types else torch.float32
    locations, weights = locations.to(compute), weights.to(compute)
    center = None if center is None else center.to(compute)
    if compute == torch.float64:
        value = value.double()
    chosen = backend.current(value.device.type, value.dtype)
    if chosen in backend.KERNELS:
        sizes = [size for shape in shapes for size in shape]
        out = operator.ms_deform_attn(value, sizes, list(points), locations, weights, center, padding)
        return out.to(dtype)
    value = value.to(compute)
    if padding is not None:
        value = value.masked_fill(padding[..., None, None], 0)
    if center is not None:
        locations, weights = reference.locate(locations, center, shapes, points), weights.softmax(-1)
    sample = reference.by_gather if chosen == "gather" else reference.by_grid_sample
    return reference.ms_deform_attn(value, shapes, points, locations, weights, sample).to(dtype)


def _as_tuples(shapes: Shapes | Tensor) -> Shapes:
    if isinstance(shapes, Tensor):
        if shapes.ndim != 2 or shapes.shape[1] != 2 or shapes.is_floating_point():
            raise ValueError(f"shapes: expected whole numbers (L, 2), got {shapes.dtype} {tuple(shapes.shape)}")
        return tuple((height, width) for height, width in shapes.tolist())
    if any(isinstance(shape, int) or len(shape) != 2 or isinstance(sum(shape), float) for shape in shapes):
        raise ValueError(f"shapes: expected (height, width) of each level in whole numbers, got {shapes}")
    return tuple((height, width) for height, width in shapes)


def _check_value(value: Tensor, shapes: Shapes, **others: Tensor) -> None:
    for name, tensor in (("value", value), *others.items()):
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point tensor, got {tensor.dtype}")
        if tensor.device != value.device:
            raise ValueError(f"{name} is on {tensor.device} and value on {value.device}: move them to one device")
    if value.ndim != 4:
        raise ValueError(f"value: expected (B, S, M, D), got {tuple(value.shape)}")
    tokens = value.shape[1]
    if not shapes or min(min(shape) for shape in shapes) < 1 or sum(h * w for h, w in shapes) != tokens:
        raise ValueError(f"shapes: expected (height, width) of levels with {tokens} pixels in all, got {shapes}")
    if max(max(shape) for shape in shapes) > LARGEST_SIDE or tokens > MOST_TOKENS:
        raise ValueError(f"shapes: expected sides up to {LARGEST_SIDE}, {MOST_TOKENS} pixels in all, got {shapes}")


def _flat(
    value: Tensor,
    shapes: Shapes,
    points: Sequence[int] | None,
    places_name: str,
    places: Tensor,
    weights_name: str,
    weights: Tensor,
) -> tuple[Points, Tensor, Tensor]:
    """Points of each level, and both tensors with one axis for all of them."""
    batch, _, heads, _ = value.shape
    axes = ("B", "Q", "M", "L", "P") if points is None else ("B", "Q", "M", "K")
    if places.ndim != len(axes) + 1 or places.shape[-1] != 2:
        raise ValueError(f"{places_name}: expected ({', '.join(axes)}, 2), got {tuple(places.shape)}")
    if points is not None and (len(points) != len(shapes) or min(points) < 0):
        raise ValueError(f"points: expected a number for each of {len(shapes)} levels, got {tuple(points)}")
    known = {"B": batch, "M": heads, "L": len(shapes)} | ({} if points is None else {"K": sum(points)})
    actual = dict(zip(axes, places.shape, strict=False))
    if any(actual[axis] != size for axis, size in known.items() if axis in actual):
        expected = ", ".join(f"{axis}={size}" for axis, size in known.items() if axis in actual)
        axes_named = f"({', '.join(axes)}, 2)"
        raise ValueError(
            f"{places_name}: expected {expected} (as value, shapes and points have) in {axes_named}, "
            f"got {tuple(places.shape)}"
        )
    if weights.shape != places.shape[:-1]:
        expected = f"{tuple(places.shape[:-1])} as {places_name} has"
        raise ValueError(f"{weights_name}: expected {expected}, got {tuple(weights.shape)}")
    if points is not None:
        return tuple(points), places, weights
    return (places.shape[4],) * len(shapes), places.flatten(3, 4), weights.flatten(3, 4)
