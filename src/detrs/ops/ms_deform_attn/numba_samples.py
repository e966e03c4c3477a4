"""The samples of one head of one query: attention weights, positions, the four pixels around each and their weights.

LANES samples are computed at once.
"""
# numba infers the types of what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators
# mypy: disable-error-code="attr-defined, call-arg, operator, var-annotated"

import numpy as np
from numba import njit

from detrs.ops.ms_deform_attn.numba_problem import (
    COMPILE,
    CORNER_WEIGHT,
    IN_BOUNDS,
    ORIGIN_X,
    ORIGIN_Y,
    PADDED,
    SCALE_X,
    SCALE_Y,
    WEIGHT,
    X,
    Y,
    load_row,
    load_sizes,
    row_address,
)
from detrs.ops.numba_memory import LANES, load_masked, load_pairs, load_vector, store_vector
from detrs.ops.numba_simd import (
    exp2_of_integers,
    floor,
    maximum,
    minimum,
    reduce_max,
    reduce_sum,
    to_int32,
    where_between,
)


@njit(**COMPILE)
def _exp(x, lowest, is_double):
    """``e ** x`` of numbers up to 0; 0 below ``lowest``, and NaN of NaN."""
    power = floor(x * 1.4426950408889634 + 0.5)
    rest = x - power * 0.693359375 + power * 2.1219444005469057e-4  # ln 2 in two parts: |rest| <= ln(2) / 2
    series = rest * 0.0  # Taylor series to rest ** 7 / 7! in single and rest ** 13 / 13! in double precision
    if is_double:
        for factor in (1 / 6227020800, 1 / 479001600, 1 / 39916800, 1 / 3628800, 1 / 362880, 1 / 40320):
            series = series * rest + factor
    for factor in (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = series * rest + factor
    return where_between(x, -np.inf, lowest, 0.0, series * exp2_of_integers(power))


@njit(**COMPILE)
def _attention_weights(address, num_samples, is_logits, real, compute):
    """Attention weights of one head, from the address of its weights or logits; 0 behind the last one."""
    number = real.dtype.type
    if not is_logits:
        for k in range(0, num_samples, LANES):
            weight = load_masked(address + k * real.itemsize, num_samples - k, number(0))
            store_vector(row_address(real, WEIGHT, k), weight)
        return
    max_logit = number(-np.inf)
    for k in range(0, num_samples, LANES):
        logit = load_masked(address + k * real.itemsize, num_samples - k, number(-np.inf))
        store_vector(row_address(real, WEIGHT, k), logit)
        max_logit = max(max_logit, reduce_max(logit))
    total = number(0)
    lowest = number(-87.0) if real.itemsize == 4 else number(-708.0)  # below, powers of two are subnormal
    for k in range(0, num_samples, LANES):
        weight = _exp(load_row(real, WEIGHT, k, compute) - max_logit, lowest, real.itemsize == 8)
        store_vector(row_address(real, WEIGHT, k), weight)
        total += reduce_sum(weight)
    factor = number(1) / total
    for k in range(0, num_samples, LANES):
        store_vector(row_address(real, WEIGHT, k), load_row(real, WEIGHT, k, compute) * factor)


@njit(**COMPILE)
def fill_transform(problem, views, n, q, transform):
    """Origin and scale of the samples of query ``q``: around a point, in a box, or (plain form) in the whole level."""
    number, levels, reference_points = transform.dtype.type, views.levels, views.reference_points
    for i in range(levels.shape[0]):
        first, points = levels[i, 3], levels[i, 4]
        for axis in range(2):
            size = number(levels[i, 1 - axis])
            origin, scale = number(-0.5), size
            if problem.reference_dim > 0:
                origin, scale = reference_points[n, q, i, axis] * size - number(0.5), number(1)
            if problem.reference_dim == 4:
                scale = reference_points[n, q, i, axis + 2] * size * number(0.5) / number(points)
            for k in range(first, first + points):
                transform[2 * axis, k] = origin
                transform[2 * axis + 1, k] = scale


@njit(**COMPILE)
def neighbors(position, size):
    """The two pixels around each position along one axis.

    Returns:
        Index of the lower and of the upper pixel; their bilinear weights; the derivatives of these weights by the
        position. A pixel out of bounds has weight and derivative 0 and the index of the nearest pixel, which is safe to
        read. NaN is out of bounds.
    """
    lower = floor(position)
    fraction = position - lower
    last = size - 1.0
    return (
        minimum(maximum(lower, 0.0), last),
        minimum(maximum(lower + 1.0, 0.0), last),
        where_between(lower, 0.0, last, 1.0 - fraction, 0.0),
        where_between(lower, -1.0, last - 1.0, fraction, 0.0),
        where_between(lower, 0.0, last, -1.0, 0.0),
        where_between(lower, -1.0, last - 1.0, 1.0, 0.0),
    )


@njit(**COMPILE)
def store_corners(samples, k, x, y, weight, sizes, width, start):
    """Stores the pixels around LANES samples and their weights, from sample ``k`` on.

    Args:
        samples: ``Samples`` to store to.
        k: First sample.
        x: Positions.
        y: Positions.
        weight: Attention weights.
        sizes: Width and height of the levels, real.
        width: Width of the levels, int32.
        start: First token of the levels, int32.
    """
    left, right, left_weight, right_weight, _, _ = neighbors(x, sizes[0])
    top, bottom, top_weight, bottom_weight, _, _ = neighbors(y, sizes[1])
    left, right = to_int32(left), to_int32(right)
    top_row, bottom_row = to_int32(top) * width + start, to_int32(bottom) * width + start
    token, real = samples.token, samples.real
    store_vector(row_address(token, 0, k), top_row + left)
    store_vector(row_address(token, 1, k), top_row + right)
    store_vector(row_address(token, 2, k), bottom_row + left)
    store_vector(row_address(token, 3, k), bottom_row + right)
    store_vector(row_address(real, IN_BOUNDS, k), (left_weight + right_weight) * (top_weight + bottom_weight))
    top_weight, bottom_weight = top_weight * weight, bottom_weight * weight
    store_vector(row_address(real, CORNER_WEIGHT, k), top_weight * left_weight)
    store_vector(row_address(real, CORNER_WEIGHT + 1, k), top_weight * right_weight)
    store_vector(row_address(real, CORNER_WEIGHT + 2, k), bottom_weight * left_weight)
    store_vector(row_address(real, CORNER_WEIGHT + 3, k), bottom_weight * right_weight)


@njit(**COMPILE)
def mask_padding(samples, padding, n, start, num_samples):
    """Sets the weight of padded pixels to 0, and replaces their index by that of an unpadded pixel of the same sample.

    So padding is never read. ``start`` is the first token of the samples' indices.
    """
    real, token = samples.real, samples.token
    for k in range(num_samples):
        padded = other = 0
        for corner in range(4):
            if padding[n, start + token[corner, k]]:
                padded |= 1 << corner
            else:
                other = token[corner, k]
        token[PADDED, k] = padded
        if padded == 15:
            real[IN_BOUNDS, k] = 0
        elif padded:
            for corner in range(4):
                if padded >> corner & 1:
                    token[corner, k] = other
                    real[CORNER_WEIGHT + corner, k] = 0


@njit(**COMPILE)
def prepare(problem, views, n, q, m, transform, samples, compute):
    """Computes ``samples`` of head ``m`` of query ``q``, given the transform of the query."""
    num_samples, size = problem.num_samples, transform.itemsize
    number = transform.dtype.type
    first = ((n * problem.num_queries + q) * problem.num_heads + m) * num_samples
    weights = problem.weights + first * size
    _attention_weights(weights, num_samples, problem.reference_dim > 0, samples.real, compute)
    for k in range(0, num_samples, LANES):
        raw_x, raw_y = load_pairs(problem.locations + 2 * (first + k) * size, num_samples - k, number(0))
        x = load_row(transform, ORIGIN_X, k, compute) + raw_x * load_row(transform, SCALE_X, k, compute)
        y = load_row(transform, ORIGIN_Y, k, compute) + raw_y * load_row(transform, SCALE_Y, k, compute)
        store_vector(row_address(samples.real, X, k), x)
        store_vector(row_address(samples.real, Y, k), y)
        sizes = load_sizes(problem, k, num_samples, compute)
        table = problem.token_table + 4 * k
        width = load_vector(table, "int32", LANES)
        start = load_vector(table + 4 * (num_samples + LANES), "int32", LANES)
        store_corners(samples, k, x, y, load_row(samples.real, WEIGHT, k, compute), sizes, width, start)
    if problem.is_padded:
        mask_padding(samples, views.padding, n, 0, num_samples)
