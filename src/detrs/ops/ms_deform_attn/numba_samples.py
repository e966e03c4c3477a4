"""The samples of one head of one query: attention weights, positions, the four pixels around each and their weights.

LANES samples are computed at once.
"""
# numba infers the types of what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators
# mypy: disable-error-code="attr-defined, call-arg, operator, var-annotated"

import numpy as np
from numba import carray, njit

from detrs.ops.ms_deform_attn.numba_problem import (
    COMPILE,
    CORNER_WEIGHT,
    PADDED,
    SKIPPED,
    WEIGHT,
    X,
    Y,
    load_row,
    row_address,
)
from detrs.ops.numba_memory import (
    LANES,
    load_gathered,
    load_masked,
    load_pairs,
    load_vector,
    pointer,
    store_vector,
)
from detrs.ops.numba_simd import (
    exp2_of_integers,
    floor,
    fused,
    maximum,
    minimum,
    reduce_max,
    reduce_sum,
    splat,
    to_int32,
    where_between,
    where_zero,
)


@njit(**COMPILE)
def _exp(x, lowest, is_double):
    """``e ** x`` of numbers up to 0; 0 below ``lowest``, and NaN of NaN."""
    power = floor(x * 1.4426950408889634 + 0.5)
    # ln 2 in two parts: |rest| <= ln(2) / 2
    rest = fused(2.1219444005469057e-4, power, fused(-0.693359375, power, x))
    series = rest * 0.0  # Taylor series to rest ** 7 / 7! in single and rest ** 13 / 13! in double precision
    if is_double:
        for factor in (1 / 6227020800, 1 / 479001600, 1 / 39916800, 1 / 3628800, 1 / 362880, 1 / 40320):
            series = fused(series, rest, factor)
    for factor in (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = fused(series, rest, factor)
    return where_between(x, -np.inf, lowest, 0.0, series * exp2_of_integers(power))


@njit(**COMPILE)
def attention_weights(problem, first, target, compute, real):
    """Stores the attention weights of one head of one query at ``target``; 0 behind the last one.

    ``first`` is the number of its first sample.
    """
    num_samples, size = problem.num_samples, 8 if compute == "float64" else 4
    source = problem.weights + first * size
    if problem.reference_dim == 0:
        for k in range(0, num_samples, LANES):
            store_vector(target + k * size, load_some(source + k * size, num_samples - k, compute, real(0)))
        return
    max_logit = real(-np.inf)
    for k in range(0, num_samples, LANES):
        logit = load_some(source + k * size, num_samples - k, compute, real(-np.inf))
        max_logit = max(max_logit, reduce_max(logit))
    total = real(0)
    lowest = real(-87.0) if compute == "float32" else real(-708.0)  # below, powers of two are subnormal
    for k in range(0, num_samples, LANES):
        logit = load_some(source + k * size, num_samples - k, compute, real(-np.inf))
        weight = _exp(logit - max_logit, lowest, compute == "float64")
        store_vector(target + k * size, weight)
        total += reduce_sum(weight)
    factor = real(1) / total
    for k in range(0, num_samples, LANES):
        store_vector(target + k * size, load_vector(target + k * size, compute, LANES) * factor)


@njit(**COMPILE)
def load_some(address, count, compute, fill):
    """LANES elements, of which ``count`` exist; ``fill`` in the others."""
    if count >= LANES:
        return load_vector(address, compute, LANES)
    return load_masked(address, count, fill)


@njit(**COMPILE)
def load_table(address, row, k, num_samples, storage):
    """LANES elements of a row of a table, see ``Tables``."""
    size = 8 if storage == "float64" else 4
    return load_vector(address + (row * (num_samples + LANES) + k) * size, storage, LANES)


@njit(**COMPILE)
def transform(problem, row, k, compute, real):
    """Origin and scale of LANES samples of a query in x and in y: they are at ``origin + raw * scale``, in pixels.

    ``raw`` is their offset or location, and ``row`` the number of the query in the batch: around a point, in a box,
    or (plain form) in the whole level.
    """
    width, height = load_sizes(problem, k, compute)
    if problem.reference_dim == 0:
        origin = splat(real(-0.5), LANES)
        return origin, width, origin, height
    dim, size = problem.reference_dim, 8 if compute == "float64" else 4
    address = problem.reference_points + row * problem.num_levels * dim * size
    index = load_table(problem.token_table, 2, k, problem.num_samples, "int32") * np.int32(dim)
    origin_x = load_gathered(address, index, real(0)) * width - real(0.5)
    origin_y = load_gathered(address + size, index, real(0)) * height - real(0.5)
    if dim == 2:
        one = splat(real(1), LANES)
        return origin_x, one, origin_y, one
    half = load_table(problem.size_table, 2, k, problem.num_samples, compute)
    scale_x = load_gathered(address + 2 * size, index, real(0)) * width * half
    scale_y = load_gathered(address + 3 * size, index, real(0)) * height * half
    return origin_x, scale_x, origin_y, scale_y


@njit(**COMPILE)
def load_raw(problem, first, k, compute, real):
    """Locations or offsets of LANES samples."""
    size = 8 if compute == "float64" else 4
    return load_pairs(problem.locations + 2 * (first + k) * size, problem.num_samples - k, real(0))


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
def store_corners(samples, column, x, y, weight, sizes, width, start):
    """Stores the pixels around LANES samples and their weights, from a column on.

    A sample out of bounds is ``SKIPPED``, unless its weight is not finite: 0 * NaN is NaN out of bounds too.

    Args:
        samples: ``Samples`` to store to.
        column: Of the first sample.
        x: Positions.
        y: Positions.
        weight: Attention weights.
        sizes: Width and height of the levels, real.
        width: Width of the levels, int32.
        start: First token of the levels, int32.
    """
    left, right, left_weight, right_weight, _, _ = neighbors(x, sizes[0])
    top, bottom, top_weight, bottom_weight, _, _ = neighbors(y, sizes[1])
    in_bounds = (left_weight + right_weight) * (top_weight + bottom_weight)
    left, right = to_int32(left), to_int32(right)
    top_row, bottom_row = to_int32(top) * width + start, to_int32(bottom) * width + start
    token, real = samples.token, samples.real
    top_left = where_zero(in_bounds + weight * 0.0, splat(np.int32(SKIPPED), LANES), top_row + left)
    store_vector(row_address(token, 0, column), top_left)
    store_vector(row_address(token, 1, column), top_row + right)
    store_vector(row_address(token, 2, column), bottom_row + left)
    store_vector(row_address(token, 3, column), bottom_row + right)
    top_weight, bottom_weight = top_weight * weight, bottom_weight * weight
    store_vector(row_address(real, CORNER_WEIGHT, column), top_weight * left_weight)
    store_vector(row_address(real, CORNER_WEIGHT + 1, column), top_weight * right_weight)
    store_vector(row_address(real, CORNER_WEIGHT + 2, column), bottom_weight * left_weight)
    store_vector(row_address(real, CORNER_WEIGHT + 3, column), bottom_weight * right_weight)


@njit(**COMPILE)
def _mask_padding(problem, n, samples, column):
    """Sets the weight of padded pixels of a query to 0, and replaces their index by that of an unpadded one.

    So padding is never read.
    """
    real, token = samples.real, samples.token
    padding = carray(pointer(problem.padding), (problem.batch, problem.num_tokens), np.uint8)
    for k in range(column, column + problem.num_samples):
        padded = 0
        if token[0, k] != SKIPPED:
            other = np.int32(SKIPPED)  # if all are padded
            for corner in range(4):
                if padding[n, token[corner, k]]:
                    padded |= 1 << corner
                else:
                    other = token[corner, k]
            for corner in range(4):
                if padded >> corner & 1:
                    token[corner, k] = other
                    real[CORNER_WEIGHT + corner, k] = 0
        token[PADDED, k] = padded


@njit(**COMPILE)
def prepare(problem, n, q, m, samples, column, compute, real):
    """Computes the samples of head ``m`` of query ``q``, and stores them from a column on."""
    num_samples = problem.num_samples
    row = n * problem.num_queries + q
    first = (row * problem.num_heads + m) * num_samples
    attention_weights(problem, first, row_address(samples.real, WEIGHT, column), compute, real)
    for k in range(0, num_samples, LANES):
        origin_x, scale_x, origin_y, scale_y = transform(problem, row, k, compute, real)
        raw_x, raw_y = load_raw(problem, first, k, compute, real)
        x, y = origin_x + raw_x * scale_x, origin_y + raw_y * scale_y
        store_vector(row_address(samples.real, X, column + k), x)
        store_vector(row_address(samples.real, Y, column + k), y)
        width = load_table(problem.token_table, 0, k, num_samples, "int32")
        start = load_table(problem.token_table, 1, k, num_samples, "int32")
        weight = load_row(samples.real, WEIGHT, column + k, compute)
        store_corners(samples, column + k, x, y, weight, load_sizes(problem, k, compute), width, start)
    if problem.is_padded:
        _mask_padding(problem, n, samples, column)


@njit(**COMPILE)
def load_sizes(problem, k, compute):
    """Width and height of the levels of the samples from the ``k``-th on."""
    return (
        load_table(problem.size_table, 0, k, problem.num_samples, compute),
        load_table(problem.size_table, 1, k, problem.num_samples, compute),
    )
