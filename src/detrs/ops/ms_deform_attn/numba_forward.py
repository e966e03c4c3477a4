"""The forward pass on the CPU."""
# numba infers the types of what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators
# mypy: disable-error-code="attr-defined, call-arg, operator, var-annotated"

from numba import njit

from detrs.ops.ms_deform_attn.numba_problem import (
    COMPILE,
    CORNER_WEIGHT,
    IN_BOUNDS,
    SAMPLE_ROWS,
    TILE,
    WEIGHT,
    load_row,
    next_task,
    samples_at,
    take_workspace,
    transform_at,
    views_of,
)
from detrs.ops.ms_deform_attn.numba_samples import fill_transform, prepare
from detrs.ops.numba_memory import LANES, load_vector, prefetch, store_vector
from detrs.ops.numba_simd import multiply_add, reduce_sum, splat


@njit(**COMPILE)
def forward(problem, channels, width, storage, compute, real, bits):
    """``out``. A task is a tile of the B*Q queries with all heads.

    Args:
        problem: See ``Problem``.
        channels: D, a constant of the compiled kernel like all that follow.
        width: Channels in one vector.
        storage: Dtype of ``value``.
        compute: Dtype of the arithmetic, by its name.
        real: The same as a type.
        bits: Of an element of ``value``.
    """
    num_queries, num_heads, num_samples = problem.num_queries, problem.num_heads, problem.num_samples
    token_stride, head_stride, channel_stride = problem.token_stride, problem.head_stride, problem.channel_stride
    rows = problem.batch * num_queries
    views = views_of(problem, real)
    workspace, samples_bytes = take_workspace(problem), SAMPLE_ROWS * (num_samples + LANES) * 8
    # The pixels of the next head are prefetched while the current one is summed.
    current = samples_at(workspace, num_samples, real)
    following = samples_at(workspace + samples_bytes, num_samples, real)
    transform = transform_at(workspace + 2 * samples_bytes, num_samples, real)
    if problem.reference_dim == 0:
        fill_transform(problem, views, 0, 0, transform)
    task = next_task(problem)
    while task < problem.num_tasks:
        for row in range(task * TILE, min(task * TILE + TILE, rows)):
            n, q = divmod(row, num_queries)
            image = problem.value + n * problem.image_stride
            if problem.reference_dim > 0:
                fill_transform(problem, views, n, q, transform)
            if num_heads > 0:
                prepare(problem, views, n, q, 0, transform, current, compute)
            for m in range(num_heads):
                if m + 1 < num_heads:
                    prepare(problem, views, n, q, m + 1, transform, following, compute)
                    if problem.prefetches:
                        head = image + (m + 1) * head_stride
                        _prefetch_pixels(following, head, token_stride, num_samples, channels * bits // 8)
                weights, token = current.real, current.token
                zero = real(0)  # NaN if a weight is not finite, because 0 * NaN is NaN out of bounds too
                for k in range(0, num_samples, LANES):
                    zero += reduce_sum(load_row(weights, WEIGHT, k, compute) * 0.0)
                for channel in range(0, channels, width):
                    head = image + m * head_stride + channel * channel_stride
                    top, bottom = (
                        splat(zero, width),
                        splat(zero, width),
                    )  # two accumulators shorten the dependency chain
                    for k in range(num_samples):
                        if weights[IN_BOUNDS, k] != 0:
                            pixel = load_vector(head + token[0, k] * token_stride, storage, width)
                            top = multiply_add(top, weights[CORNER_WEIGHT, k], pixel)
                            pixel = load_vector(head + token[2, k] * token_stride, storage, width)
                            bottom = multiply_add(bottom, weights[CORNER_WEIGHT + 2, k], pixel)
                            pixel = load_vector(head + token[1, k] * token_stride, storage, width)
                            top = multiply_add(top, weights[CORNER_WEIGHT + 1, k], pixel)
                            pixel = load_vector(head + token[3, k] * token_stride, storage, width)
                            bottom = multiply_add(bottom, weights[CORNER_WEIGHT + 3, k], pixel)
                    offset = ((row * num_heads + m) * channels + channel) * weights.itemsize
                    store_vector(problem.out + offset, top + bottom)
                current, following = following, current
        task = next_task(problem)


@njit(**COMPILE)
def _prefetch_pixels(samples, head, token_stride, num_samples, size):
    """Prefetches all pixels of the samples of a head, ``size`` bytes each."""
    for k in range(num_samples):
        if samples.real[IN_BOUNDS, k] != 0:
            for corner in range(4):
                address = head + samples.token[corner, k] * token_stride
                for line in range(0, size, 64):
                    prefetch(address + line)
