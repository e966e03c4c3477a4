"""The forward pass on the CPU."""
# numba infers the types of what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators
# mypy: disable-error-code="attr-defined, call-arg, operator, var-annotated"

from numba import njit

from detrs.ops.ms_deform_attn.numba_problem import (
    COMPILE,
    CORNER_WEIGHT,
    SKIPPED,
    TILE,
    TILE_SIDE,
    levels_of,
    next_task,
    samples_at,
    take_workspace,
    tile_of,
    tiles_of,
)
from detrs.ops.ms_deform_attn.numba_samples import prepare
from detrs.ops.numba_memory import load_vector, prefetch, store_vector
from detrs.ops.numba_simd import multiply_add, splat


@njit(**COMPILE)
def forward(problem, channels, width, storage, compute, real, bits):
    """``out``. A task is one head of a tile of queries.

    Args:
        problem: See ``Problem``.
        channels: D, a constant of the compiled kernel like all that follow.
        width: Channels in one vector.
        storage: Dtype of ``value``.
        compute: Dtype of the arithmetic, by its name.
        real: The same as a type.
        bits: Of an element of ``value``.
    """
    tiles = tiles_of(problem)
    samples, _ = samples_at(take_workspace(problem), problem.num_samples, TILE, real)
    task = next_task(problem)
    while task < problem.num_tasks:
        n, tile, m = tile_of(problem, task)
        if tile < problem.num_tiles:
            first, rows, columns, stride, _ = tiles[tile]
            head = problem.value + n * problem.image_stride + m * problem.head_stride
            place = 0
            for row in range(rows):
                for q in range(first + row * stride, first + row * stride + columns):
                    prepare(problem, n, q, m, samples, place, compute, real)
                    if problem.prefetches:
                        _prefetch_pixels(problem, samples, place, head, channels * bits // 8)
                    prefetch_samples(problem, n, q + TILE_SIDE, m, compute)
                    place += samples.columns
            for channel in range(0, channels, width):
                source = head + channel * problem.channel_stride
                _sum_tile(problem, n, m, tiles[tile], samples, source, channel, channels, width, storage, compute, real)
        task = next_task(problem)


@njit(**COMPILE)
def _sum_tile(problem, n, m, tile, samples, head, channel, channels, width, storage, compute, real):
    """Adds up the samples of a tile, level after level, because the pixels of a level fit into the L1 cache."""
    first, rows, columns, stride, _ = tile
    token, weights, levels, token_stride = samples.token, samples.real, levels_of(problem), problem.token_stride
    itemsize = weights.itemsize
    for level in range(problem.num_levels):
        place, points = levels[level, 3], levels[level, 4]
        for row in range(rows):
            for q in range(first + row * stride, first + row * stride + columns):
                target = ((n * problem.num_queries + q) * problem.num_heads + m) * channels + channel
                address = problem.out + target * itemsize
                top, bottom = splat(real(0), width), splat(real(0), width)  # two sums shorten the dependency chain
                for k in range(place, place + points):
                    if token[0, k] != SKIPPED:
                        pixel = load_vector(head + token[0, k] * token_stride, storage, width)
                        top = multiply_add(top, weights[CORNER_WEIGHT, k], pixel)
                        pixel = load_vector(head + token[2, k] * token_stride, storage, width)
                        bottom = multiply_add(bottom, weights[CORNER_WEIGHT + 2, k], pixel)
                        pixel = load_vector(head + token[1, k] * token_stride, storage, width)
                        top = multiply_add(top, weights[CORNER_WEIGHT + 1, k], pixel)
                        pixel = load_vector(head + token[3, k] * token_stride, storage, width)
                        bottom = multiply_add(bottom, weights[CORNER_WEIGHT + 3, k], pixel)
                total = top + bottom
                if level > 0:
                    total = total + load_vector(address, compute, width)
                store_vector(address, total)
                place += samples.columns


@njit(**COMPILE)
def prefetch_samples(problem, n, q, m, compute):
    """Prefetches locations and weights of a later query. They need not exist: a prefetch cannot fail."""
    num_samples, size = problem.num_samples, 8 if compute == "float64" else 4
    first = ((n * problem.num_queries + q) * problem.num_heads + m) * num_samples * size
    for line in range(0, num_samples * size, 64):
        prefetch(problem.weights + first + line)
        prefetch(problem.locations + 2 * (first + line))
        prefetch(problem.locations + 2 * (first + line) + 64)


@njit(**COMPILE)
def _prefetch_pixels(problem, samples, place, head, size):
    """Prefetches all pixels of the samples of a head, ``size`` bytes each."""
    token = samples.token
    for k in range(place, place + problem.num_samples):
        if token[0, k] != SKIPPED:
            for corner in range(4):
                address = head + token[corner, k] * problem.token_stride
                for line in range(0, size, 64):
                    prefetch(address + line)
