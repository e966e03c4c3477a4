"""The backward pass on the CPU: one kernel by queries, and one by pixels of the value's gradient."""
# numba infers the types of what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators
# mypy: disable-error-code="attr-defined, call-arg, operator, var-annotated"

import numpy as np
from numba import carray, njit

from detrs.ops.ms_deform_attn.numba_forward import prefetch_samples
from detrs.ops.ms_deform_attn.numba_problem import (
    COMPILE,
    CORNER_WEIGHT,
    PADDED,
    SKIPPED,
    TILE,
    TILE_SIDE,
    WEIGHT,
    X,
    Y,
    levels_of,
    load_row,
    next_task,
    samples_at,
    take_workspace,
    tile_of,
    tiles_of,
)
from detrs.ops.ms_deform_attn.numba_samples import load_raw, load_sizes, neighbors, prepare, store_corners, transform
from detrs.ops.numba_memory import (
    LANES,
    load_masked,
    load_quads,
    load_vector,
    pointer,
    prefetch,
    store_masked,
    store_pairs,
    store_vector,
)
from detrs.ops.numba_simd import multiply_add, reduce_sum, reduce_sums, splat

# Gradients by queries


@njit(**COMPILE)
def query_gradients(problem, channels, width, storage, compute, real):
    """Gradients of locations, weights and reference points, and the samples that ``value_gradient`` reads.

    A task is one head of a tile of queries. The arguments are those of ``forward``.
    """
    tiles = tiles_of(problem)
    samples, sums = samples_at(take_workspace(problem), problem.num_samples, TILE, real)
    task = next_task(problem)
    while task < problem.num_tasks:
        n, tile, m = tile_of(problem, task)
        if tile < problem.num_tiles:
            first, rows, columns, stride, before = tiles[tile]
            place = 0
            for row in range(rows):
                for q in range(first + row * stride, first + row * stride + columns):
                    prepare(problem, n, q, m, samples, place, compute, real)
                    prefetch_samples(problem, n, q + TILE_SIDE, m, compute)
                    place += samples.columns
            if problem.sample_weights:
                _write_samples(problem, n, m, before, rows * columns, samples)
            if problem.grad_locations or problem.grad_weights or problem.grad_reference_points:
                _corner_dots(problem, n, m, tiles[tile], samples, channels, width, storage, compute)
                place = 0
                for row in range(rows):
                    for q in range(first + row * stride, first + row * stride + columns):
                        _head_gradients(problem, n * problem.num_queries + q, m, samples, place, sums, compute, real)
                        place += samples.columns
        task = next_task(problem)


@njit(**COMPILE)
def _write_samples(problem, n, m, before, count, samples):
    """Weight and position of the samples of a tile, ordered by level."""
    real, levels, num_queries = samples.real, levels_of(problem), problem.num_queries
    number = real.dtype.type
    size = num_queries * problem.num_samples
    first = (n * problem.num_heads + m) * size * real.itemsize
    weights = carray(pointer(problem.sample_weights + first), (size,), number)
    x = carray(pointer(problem.sample_x + first), (size,), number)
    y = carray(pointer(problem.sample_y + first), (size,), number)
    for i in range(levels.shape[0]):
        place, points = levels[i, 3], levels[i, 4]
        index = num_queries * place + before * points
        for _q in range(count):
            for p in range(points):
                weights[index + p] = real[WEIGHT, place + p]
                x[index + p] = real[X, place + p]
                y[index + p] = real[Y, place + p]
            index += points
            place += samples.columns


@njit(**COMPILE)
def _corner_dots(problem, n, m, tile, samples, channels, width, storage, compute):
    """Inner products of the upstream gradient of a tile with the four pixels of each sample.

    They replace the weights of the pixels in ``samples``: four adjacent elements per sample.
    """
    first, rows, columns, stride, _ = tile
    real, token, levels, token_stride = samples.real, samples.token, levels_of(problem), problem.token_stride
    size, dots = real.itemsize, real.ctypes.data
    if channels == 0 or samples.columns > problem.num_samples:  # 0 * NaN would reach the sum over all columns
        real[CORNER_WEIGHT : CORNER_WEIGHT + 4] = 0
    for channel in range(0, channels, width):
        head = problem.value + n * problem.image_stride + m * problem.head_stride + channel * problem.channel_stride
        for level in range(problem.num_levels):
            place, points = levels[level, 3], levels[level, 4]
            for row in range(rows):
                for q in range(first + row * stride, first + row * stride + columns):
                    index = ((n * problem.num_queries + q) * problem.num_heads + m) * channels + channel
                    upstream = load_vector(problem.grad_out + index * size, compute, width)
                    for k in range(place, place + points):
                        products = splat(real.dtype.type(0), 4)
                        if token[0, k] != SKIPPED:
                            products = reduce_sums(
                                upstream * load_vector(head + token[0, k] * token_stride, storage, width),
                                upstream * load_vector(head + token[1, k] * token_stride, storage, width),
                                upstream * load_vector(head + token[2, k] * token_stride, storage, width),
                                upstream * load_vector(head + token[3, k] * token_stride, storage, width),
                            )
                            if channel > 0:
                                products = products + load_vector(dots + 4 * k * size, compute, 4)
                        store_vector(dots + 4 * k * size, products)
                    place += samples.columns
    if problem.is_padded:
        flat = carray(pointer(dots), (4 * real.shape[1],), real.dtype.type)
        for k in range(rows * columns * samples.columns):
            for corner in range(4):
                if token[PADDED, k] >> corner & 1:
                    flat[4 * k + corner] = 0


@njit(**COMPILE)
def _head_gradients(problem, row, m, samples, place, sums, compute, real):
    """Gradients of a head of a query from the inner products.

    ``sums`` is the address of rows of intermediate results, one element per sample.
    """
    floats, num_samples, size = samples.real, problem.num_samples, samples.real.itemsize
    head = row * problem.num_heads + m
    locations = 2 * head * num_samples * size  # in bytes from the first one
    weights = head * num_samples * size
    row_bytes = samples.columns * size
    mean = real(0)  # of the weights' gradients, weighted by the weights: the derivative of softmax subtracts it
    for k in range(0, num_samples, LANES):
        weight = load_row(floats, WEIGHT, place + k, compute)
        width, height = load_sizes(problem, k, compute)
        _, _, left, right, left_slope, right_slope = neighbors(load_row(floats, X, place + k, compute), width)
        _, _, top, bottom, top_slope, bottom_slope = neighbors(load_row(floats, Y, place + k, compute), height)
        dots = floats.ctypes.data + 4 * (place + k) * size
        top_left, top_right, bottom_left, bottom_right = load_quads(dots, real(0))
        on_top, on_bottom = left * top_left + right * top_right, left * bottom_left + right * bottom_right
        grad_weight = top * on_top + bottom * on_bottom
        grad_x = weight * (
            top * (left_slope * top_left + right_slope * top_right)
            + bottom * (left_slope * bottom_left + right_slope * bottom_right)
        )
        grad_y = weight * (top_slope * on_top + bottom_slope * on_bottom)
        if problem.grad_locations:
            _, scale_x, _, scale_y = transform(problem, row, k, compute, real)
            store_pairs(
                problem.grad_locations + locations + 2 * k * size,
                grad_x * scale_x,
                grad_y * scale_y,
                num_samples - k,
            )
        if problem.grad_reference_points:
            raw_x, raw_y = load_raw(problem, head * num_samples, k, compute, real)
            store_vector(sums + row_bytes + k * size, grad_x)
            store_vector(sums + 2 * row_bytes + k * size, grad_y)
            store_vector(sums + 3 * row_bytes + k * size, grad_x * raw_x)
            store_vector(sums + 4 * row_bytes + k * size, grad_y * raw_y)
        if problem.grad_weights and problem.reference_dim > 0:
            store_vector(sums + k * size, grad_weight)
            mean += reduce_sum(weight * grad_weight)
        elif problem.grad_weights:
            store_masked(problem.grad_weights + weights + k * size, grad_weight, num_samples - k)
    if problem.grad_weights and problem.reference_dim > 0:
        for k in range(0, num_samples, LANES):
            grad_weight = load_vector(sums + k * size, compute, LANES)
            grad_logit = load_row(floats, WEIGHT, place + k, compute) * (grad_weight - mean)
            store_masked(problem.grad_weights + weights + k * size, grad_logit, num_samples - k)
    if problem.grad_reference_points:
        _reference_point_gradients(problem, head, sums, samples.columns, real)


@njit(**COMPILE)
def _reference_point_gradients(problem, head, sums, columns, real):
    """Gradients of the point or box of each level from those of position and scale of each sample."""
    levels = levels_of(problem)
    shape = head + 1, problem.num_levels, problem.reference_dim
    gradient = carray(pointer(problem.grad_reference_points), shape, real)[head]
    rows = carray(pointer(sums), (5, columns), real)
    for i in range(levels.shape[0]):
        first, points = levels[i, 3], levels[i, 4]
        for axis in range(2):
            size = real(levels[i, 1 - axis])
            grad_position = grad_scale = real(0)
            for k in range(first, first + points):
                grad_position += rows[1 + axis, k]
                grad_scale += rows[3 + axis, k]
            gradient[i, axis] = grad_position * size
            if problem.reference_dim == 4:
                gradient[i, axis + 2] = grad_scale * size * real(0.5) / real(max(points, 1))


# Gradient of the value by pixels


@njit(**COMPILE)
def value_gradient(problem, channels, width, compute, real):
    """``grad_value``. A task is one (level, image, head); no other task writes to its pixels.

    The sum is formed in an accumulator in which the pixels of the level are contiguous, and written once.
    """
    num_heads = problem.num_heads
    levels = levels_of(problem)
    samples, address = samples_at(take_workspace(problem), LANES, 1, real)
    accumulator = carray(pointer(address), (problem.largest_level * channels,), real)
    padding = carray(pointer(problem.padding), (problem.batch, problem.num_tokens), np.uint8)
    zero = splat(real(0), width)
    task = next_task(problem)
    while task < problem.num_tasks:
        i, rest = divmod(task, problem.batch * num_heads)
        n, m = divmod(rest, num_heads)
        size, pixel_bytes = levels[i, 0] * levels[i, 1], channels * accumulator.itemsize
        accumulator[: size * channels] = 0
        _accumulate_level(problem, levels[i], n, m, accumulator, samples, channels, width, compute)
        first = problem.grad_value + ((n * problem.num_tokens + levels[i, 2]) * num_heads + m) * pixel_bytes
        for pixel in range(size):
            for channel in range(0, channels, width):
                offset = channel * accumulator.itemsize
                total = load_vector(address + pixel * pixel_bytes + offset, compute, width)
                if problem.is_padded and padding[n, levels[i, 2] + pixel]:
                    total = zero
                store_vector(first + pixel * num_heads * pixel_bytes + offset, total)
        task = next_task(problem)


@njit(**COMPILE)
def _accumulate_level(problem, level, n, m, accumulator, samples, channels, width, compute):
    """Adds all samples of image ``n``, head ``m`` and a level to ``accumulator``."""
    number, itemsize, num_queries = accumulator.dtype.type, accumulator.itemsize, problem.num_queries
    tiles = tiles_of(problem)
    h, w, _, first_sample, points = level
    offset = ((n * problem.num_heads + m) * problem.num_samples + first_sample) * num_queries * itemsize
    weights, xs, ys = problem.sample_weights + offset, problem.sample_x + offset, problem.sample_y + offset
    sizes = splat(number(w), LANES), splat(number(h), LANES)
    level_width, zero = splat(np.int32(w), LANES), splat(np.int32(0), LANES)
    real, token, target = samples.real, samples.token, accumulator.ctypes.data
    query_stride = problem.num_heads * channels * itemsize
    image = problem.grad_out + (n * problem.num_queries * problem.num_heads + m) * channels * itemsize
    count = num_queries * points
    sample = 0
    for tile in range(problem.num_tiles):
        first, rows, columns, stride, _ = tiles[tile]
        for row in range(rows):
            for q in range(first + row * stride, first + row * stride + columns):
                upstream = image + q * query_stride
                for line in range(0, channels * itemsize, 64):
                    prefetch(upstream + TILE_SIDE * query_stride + line)
                for _p in range(points):
                    lane = sample % LANES
                    if lane == 0:
                        rest, start = min(count - sample, LANES), sample * itemsize
                        weight = load_masked(weights + start, rest, number(0))
                        x = load_masked(xs + start, rest, number(0))
                        y = load_masked(ys + start, rest, number(0))
                        store_corners(samples, 0, x, y, weight, sizes, level_width, zero)
                    if token[0, lane] != SKIPPED:
                        for channel in range(0, channels, width):
                            gradient = load_vector(upstream + channel * itemsize, compute, width)
                            for corner in range(4):
                                pixel = target + (token[corner, lane] * channels + channel) * itemsize
                                total = load_vector(pixel, compute, width)
                                total = multiply_add(total, real[CORNER_WEIGHT + corner, lane], gradient)
                                store_vector(pixel, total)
                    sample += 1
