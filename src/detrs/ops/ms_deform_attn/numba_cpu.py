"""Multi-scale deformable attention on the CPU, compiled by numba. The README of this folder tells how it works."""
# numba gives types to what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators, disable-error-code="call-arg, var-annotated, operator"
# mypy: disable-error-code="attr-defined"

import ctypes
import functools
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import carray, cfunc, njit, types
from torch import Tensor

from detrs.ops.ms_deform_attn import threads, vectors
from detrs.ops.ms_deform_attn.vectors import (
    LANES,
    between,
    fetch_and_add,
    floor,
    larger,
    largest,
    load_lanes,
    load_pairs,
    load_quads,
    load_row,
    multiply_add,
    pointer,
    power_of_two,
    prefetch,
    smaller,
    splat,
    store_lanes,
    store_pairs,
    store_row,
    sum_of,
    sums_of,
    to_index,
)

STORAGE = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
"""How ``value`` lies in memory. Half precision is widened to float32 as it is loaded."""

MAX_WIDTH = 128
"""Channels in one vector. A larger D is cut into equal pieces; if it is prime, of one channel: right but slow."""

TILE = 32
"""Queries in one task."""

CROWD = 4
"""Tokens per query above which pixels are fetched ahead."""

AHEAD = 8
"""Queries by which rows that lie far apart are fetched ahead."""

SERIAL_BELOW = 100_000
"""Samples times channels below which waking the threads costs more than they save: about 50 microseconds of work."""

# No fast mathematics: NaN and infinity have to survive, and the same source has to give the same bits wherever it is
# compiled. Where a product and a sum shall be one operation, they say so (``multiply_add``).
COMPILE: dict[str, Any] = {"fastmath": False, "error_model": "numpy", "boundscheck": False}


# ---------------------------------------------------------------------------------------------------------------------
# What kernels work on. They run without Python: their problem is a block of memory full of sizes and addresses.


class Problem(ctypes.Structure):
    """One call of a kernel, by one or several threads. ``real`` is the type of locations: float32 or float64."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "here",  # address of this block
            "next_task", "tasks",  # who is free takes the next one
            "next_seat", "workspace", "by_seat",  # memory of one thread each: address, and bytes between seats
            "batch", "tokens", "heads", "channels", "queries", "samples", "levels", "largest_level",
            "value", "by_image", "by_token", "by_head", "by_channel",  # address, and strides in bytes
            "level_table",  # (L, 5) int64: see ``Geometry``
            "real_table",  # (2, K + LANES) real
            "token_table",  # (2, K + LANES) int32
            "locations",  # (B, Q, M, K, 2) real
            "weights",  # (B, Q, M, K) real
            "reference", "axes",  # (B, Q, L, axes) real; 0 axes: locations and weights are used as they are
            "padding", "is_padded",  # (B, S) bytes, if it is
            "is_far",  # whether pixels are fetched ahead
            "out",  # (B, Q, M, D) real; what follows is for gradients, 0 where none is needed
            "grad_out", "grad_value", "grad_locations", "grad_weights", "grad_reference",  # like what they belong to
            "places", "places_x", "places_y",  # (B, M, Q*K) real: attention weight and position, level after level
        )
    ]  # fmt: skip


PROBLEM = types.CPointer(numba.from_dtype(np.dtype(Problem)))
NEXT_TASK, NEXT_SEAT = Problem.next_task.offset, Problem.next_seat.offset


class Geometry(NamedTuple):
    """What is the same for all queries. K is the number of samples of a head, over all levels."""

    sizes: np.ndarray
    """(2, K + LANES) real: width and height of the level of each sample."""
    tokens: np.ndarray
    """(2, K + LANES) int32: width of the level of each sample, and its first token."""
    levels: np.ndarray
    """(L, 5) int64: height, width, first token, first sample, number of samples of each level."""
    largest: int
    """Most tokens of a level."""


class Views(NamedTuple):
    """Arrays of a problem that are read number by number."""

    levels: np.ndarray
    reference: np.ndarray
    padding: np.ndarray


class Scratch(NamedTuple):
    """What is known of the samples of one head: views of a seat, for arrays of numba's own would count references."""

    real: np.ndarray
    """(13, K + LANES) real: rows ``SHARE`` and so on."""
    token: np.ndarray
    """(5, K + LANES) int32: the pixels around each sample, above left, above right, below left, below right; and
    ``PADDED``, which of them are padding, one bit each."""
    dots: np.ndarray
    """(K + LANES, 4) real: the inner products of these pixels with the upstream gradient."""


ORIGIN_X, UNIT_X, ORIGIN_Y, UNIT_Y = range(4)
SHARE, X, Y, LIVE, CORNER, BY_SHARE, SUM = 0, 1, 2, 3, 4, 8, 9
"""Rows of ``Scratch.real``: attention weight; position; whether a pixel is touched; bilinear times attention weight of
the four pixels; gradient of the attention weight; gradients of position and unit added up over heads."""
NUM_REAL = 13
PADDED = 4
"""Row of ``Scratch.token``."""
SCRATCH_ROWS = NUM_REAL + 8


@njit(**COMPILE)
def _views(problem, real):
    levels = carray(pointer(problem.level_table), (problem.levels, 5), np.int64)
    shape = problem.batch, problem.queries, problem.levels, problem.axes
    reference = carray(pointer(problem.reference), shape, real)
    padding = carray(pointer(problem.padding), (problem.batch, problem.tokens), np.uint8)
    return Views(levels, reference, padding)


@njit(**COMPILE)
def _next_task(problem):
    """Number of a task that nobody has taken yet; ``problem.tasks`` and more when there is none."""
    return fetch_and_add(problem.here + NEXT_TASK, 1)


@njit(**COMPILE)
def _seat(problem):
    """Memory for the calling thread alone."""
    return problem.workspace + fetch_and_add(problem.here + NEXT_SEAT, 1) * problem.by_seat


# ---------------------------------------------------------------------------------------------------------------------
# The mathematics, for one head of one query at a time. A position is where a sample lies in its level, in pixels:
# ``origin + raw * unit``.


@njit(**COMPILE)
def _scratch(address, samples, number):
    wide = samples + LANES
    rows = wide * 8  # bytes of a row; float32 takes half of them
    real = carray(pointer(address), (NUM_REAL, wide), number)
    dots = carray(pointer(address + NUM_REAL * rows), (wide, 4), number)
    token = carray(pointer(address + (NUM_REAL + 4) * rows), (5, wide), np.int32)
    return Scratch(real, token, dots)


@njit(**COMPILE)
def _frame_of(address, samples, number):
    """Rows ``ORIGIN_X`` and so on of each sample, and 0 behind the last one."""
    frame = carray(pointer(address), (4, samples + LANES), number)
    frame[:] = 0
    return frame


def _bytes_of_seat(samples: int) -> int:
    """Two scratches and a frame."""
    return (2 * SCRATCH_ROWS + 4) * (samples + LANES) * 8


@njit(**COMPILE)
def _row_address(array, row, lane):
    return array.ctypes.data + (row * array.shape[1] + lane) * array.itemsize


@njit(**COMPILE)
def _real_row(array, row, lane, compute):
    return load_row(_row_address(array, row, lane), compute, LANES)


@njit(**COMPILE)
def _exp(row, lowest, is_double):
    """``e ** row`` of numbers up to 0; 0 below ``lowest``, and NaN of NaN."""
    power = floor(row * 1.4426950408889634 + 0.5)
    rest = row - power * 0.693359375 + power * 2.1219444005469057e-4  # ln 2 in two parts: |rest| <= ln(2) / 2
    series = rest * 0.0  # Taylor's, to rest ** 7 / 7! in single and rest ** 13 / 13! in double precision
    if is_double:
        for factor in (1 / 6227020800, 1 / 479001600, 1 / 39916800, 1 / 3628800, 1 / 362880, 1 / 40320):
            series = series * rest + factor
    for factor in (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        series = series * rest + factor
    return between(row, -np.inf, lowest, 0.0, series * power_of_two(power))


@njit(**COMPILE)
def _shares(address, samples, is_logits, real, compute):
    """Attention weights of one head, from its first weight or logit, into ``real[SHARE]``; 0 behind the last one."""
    number = real.dtype.type
    if not is_logits:
        for k in range(0, samples, LANES):
            row = load_lanes(address + k * real.itemsize, samples - k, number(0))
            store_row(_row_address(real, SHARE, k), row)
        return
    top = number(-np.inf)
    for k in range(0, samples, LANES):
        row = load_lanes(address + k * real.itemsize, samples - k, number(-np.inf))
        store_row(_row_address(real, SHARE, k), row)
        top = max(top, largest(row))
    total = number(0)
    lowest = number(-87.0) if real.itemsize == 4 else number(-708.0)  # from there on powers of two are subnormal
    for k in range(0, samples, LANES):
        row = _exp(_real_row(real, SHARE, k, compute) - top, lowest, real.itemsize == 8)
        store_row(_row_address(real, SHARE, k), row)
        total += sum_of(row)
    factor = number(1) / total
    for k in range(0, samples, LANES):
        store_row(_row_address(real, SHARE, k), _real_row(real, SHARE, k, compute) * factor)


@njit(**COMPILE)
def _frame(problem, views, n, q, frame):
    """Origin and unit of the samples of query ``q``: around a point, in a box, or (no axes) in the whole level."""
    number, levels, reference = frame.dtype.type, views.levels, views.reference
    for i in range(levels.shape[0]):
        first, points = levels[i, 3], levels[i, 4]
        for axis in range(2):
            size = number(levels[i, 1 - axis])
            origin, unit = number(-0.5), size
            if problem.axes > 0:
                origin, unit = reference[n, q, i, axis] * size - number(0.5), number(1)
            if problem.axes == 4:
                unit = reference[n, q, i, axis + 2] * size * number(0.5) / number(points)
            for k in range(first, first + points):
                frame[2 * axis, k] = origin
                frame[2 * axis + 1, k] = unit


@njit(**COMPILE)
def _axis(position, size):
    """The two pixels around positions along one axis.

    Returns:
        Number, number; bilinear weight, weight; derivative of each weight by the position. A pixel that is not there
        has weight and derivative 0, and the number of the nearest one, which is safe to read. NaN is nowhere.
    """
    low = floor(position)
    fraction = position - low
    last = size - 1.0
    return (
        smaller(larger(low, 0.0), last),
        smaller(larger(low + 1.0, 0.0), last),
        between(low, 0.0, last, 1.0 - fraction, 0.0),
        between(low, -1.0, last - 1.0, fraction, 0.0),
        between(low, 0.0, last, -1.0, 0.0),
        between(low, -1.0, last - 1.0, 1.0, 0.0),
    )


@njit(**COMPILE)
def _corners(scratch, k, x, y, share, sizes, width, start):
    """The pixels around LANES samples and what each counts, into ``scratch`` from lane ``k`` on.

    Args:
        sizes: rows of the levels' width and height, real.
        width: the levels' width in whole numbers.
        start: the levels' first token.
    """
    left, right, to_left, to_right, _, _ = _axis(x, sizes[0])
    top, bottom, to_top, to_bottom, _, _ = _axis(y, sizes[1])
    left, right = to_index(left), to_index(right)
    above, below = to_index(top) * width + start, to_index(bottom) * width + start
    token, real = scratch.token, scratch.real
    store_row(_row_address(token, 0, k), above + left)
    store_row(_row_address(token, 1, k), above + right)
    store_row(_row_address(token, 2, k), below + left)
    store_row(_row_address(token, 3, k), below + right)
    store_row(_row_address(real, LIVE, k), (to_left + to_right) * (to_top + to_bottom))
    to_top, to_bottom = to_top * share, to_bottom * share
    store_row(_row_address(real, CORNER, k), to_top * to_left)
    store_row(_row_address(real, CORNER + 1, k), to_top * to_right)
    store_row(_row_address(real, CORNER + 2, k), to_bottom * to_left)
    store_row(_row_address(real, CORNER + 3, k), to_bottom * to_right)


@njit(**COMPILE)
def _leave_out_padding(scratch, padding, n, start, samples):
    """A padded pixel counts nothing, and is not read: one of the same sample that counts is read in its place.

    ``start``: of the tokens.
    """
    real, token = scratch.real, scratch.token
    for k in range(samples):
        padded = other = 0
        for corner in range(4):
            if padding[n, start + token[corner, k]]:
                padded |= 1 << corner
            else:
                other = token[corner, k]
        token[PADDED, k] = padded
        if padded == 15:
            real[LIVE, k] = 0
        elif padded:
            for corner in range(4):
                if padded >> corner & 1:
                    token[corner, k] = other
                    real[CORNER + corner, k] = 0


@njit(**COMPILE)
def _prepare(problem, views, n, q, m, frame, scratch, compute):
    """Everything about the samples of one head of one query, into ``scratch``; ``_frame`` comes before."""
    samples, size = problem.samples, frame.itemsize
    number = frame.dtype.type
    first = ((n * problem.queries + q) * problem.heads + m) * samples
    _shares(problem.weights + first * size, samples, problem.axes > 0, scratch.real, compute)
    for k in range(0, samples, LANES):
        raw_x, raw_y = load_pairs(problem.locations + 2 * (first + k) * size, samples - k, number(0))
        x = _real_row(frame, ORIGIN_X, k, compute) + raw_x * _real_row(frame, UNIT_X, k, compute)
        y = _real_row(frame, ORIGIN_Y, k, compute) + raw_y * _real_row(frame, UNIT_Y, k, compute)
        store_row(_row_address(scratch.real, X, k), x)
        store_row(_row_address(scratch.real, Y, k), y)
        width, height = _sizes(problem, k, samples, compute)
        table = problem.token_table + 4 * k
        columns = load_row(table, "int32", LANES)
        start = load_row(table + 4 * (samples + LANES), "int32", LANES)
        _corners(scratch, k, x, y, _real_row(scratch.real, SHARE, k, compute), (width, height), columns, start)
    if problem.is_padded:
        _leave_out_padding(scratch, views.padding, n, 0, samples)


@njit(**COMPILE)
def _sizes(problem, k, samples, compute):
    """Width and height of the levels of the samples from the ``k``-th on."""
    size = 8 if compute == "float64" else 4
    table = problem.real_table + k * size
    return load_row(table, compute, LANES), load_row(table + (samples + LANES) * size, compute, LANES)


@njit(**COMPILE)
def _forward(problem, channels, width, storage, compute, number, bits):
    """Tiles of queries out of all B*Q, all heads."""
    queries, heads, samples = problem.queries, problem.heads, problem.samples
    by_token, by_head, by_channel = problem.by_token, problem.by_head, problem.by_channel
    rows = problem.batch * queries
    views = _views(problem, number)
    seat, scratch_bytes = _seat(problem), SCRATCH_ROWS * (samples + LANES) * 8
    # While one head is added up, the pixels of the next are on their way.
    this = _scratch(seat, samples, number)
    following = _scratch(seat + scratch_bytes, samples, number)
    frame = _frame_of(seat + 2 * scratch_bytes, samples, number)
    if problem.axes == 0:
        _frame(problem, views, 0, 0, frame)
    task = _next_task(problem)
    while task < problem.tasks:
        for row in range(task * TILE, min(task * TILE + TILE, rows)):
            n, q = divmod(row, queries)
            image = problem.value + n * problem.by_image
            if problem.axes > 0:
                _frame(problem, views, n, q, frame)
            if heads > 0:
                _prepare(problem, views, n, q, 0, frame, this, compute)
            for m in range(heads):
                if m + 1 < heads:
                    _prepare(problem, views, n, q, m + 1, frame, following, compute)
                    if problem.is_far:
                        _fetch(following, image + (m + 1) * by_head, by_token, samples, channels * bits // 8)
                real, token = this.real, this.token
                nothing = number(0)  # or NaN, if a weight is not finite: 0 * NaN, as everywhere
                for k in range(0, samples, LANES):
                    nothing += sum_of(_real_row(real, SHARE, k, compute) * 0.0)
                for channel in range(0, channels, width):
                    head = image + m * by_head + channel * by_channel
                    above, below = splat(nothing, width), splat(nothing, width)  # each waits for itself alone
                    for k in range(samples):
                        if real[LIVE, k] != 0:
                            pixel = load_row(head + token[0, k] * by_token, storage, width)
                            above = multiply_add(above, real[CORNER, k], pixel)
                            pixel = load_row(head + token[2, k] * by_token, storage, width)
                            below = multiply_add(below, real[CORNER + 2, k], pixel)
                            pixel = load_row(head + token[1, k] * by_token, storage, width)
                            above = multiply_add(above, real[CORNER + 1, k], pixel)
                            pixel = load_row(head + token[3, k] * by_token, storage, width)
                            below = multiply_add(below, real[CORNER + 3, k], pixel)
                    place = problem.out + ((row * heads + m) * channels + channel) * real.itemsize
                    store_row(place, above + below)
                this, following = following, this
        task = _next_task(problem)


@njit(**COMPILE)
def _fetch(scratch, head, by_token, samples, size):
    """Ask for all pixels of the samples of a head, ``size`` bytes each."""
    for k in range(samples):
        if scratch.real[LIVE, k] != 0:
            for corner in range(4):
                address = head + scratch.token[corner, k] * by_token
                for line in range(0, size, 64):
                    prefetch(address + line)


@njit(**COMPILE)
def _query_gradients(problem, channels, width, storage, compute, number):
    """Gradients that belong to queries, for tiles of them out of all B*Q; and ``places`` for the value's gradient."""
    queries, heads, samples = problem.queries, problem.heads, problem.samples
    rows = problem.batch * queries
    views = _views(problem, number)
    seat = _seat(problem)
    scratch = _scratch(seat, samples, number)
    frame = _frame_of(seat + SCRATCH_ROWS * (samples + LANES) * 8, samples, number)
    if problem.axes == 0:
        _frame(problem, views, 0, 0, frame)
    task = _next_task(problem)
    while task < problem.tasks:
        for row in range(task * TILE, min(task * TILE + TILE, rows)):
            n, q = divmod(row, queries)
            if problem.axes > 0:
                _frame(problem, views, n, q, frame)
                for k in range(0, samples, LANES):
                    for i in range(4):
                        store_row(_row_address(scratch.real, SUM + i, k), splat(number(0), LANES))
            for m in range(heads):
                _prepare(problem, views, n, q, m, frame, scratch, compute)
                if problem.places:
                    _write_places(problem, views.levels, n, q, m, scratch)
                if problem.grad_locations or problem.grad_weights or problem.grad_reference:
                    _dots(problem, n, row, m, scratch, channels, width, storage, compute)
                    _head_gradients(problem, row * heads + m, frame, scratch, compute)
            if problem.grad_reference:
                _reference_gradients(problem, views.levels, row, scratch.real)
        task = _next_task(problem)


@njit(**COMPILE)
def _write_places(problem, levels, n, q, m, scratch):
    real, queries = scratch.real, problem.queries
    number = real.dtype.type
    count = queries * problem.samples
    first = (n * problem.heads + m) * count * real.itemsize
    shares = carray(pointer(problem.places + first), (count,), number)
    x = carray(pointer(problem.places_x + first), (count,), number)
    y = carray(pointer(problem.places_y + first), (count,), number)
    for i in range(levels.shape[0]):
        start, points = levels[i, 3], levels[i, 4]
        for p in range(points):
            place = queries * start + q * points + p
            shares[place] = real[SHARE, start + p]
            x[place] = real[X, start + p]
            y[place] = real[Y, start + p]


@njit(**COMPILE)
def _dots(problem, n, row, m, scratch, channels, width, storage, compute):
    """Inner products of the upstream gradient of a head with all its pixels."""
    real, token, samples = scratch.real, scratch.token, problem.samples
    by_token, size = problem.by_token, real.itemsize
    dots = scratch.dots.ctypes.data
    for k in range(0, samples, LANES):
        for part in range(4):
            store_row(dots + (4 * k + part * LANES) * size, splat(real.dtype.type(0), LANES))
    for channel in range(0, channels, width):
        upstream = load_row(problem.grad_out + ((row * problem.heads + m) * channels + channel) * size, compute, width)
        pixels = problem.value + n * problem.by_image + m * problem.by_head + channel * problem.by_channel
        for k in range(samples):
            if real[LIVE, k] != 0:
                products = sums_of(
                    upstream * load_row(pixels + token[0, k] * by_token, storage, width),
                    upstream * load_row(pixels + token[1, k] * by_token, storage, width),
                    upstream * load_row(pixels + token[2, k] * by_token, storage, width),
                    upstream * load_row(pixels + token[3, k] * by_token, storage, width),
                )
                if channel > 0:
                    products = products + load_row(dots + 4 * k * size, compute, 4)
                store_row(dots + 4 * k * size, products)
    if problem.is_padded:
        for k in range(samples):
            for corner in range(4):
                if token[PADDED, k] >> corner & 1:
                    scratch.dots[k, corner] = 0


@njit(**COMPILE)
def _head_gradients(problem, head, frame, scratch, compute):
    """From inner products to gradients of locations and weights of a head, and what it adds to its reference's."""
    real, samples, size = scratch.real, problem.samples, frame.itemsize
    number = frame.dtype.type
    locations = 2 * head * samples * size  # in bytes from the first one
    weights = head * samples * size
    pull = number(0)  # how much all logits of the head move together
    for k in range(0, samples, LANES):
        share = _real_row(real, SHARE, k, compute)
        width, height = _sizes(problem, k, samples, compute)
        _, _, left, right, left_slope, right_slope = _axis(_real_row(real, X, k, compute), width)
        _, _, top, bottom, top_slope, bottom_slope = _axis(_real_row(real, Y, k, compute), height)
        dots = scratch.dots.ctypes.data + 4 * k * size
        above_left, above_right, below_left, below_right = load_quads(dots, number(0))
        above, below = left * above_left + right * above_right, left * below_left + right * below_right
        by_share = top * above + bottom * below
        by_x = share * (
            top * (left_slope * above_left + right_slope * above_right)
            + bottom * (left_slope * below_left + right_slope * below_right)
        )
        by_y = share * (top_slope * above + bottom_slope * below)
        if problem.grad_locations:
            store_pairs(
                problem.grad_locations + locations + 2 * k * size,
                by_x * _real_row(frame, UNIT_X, k, compute),
                by_y * _real_row(frame, UNIT_Y, k, compute),
                samples - k,
            )
        if problem.grad_reference:
            raw_x, raw_y = load_pairs(problem.locations + locations + 2 * k * size, samples - k, number(0))
            store_row(_row_address(real, SUM, k), _real_row(real, SUM, k, compute) + by_x)
            store_row(_row_address(real, SUM + 1, k), _real_row(real, SUM + 1, k, compute) + by_y)
            store_row(_row_address(real, SUM + 2, k), _real_row(real, SUM + 2, k, compute) + by_x * raw_x)
            store_row(_row_address(real, SUM + 3, k), _real_row(real, SUM + 3, k, compute) + by_y * raw_y)
        if problem.grad_weights and problem.axes > 0:
            store_row(_row_address(real, BY_SHARE, k), by_share)
            pull += sum_of(share * by_share)
        elif problem.grad_weights:
            store_lanes(problem.grad_weights + weights + k * size, by_share, samples - k)
    if problem.grad_weights and problem.axes > 0:
        for k in range(0, samples, LANES):
            by_logit = _real_row(real, SHARE, k, compute) * (_real_row(real, BY_SHARE, k, compute) - pull)
            store_lanes(problem.grad_weights + weights + k * size, by_logit, samples - k)


@njit(**COMPILE)
def _reference_gradients(problem, levels, row, real):
    """From gradients of position and unit of each sample to those of the point or box of each level."""
    number = real.dtype.type
    gradient = carray(pointer(problem.grad_reference), (row + 1, problem.levels, problem.axes), number)[row]
    for i in range(levels.shape[0]):
        first, points = levels[i, 3], levels[i, 4]
        for axis in range(2):
            size = number(levels[i, 1 - axis])
            by_position = by_unit = number(0)
            for k in range(first, first + points):
                by_position += real[SUM + axis, k]
                by_unit += real[SUM + 2 + axis, k]
            gradient[i, axis] = by_position * size
            if problem.axes == 4:
                gradient[i, axis + 2] = by_unit * size * number(0.5) / number(max(points, 1))


@njit(**COMPILE)
def _value_gradients(problem, channels, width, compute, number):
    """Gradients of the values: a task is one (level, image, head), and no other one writes there.

    They are added up in a sheet of memory in which the pixels of the level lie side by side, and then written out once.
    """
    heads = problem.heads
    levels = _views(problem, number).levels
    seat = _seat(problem)
    scratch = _scratch(seat, LANES, number)
    sheet = carray(pointer(seat + SCRATCH_ROWS * 2 * LANES * 8), (problem.largest_level * channels,), number)
    task = _next_task(problem)
    while task < problem.tasks:
        i, rest = divmod(task, problem.batch * heads)
        n, m = divmod(rest, heads)
        size, bytes_of_pixel = levels[i, 0] * levels[i, 1], channels * sheet.itemsize
        sheet[: size * channels] = 0
        _add_level(problem, levels, i, n, m, sheet, scratch, channels, width, compute)
        first = problem.grad_value + ((n * problem.tokens + levels[i, 2]) * heads + m) * bytes_of_pixel
        for pixel in range(size):
            for channel in range(0, channels, width):
                offset = channel * sheet.itemsize
                row = load_row(sheet.ctypes.data + pixel * bytes_of_pixel + offset, compute, width)
                store_row(first + pixel * heads * bytes_of_pixel + offset, row)
        task = _next_task(problem)


@njit(**COMPILE)
def _add_level(problem, levels, i, n, m, sheet, scratch, channels, width, compute):
    """All samples of image ``n``, head ``m`` and level ``i`` into ``sheet``."""
    number, itemsize = sheet.dtype.type, sheet.itemsize
    real, token = scratch.real, scratch.token
    h, w, start, before, points = levels[i]
    sizes = splat(number(w), LANES), splat(number(h), LANES)
    columns, zero = splat(np.int32(w), LANES), splat(np.int32(0), LANES)
    before = ((n * problem.heads + m) * problem.samples + before) * problem.queries * itemsize
    shares, places_x, places_y = problem.places + before, problem.places_x + before, problem.places_y + before
    by_query = problem.heads * channels * itemsize
    upstream = problem.grad_out + (n * problem.queries * problem.heads + m) * channels * itemsize
    padding = carray(pointer(problem.padding), (problem.batch, problem.tokens), np.uint8)
    count = problem.queries * points
    p = 0
    for first in range(0, count, LANES):
        share = load_lanes(shares + first * itemsize, count - first, number(0))
        x = load_lanes(places_x + first * itemsize, count - first, number(0))
        y = load_lanes(places_y + first * itemsize, count - first, number(0))
        lanes = min(count - first, LANES)
        _corners(scratch, 0, x, y, share, sizes, columns, zero)
        if problem.is_padded:
            _leave_out_padding(scratch, padding, n, start, lanes)
        for lane in range(lanes):
            if real[LIVE, lane] != 0:
                for channel in range(0, channels, width):
                    row = load_row(upstream + channel * itemsize, compute, width)
                    for corner in range(4):
                        pixel = sheet.ctypes.data + (token[corner, lane] * channels + channel) * itemsize
                        store_row(
                            pixel, multiply_add(load_row(pixel, compute, width), real[CORNER + corner, lane], row)
                        )
            p += 1
            if p == points:
                p = 0
                upstream += by_query
                for line in range(0, channels * itemsize, 64):
                    prefetch(upstream + AHEAD * by_query + line)


# ---------------------------------------------------------------------------------------------------------------------
# Each kernel per number of channels and type of storage, a C function without Python in it. They are closures over
# numbers, strings and types only, which numba's cache recognises in the next process (not so closures over functions).

_VERSION = zlib.crc32(Path(vectors.__file__).read_bytes() + Path(__file__).read_bytes())
"""numba's cache watches date and size of the file in which a kernel is defined, no more: so kernels depend on this."""

Kernel = Callable[[int], None]


def _compile(function: Callable[[Any], None], channels: int, storage: str) -> Kernel:
    """As a C function, kept on disk for the next process where numba finds a place to write."""
    # numba keeps one index of cached kernels per name and does not lock it: if two processes add different kernels to
    # an index at the same time, one of them can later load the kernel of the other. So each kernel has its own name.
    function.__qualname__ += f"-{channels}-{storage}"
    try:
        compiled = cfunc(types.void(PROBLEM), cache=True, **COMPILE)(function)
    except RuntimeError as error:
        warnings.warn(
            f"Kernels are compiled anew in each process (some seconds), because numba cannot write them anywhere "
            f"({error}). Set the environment variable NUMBA_CACHE_DIR to a folder of yours.",
            stacklevel=2,
        )
        compiled = cfunc(types.void(PROBLEM), **COMPILE)(function)
    kernel: Kernel = threads.Kernel(compiled.address or 0)
    kernel.compiled = compiled  # it lives as long
    return kernel


def _types(storage: str) -> tuple[str, type]:
    """What is computed in, by two names."""
    return ("float64", np.float64) if storage == "float64" else ("float32", np.float32)


def _width(channels: int) -> int:
    return max(width for width in range(1, MAX_WIDTH + 1) if channels % width == 0)


@functools.cache
def _forward_kernel(channels: int, storage: str) -> Kernel:
    width, bits, version = _width(channels), int(storage[-2:]), _VERSION
    compute, number = _types(storage)

    def kernel(problem):
        version  # noqa: B018
        _forward(carray(problem, 1)[0], channels, width, storage, compute, number, bits)

    return _compile(kernel, channels, storage)


@functools.cache
def _query_kernel(channels: int, storage: str) -> Kernel:
    width, version = _width(channels), _VERSION
    compute, number = _types(storage)

    def kernel(problem):
        version  # noqa: B018
        _query_gradients(carray(problem, 1)[0], channels, width, storage, compute, number)

    return _compile(kernel, channels, storage)


@functools.cache
def _value_kernel(channels: int, storage: str) -> Kernel:
    width, version = _width(channels), _VERSION
    compute, number = _types(storage)

    def kernel(problem):
        version  # noqa: B018
        _value_gradients(carray(problem, 1)[0], channels, width, compute, number)

    return _compile(kernel, channels, storage)


# ---------------------------------------------------------------------------------------------------------------------
# From tensors to kernels


def _run(kernel: Kernel, problem: Problem, tasks: int, bytes_of_seat: int) -> None:
    """All tasks, on as many threads as torch uses, or on one where that is faster. The bits are the same."""
    work = problem.batch * problem.queries * problem.heads * problem.samples * problem.channels
    number = max(min(torch.get_num_threads(), tasks), 1) if work >= SERIAL_BELOW else 1
    workspace = torch.empty(number, bytes_of_seat, dtype=torch.uint8)
    problem.next_task = problem.next_seat = 0
    problem.tasks, problem.workspace, problem.by_seat = tasks, workspace.data_ptr(), bytes_of_seat
    threads.run(kernel, problem.here, number)


@functools.lru_cache(maxsize=256)
def _geometry(shapes: tuple[int, ...], points: tuple[int, ...], dtype: torch.dtype) -> Geometry:
    sizes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
    areas, counts = sizes.prod(axis=1), np.array(points, dtype=np.int64)
    levels = np.column_stack([sizes, areas.cumsum() - areas, counts.cumsum() - counts, counts])
    each = np.pad(
        levels.repeat(counts, axis=0), ((0, LANES), (0, 0)), mode="constant", constant_values=1
    )  # of a sample
    real = np.float64 if dtype == torch.float64 else np.float32
    return Geometry(
        np.ascontiguousarray(each[:, [1, 0]].T, dtype=real),
        np.ascontiguousarray(each[:, [1, 2]].T, dtype=np.int32),
        levels,
        int(areas.max()),
    )


def _rows_together(value: Tensor) -> Tensor:
    """``value`` such that the channels of a head lie side by side."""
    return value if value.stride(3) == 1 else value.contiguous()


def _problem(
    value: Tensor, geometry: Geometry, locations: Tensor, weights: Tensor, reference: Tensor | None,
    padding: Tensor | None,
) -> Problem:  # fmt: skip
    """What forward and backward have in common. It points into memory of its arguments, which have to outlive it."""
    batch, tokens, heads, channels = value.shape
    queries, samples = locations.shape[1], locations.shape[3]
    by_image, by_token, by_head, by_channel = (stride * value.element_size() for stride in value.stride())
    problem = Problem(
        batch=batch, tokens=tokens, heads=heads, channels=channels, queries=queries, samples=samples,
        levels=len(geometry.levels), largest_level=geometry.largest, value=value.data_ptr(),
        by_image=by_image, by_token=by_token, by_head=by_head, by_channel=by_channel,
        level_table=geometry.levels.ctypes.data, real_table=geometry.sizes.ctypes.data,
        token_table=geometry.tokens.ctypes.data,
        locations=locations.data_ptr(), weights=weights.data_ptr(),
        reference=0 if reference is None else reference.data_ptr(),
        axes=0 if reference is None else reference.shape[3],
        padding=0 if padding is None else padding.data_ptr(), is_padded=padding is not None,
        is_far=queries * CROWD < tokens,  # few samples: their pixels are hardly ever in the caches, as in a decoder
    )  # fmt: skip
    problem.here = ctypes.addressof(problem)
    return problem


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [tensor if tensor is None else tensor.contiguous() for tensor in tensors]


def _tiles(problem: Problem) -> int:
    return -(-problem.batch * problem.queries // TILE)


def forward(
    value: Tensor,
    shapes: tuple[int, ...],
    points: tuple[int, ...],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    padding: Tensor | None,
) -> Tensor:
    """See ``operator.ms_deform_attn``."""
    value, geometry = _rows_together(value), _geometry(shapes, points, locations.dtype)
    locations, weights, reference, padding = _contiguous(locations, weights, reference, padding)
    batch, _, heads, channels = value.shape
    out = locations.new_empty(batch, locations.shape[1], heads * channels)
    problem = _problem(value, geometry, locations, weights, reference, padding)
    problem.out = out.data_ptr()
    _run(_forward_kernel(channels, STORAGE[value.dtype]), problem, _tiles(problem), _bytes_of_seat(problem.samples))
    return out.to(value.dtype)


def backward(
    grad_out: Tensor,
    value: Tensor,
    shapes: tuple[int, ...],
    points: tuple[int, ...],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    padding: Tensor | None,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``operator.ms_deform_attn_backward``."""
    value, geometry = _rows_together(value), _geometry(shapes, points, locations.dtype)
    locations, weights, reference, padding = _contiguous(locations, weights, reference, padding)
    batch, _, heads, channels = value.shape
    upstream = grad_out.to(locations.dtype).contiguous()
    inputs = (value, locations, weights, locations.new_empty(0) if reference is None else reference)
    grads = [
        torch.empty(given.shape if needed else 0, dtype=locations.dtype)
        for given, needed in zip(inputs, needs, strict=True)
    ]
    # Three pieces of memory: of more than 32 MiB at once, glibc gives new pages each time, which cost 13 ms here.
    places = [torch.empty(weights.numel() if needs[0] else 0, dtype=weights.dtype) for _ in range(3)]
    problem = _problem(value, geometry, locations, weights, reference, padding)
    problem.grad_out = upstream.data_ptr()
    problem.places, problem.places_x, problem.places_y = (place.data_ptr() for place in places)
    problem.grad_value, problem.grad_locations, problem.grad_weights, problem.grad_reference = (
        grad.data_ptr() for grad in grads
    )
    _run(_query_kernel(channels, STORAGE[value.dtype]), problem, _tiles(problem), _bytes_of_seat(problem.samples))
    if needs[0]:
        kernel = _value_kernel(channels, STORAGE[value.dtype])
        sheet = problem.largest_level * channels * upstream.element_size()
        _run(kernel, problem, problem.levels * batch * heads, _bytes_of_seat(LANES) + sheet)
    grad_value, grad_locations, grad_weights, grad_reference = grads
    return grad_value.to(value.dtype), grad_locations, grad_weights, grad_reference
