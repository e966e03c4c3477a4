"""The backward pass on the CPU: one kernel by queries, and one by pixels of the value's gradient."""
# numba infers the types of what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators
# mypy: disable-error-code="attr-defined, call-arg, operator, var-annotated"

import numpy as np
from numba import carray, njit

from detrs.ops.ms_deform_attn.numba_problem import (
    COMPILE,
    CORNER_WEIGHT,
    GRAD_SUM,
    GRAD_WEIGHT,
    IN_BOUNDS,
    PADDED,
    SAMPLE_ROWS,
    SCALE_X,
    SCALE_Y,
    TILE,
    WEIGHT,
    X,
    Y,
    load_row,
    load_sizes,
    next_task,
    row_address,
    samples_at,
    take_workspace,
    transform_at,
    views_of,
)
from detrs.ops.ms_deform_attn.numba_samples import fill_transform, mask_padding, neighbors, prepare, store_corners
from detrs.ops.numba_memory import (
    LANES,
    load_masked,
    load_pairs,
    load_quads,
    load_vector,
    pointer,
    prefetch,
    store_masked,
    store_pairs,
    store_vector,
)
from detrs.ops.numba_simd import multiply_add, reduce_sum, reduce_sums, splat

PREFETCH_DISTANCE = 8
"""Queries by which rows of the upstream gradient are prefetched."""


# Gradients by queries


@njit(**COMPILE)
def query_gradients(problem, channels, width, storage, compute, real):
    """Gradients of locations, weights and reference points, and the samples that ``value_gradient`` reads.

    A task is a tile of the B*Q queries with all heads. The arguments are those of ``forward``.
    """
    num_queries, num_heads, num_samples = problem.num_queries, problem.num_heads, problem.num_samples
    rows = problem.batch * num_queries
    views = views_of(problem, real)
    workspace = take_workspace(problem)
    samples = samples_at(workspace, num_samples, real)
    transform = transform_at(workspace + SAMPLE_ROWS * (num_samples + LANES) * 8, num_samples, real)
    if problem.reference_dim == 0:
        fill_transform(problem, views, 0, 0, transform)
    task = next_task(problem)
    while task < problem.num_tasks:
        for row in range(task * TILE, min(task * TILE + TILE, rows)):
            n, q = divmod(row, num_queries)
            if problem.reference_dim > 0:
                fill_transform(problem, views, n, q, transform)
                for k in range(0, num_samples, LANES):
                    for i in range(4):
                        store_vector(row_address(samples.real, GRAD_SUM + i, k), splat(real(0), LANES))
            for m in range(num_heads):
                prepare(problem, views, n, q, m, transform, samples, compute)
                if problem.sample_weights:
                    _write_samples(problem, views.levels, n, q, m, samples)
                if problem.grad_locations or problem.grad_weights or problem.grad_reference_points:
                    _corner_dots(problem, n, row, m, samples, channels, width, storage, compute)
                    _head_gradients(problem, row * num_heads + m, transform, samples, compute)
            if problem.grad_reference_points:
                _reference_point_gradients(problem, views.levels, row, samples.real)
        task = next_task(problem)


@njit(**COMPILE)
def _write_samples(problem, levels, n, q, m, samples):
    """Weight and position of the samples of a head, ordered by level."""
    real, num_queries = samples.real, problem.num_queries
    number = real.dtype.type
    count = num_queries * problem.num_samples
    first = (n * problem.num_heads + m) * count * real.itemsize
    weights = carray(pointer(problem.sample_weights + first), (count,), number)
    x = carray(pointer(problem.sample_x + first), (count,), number)
    y = carray(pointer(problem.sample_y + first), (count,), number)
    for i in range(levels.shape[0]):
        start, points = levels[i, 3], levels[i, 4]
        for p in range(points):
            index = num_queries * start + q * points + p
            weights[index] = real[WEIGHT, start + p]
            x[index] = real[X, start + p]
            y[index] = real[Y, start + p]


@njit(**COMPILE)
def _corner_dots(problem, n, row, m, samples, channels, width, storage, compute):
    """Inner products of the upstream gradient of a head with the four pixels of each sample."""
    real, token, num_samples = samples.real, samples.token, problem.num_samples
    token_stride, size = problem.token_stride, real.itemsize
    dots = samples.dots.ctypes.data
    for k in range(0, num_samples, LANES):
        for part in range(4):
            store_vector(dots + (4 * k + part * LANES) * size, splat(real.dtype.type(0), LANES))
    for channel in range(0, channels, width):
        offset = ((row * problem.num_heads + m) * channels + channel) * size
        upstream = load_vector(problem.grad_out + offset, compute, width)
        head = problem.value + n * problem.image_stride + m * problem.head_stride + channel * problem.channel_stride
        for k in range(num_samples):
            if real[IN_BOUNDS, k] != 0:
                products = reduce_sums(
                    upstream * load_vector(head + token[0, k] * token_stride, storage, width),
                    upstream * load_vector(head + token[1, k] * token_stride, storage, width),
                    upstream * load_vector(head + token[2, k] * token_stride, storage, width),
                    upstream * load_vector(head + token[3, k] * token_stride, storage, width),
                )
                if channel > 0:
                    products = products + load_vector(dots + 4 * k * size, compute, 4)
                store_vector(dots + 4 * k * size, products)
    if problem.is_padded:
        for k in range(num_samples):
            for corner in range(4):
                if token[PADDED, k] >> corner & 1:
                    samples.dots[k, corner] = 0


@njit(**COMPILE)
def _head_gradients(problem, head, transform, samples, compute):
    """Gradients of the locations and weights of a head from the inner products; adds to those of position and scale."""
    real, num_samples, size = samples.real, problem.num_samples, transform.itemsize
    number = transform.dtype.type
    locations = 2 * head * num_samples * size  # in bytes from the first one
    weights = head * num_samples * size
    mean = number(0)  # of the weights' gradients, weighted by the weights: the derivative of softmax subtracts it
    for k in range(0, num_samples, LANES):
        weight = load_row(real, WEIGHT, k, compute)
        width, height = load_sizes(problem, k, num_samples, compute)
        _, _, left, right, left_slope, right_slope = neighbors(load_row(real, X, k, compute), width)
        _, _, top, bottom, top_slope, bottom_slope = neighbors(load_row(real, Y, k, compute), height)
        dots = samples.dots.ctypes.data + 4 * k * size
        top_left, top_right, bottom_left, bottom_right = load_quads(dots, number(0))
        on_top, on_bottom = left * top_left + right * top_right, left * bottom_left + right * bottom_right
        grad_weight = top * on_top + bottom * on_bottom
        grad_x = weight * (
            top * (left_slope * top_left + right_slope * top_right)
            + bottom * (left_slope * bottom_left + right_slope * bottom_right)
        )
        grad_y = weight * (top_slope * on_top + bottom_slope * on_bottom)
        if problem.grad_locations:
            store_pairs(
                problem.grad_locations + locations + 2 * k * size,
                grad_x * load_row(transform, SCALE_X, k, compute),
                grad_y * load_row(transform, SCALE_Y, k, compute),
                num_samples - k,
            )
        if problem.grad_reference_points:
            raw_x, raw_y = load_pairs(problem.locations + locations + 2 * k * size, num_samples - k, number(0))
            _add_to_row(real, GRAD_SUM, k, grad_x, compute)
            _add_to_row(real, GRAD_SUM + 1, k, grad_y, compute)
            _add_to_row(real, GRAD_SUM + 2, k, grad_x * raw_x, compute)
            _add_to_row(real, GRAD_SUM + 3, k, grad_y * raw_y, compute)
        if problem.grad_weights and problem.reference_dim > 0:
            store_vector(row_address(real, GRAD_WEIGHT, k), grad_weight)
            mean += reduce_sum(weight * grad_weight)
        elif problem.grad_weights:
            store_masked(problem.grad_weights + weights + k * size, grad_weight, num_samples - k)
    if problem.grad_weights and problem.reference_dim > 0:
        for k in range(0, num_samples, LANES):
            grad_logit = load_row(real, WEIGHT, k, compute) * (load_row(real, GRAD_WEIGHT, k, compute) - mean)
            store_masked(problem.grad_weights + weights + k * size, grad_logit, num_samples - k)


@njit(**COMPILE)
def _add_to_row(array, row, lane, vector, compute):
    store_vector(row_address(array, row, lane), load_row(array, row, lane, compute) + vector)


@njit(**COMPILE)
def _reference_point_gradients(problem, levels, row, real):
    """Gradients of the point or box of each level from those of position and scale of each sample."""
    number = real.dtype.type
    shape = row + 1, problem.num_levels, problem.reference_dim
    gradient = carray(pointer(problem.grad_reference_points), shape, number)[row]
    for i in range(levels.shape[0]):
        first, points = levels[i, 3], levels[i, 4]
        for axis in range(2):
            size = number(levels[i, 1 - axis])
            grad_position = grad_scale = number(0)
            for k in range(first, first + points):
                grad_position += real[GRAD_SUM + axis, k]
                grad_scale += real[GRAD_SUM + 2 + axis, k]
            gradient[i, axis] = grad_position * size
            if problem.reference_dim == 4:
                gradient[i, axis + 2] = grad_scale * size * number(0.5) / number(max(points, 1))


# Gradient of the value by pixels


@njit(**COMPILE)
def value_gradient(problem, channels, width, compute, real):
    """``grad_value``. A task is one (level, image, head); no other task writes to its pixels.

    The sum is formed in an accumulator in which the pixels of the level are contiguous, and written once.
    """
    num_heads = problem.num_heads
    levels = views_of(problem, real).levels
    workspace = take_workspace(problem)
    samples = samples_at(workspace, LANES, real)
    accumulator_address = workspace + SAMPLE_ROWS * 2 * LANES * 8
    accumulator = carray(pointer(accumulator_address), (problem.largest_level * channels,), real)
    task = next_task(problem)
    while task < problem.num_tasks:
        i, rest = divmod(task, problem.batch * num_heads)
        n, m = divmod(rest, num_heads)
        size, pixel_bytes = levels[i, 0] * levels[i, 1], channels * accumulator.itemsize
        accumulator[: size * channels] = 0
        _accumulate_level(problem, levels, i, n, m, accumulator, samples, channels, width, compute)
        first = problem.grad_value + ((n * problem.num_tokens + levels[i, 2]) * num_heads + m) * pixel_bytes
        for pixel in range(size):
            for channel in range(0, channels, width):
                offset = channel * accumulator.itemsize
                total = load_vector(accumulator.ctypes.data + pixel * pixel_bytes + offset, compute, width)
                store_vector(first + pixel * num_heads * pixel_bytes + offset, total)
        task = next_task(problem)


@njit(**COMPILE)
def _accumulate_level(problem, levels, i, n, m, accumulator, samples, channels, width, compute):
    """Adds all samples of image ``n``, head ``m`` and level ``i`` to ``accumulator``."""
    number, itemsize = accumulator.dtype.type, accumulator.itemsize
    real, token = samples.real, samples.token
    h, w, start, first_sample, points = levels[i]
    sizes = splat(number(w), LANES), splat(number(h), LANES)
    level_width, zero = splat(np.int32(w), LANES), splat(np.int32(0), LANES)
    offset = ((n * problem.num_heads + m) * problem.num_samples + first_sample) * problem.num_queries * itemsize
    weights, xs, ys = problem.sample_weights + offset, problem.sample_x + offset, problem.sample_y + offset
    query_stride = problem.num_heads * channels * itemsize
    upstream = problem.grad_out + (n * problem.num_queries * problem.num_heads + m) * channels * itemsize
    padding = carray(pointer(problem.padding), (problem.batch, problem.num_tokens), np.uint8)
    count = problem.num_queries * points
    p = 0
    for first in range(0, count, LANES):
        weight = load_masked(weights + first * itemsize, count - first, number(0))
        x = load_masked(xs + first * itemsize, count - first, number(0))
        y = load_masked(ys + first * itemsize, count - first, number(0))
        lanes = min(count - first, LANES)
        store_corners(samples, 0, x, y, weight, sizes, level_width, zero)
        if problem.is_padded:
            mask_padding(samples, padding, n, start, lanes)
        for lane in range(lanes):
            if real[IN_BOUNDS, lane] != 0:
                for channel in range(0, channels, width):
                    gradient = load_vector(upstream + channel * itemsize, compute, width)
                    for corner in range(4):
                        pixel = accumulator.ctypes.data + (token[corner, lane] * channels + channel) * itemsize
                        total = load_vector(pixel, compute, width)
                        store_vector(pixel, multiply_add(total, real[CORNER_WEIGHT + corner, lane], gradient))
            p += 1
            if p == points:
                p = 0
                upstream += query_stride
                for line in range(0, channels * itemsize, 64):
                    prefetch(upstream + PREFETCH_DISTANCE * query_stride + line)
