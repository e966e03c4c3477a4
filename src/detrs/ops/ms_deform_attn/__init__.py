"""Multi-scale deformable attention: each query samples a few points per level instead of attending to all pixels."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from detrs.ops import backend
from detrs.ops.ms_deform_attn import operator, reference
from detrs.ops.ms_deform_attn.inputs import Inputs
from detrs.structures import Shapes

MAX_SIDE = 2**24
"""float32, in which positions are computed, represents whole numbers up to here exactly."""

MAX_TOKENS = 2**31 - 1
"""Kernels index tokens in int32."""


def ms_deform_attn(
    value: Float[Tensor, "B S M D"],
    shapes: Shapes | Tensor,
    locations: Tensor,
    weights: Tensor,
    points: Sequence[int] | None = None,
) -> Float[Tensor, "B Q M*D"]:
    """Weighted sums of bilinear samples (Deformable DETR, arXiv 2010.04159, Eq. 3 without its projections).

    Args:
        value: Tokens of all levels, row-major within a level, split into heads: (B, S, M, D) with any strides. For
            head-major tensors (B, M, S, D) pass ``value.transpose(1, 2)``.
        shapes: (height, width) of each level in pixels; the products add up to S. May be a tensor (L, 2), but one on a
            GPU synchronizes with the host.
        locations: Sampling locations (x, y) relative to each level, (B, Q, M, L, P, 2): 0 and 1 are its outer edges,
            pixel centers are at (i + 0.5) / size. Values are zero outside; NaN and infinity are outside.
        weights: Attention weights (B, Q, M, L, P). They are not normalized.
        points: Number of points on each level, if it differs between levels. All K points then share one axis, ordered
            by level: ``locations`` are (B, Q, M, K, 2) and ``weights`` (B, Q, M, K).

    Returns:
        One row per query in the dtype of ``value``. Compiled kernels compute the output and its gradient.
        Second derivatives, forward-mode derivatives and those of ``torch.func`` (``grad``, ``jvp``, ``hessian``) are
        computed in plain PyTorch on all backends, which needs more time and memory. Computed in float32, or in float64
        if any input is float64. For half precision pass ``value`` in half and ``locations`` in float32: half
        coordinates are off by whole pixels.

    Raises:
        TypeError: An input is not a floating-point tensor.
        ValueError: Sizes or devices do not match, or the forced backend cannot run here.
    """
    shapes = _as_tuples(shapes)
    _check_value(value, shapes, locations=locations, weights=weights)
    points, locations, weights = _flat(value, shapes, points, "locations", locations, "weights", weights)
    return _dispatch(Inputs(value, shapes, points, locations, weights, None, None))


def ms_deform_attn_fused(
    value: Float[Tensor, "B S M D"],
    shapes: Shapes | Tensor,
    offsets: Tensor,
    logits: Tensor,
    reference_points: Float[Tensor, "B Q L _"],
    padding: Bool[Tensor, "B S"] | None = None,
    points: Sequence[int] | None = None,
) -> Float[Tensor, "B Q M*D"]:
    """``ms_deform_attn`` fused with the masking, the softmax and the arithmetic of locations that precede it.

    Outside the kernel these take as much time as the operator itself. The fused kernels, forward and backward, store no
    intermediate result of the size of the locations.

    Args:
        value: As for ``ms_deform_attn``.
        shapes: As for ``ms_deform_attn``.
        offsets: Sampling offsets (x, y), (B, Q, M, L, P, 2). Around a point, in pixels of the level (4.1 of the paper);
            around a box, scaled by box size / (2P) (A.2).
        logits: (B, Q, M, L, P); their softmax over all L*P points of a head gives the attention weights.
        reference_points: Points (x, y) or boxes (cx, cy, w, h), relative to each level: (B, Q, L, 2 or 4).
        padding: True for tokens that count as zero: (B, S).
        points: As for ``ms_deform_attn``: ``offsets`` are then (B, Q, M, K, 2) and ``logits`` (B, Q, M, K).

    Returns:
        One row per query in the dtype of ``value``, computed as for ``ms_deform_attn``.

    Raises:
        TypeError: An input is not a floating-point tensor, or ``padding`` is not boolean.
        ValueError: Sizes or devices do not match, or the forced backend cannot run here.
    """
    shapes = _as_tuples(shapes)
    _check_value(value, shapes, offsets=offsets, logits=logits, reference_points=reference_points)
    points, offsets, logits = _flat(value, shapes, points, "offsets", offsets, "logits", logits)
    sizes = (*offsets.shape[:2], len(shapes))
    given = tuple(reference_points.shape)
    if len(given) != 4 or given[:3] != sizes or given[3] not in (2, 4):
        expected = f"(B, Q, L, 2 or 4) = ({', '.join(map(str, sizes))}, 2 or 4)"
        raise ValueError(f"reference_points: expected {expected}, got {given}")
    if padding is not None:
        if padding.dtype != torch.bool:
            raise TypeError(f"padding: expected bool, True where padded, got {padding.dtype}")
        if padding.shape != value.shape[:2] or padding.device != value.device:
            expected = f"(B, S) = {tuple(value.shape[:2])} on {value.device}"
            raise ValueError(f"padding: expected {expected}, got {tuple(padding.shape)} on {padding.device}")
    return _dispatch(Inputs(value, shapes, points, offsets, logits, reference_points, padding))


def _dispatch(inputs: Inputs) -> Tensor:
    """Casts the inputs to the types to compute in, and calls the operator or the reference."""
    value, shapes, points, locations, weights, reference_points, padding = inputs
    dtypes = [tensor.dtype for tensor in (value, locations, weights, reference_points) if tensor is not None]
    compute = torch.float64 if torch.float64 in dtypes else torch.float32
    locations, weights = locations.to(compute), weights.to(compute)
    reference_points = None if reference_points is None else reference_points.to(compute)
    if compute == torch.float64:
        value = value.double()
    inputs = Inputs(value, shapes, points, locations, weights, reference_points, padding)
    chosen = backend.current(value.device.type, value.dtype)
    # custom operators have no forward-mode derivatives, and none within torch.func.grad
    if backend.is_transformed(by_vmap=False):
        chosen = "gather"
    if chosen in backend.KERNELS:
        out = operator.ms_deform_attn(value, inputs.sizes, list(points), locations, weights, reference_points, padding)
        return out.to(dtypes[0])
    sample = reference.by_gather if chosen == "gather" else reference.by_grid_sample
    return reference.compute(inputs, sample).to(dtypes[0])


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
            raise ValueError(f"{name} is on {tensor.device} and value on {value.device}: move them to the same device")
    if value.ndim != 4:
        raise ValueError(f"value: expected (B, S, M, D), got {tuple(value.shape)}")
    tokens, sides = value.shape[1], [side for shape in shapes for side in shape]
    if not sides or min(sides) < 1 or sum(h * w for h, w in shapes) != tokens:
        raise ValueError(f"shapes: expected (height, width) of levels with {tokens} pixels in total, got {shapes}")
    limits = ((tokens, MAX_TOKENS), *((side, MAX_SIDE) for side in sides))
    # The limits are those of the kernels, which exports do not contain: there they would constrain dynamic sizes.
    if not torch.compiler.is_exporting() and any(size > limit for size, limit in limits):
        raise ValueError(f"shapes: expected sides up to {MAX_SIDE}, {MAX_TOKENS} pixels in total, got {shapes}")


def _flat(
    value: Tensor,
    shapes: Shapes,
    points: Sequence[int] | None,
    locations_name: str,
    locations: Tensor,
    weights_name: str,
    weights: Tensor,
) -> tuple[tuple[int, ...], Tensor, Tensor]:
    """Number of points on each level, and both tensors with one axis for all K points."""
    batch, _, heads, _ = value.shape
    axes = ("B", "Q", "M", "L", "P") if points is None else ("B", "Q", "M", "K")
    if locations.ndim != len(axes) + 1 or locations.shape[-1] != 2:
        raise ValueError(f"{locations_name}: expected ({', '.join(axes)}, 2), got {tuple(locations.shape)}")
    if points is not None and (len(points) != len(shapes) or min(points) < 0):
        raise ValueError(f"points: expected a number for each of the {len(shapes)} levels, got {tuple(points)}")
    known = {"B": batch, "M": heads, "L": len(shapes)} | ({} if points is None else {"K": sum(points)})
    actual = dict(zip(axes, locations.shape, strict=False))
    if any(actual[axis] != size for axis, size in known.items() if axis in actual):
        expected = ", ".join(f"{axis}={size}" for axis, size in known.items() if axis in actual)
        axes_named = f"({', '.join(axes)}, 2)"
        raise ValueError(
            f"{locations_name}: expected {expected} (as value, shapes and points have) in {axes_named}, "
            f"got {tuple(locations.shape)}"
        )
    if weights.shape != locations.shape[:-1]:
        expected = f"{tuple(locations.shape[:-1])} as {locations_name} has"
        raise ValueError(f"{weights_name}: expected {expected}, got {tuple(weights.shape)}")
    if points is not None:
        return tuple(points), locations, weights
    return (locations.shape[4],) * len(shapes), locations.flatten(3, 4), weights.flatten(3, 4)
