"""Multi-scale deformable attention on the CPU, compiled by numba. The README of this folder tells how it works.

One file on purpose: numba's cache on disk only watches the file in which a cached function is defined.
"""
# numba gives types to what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators, disable-error-code="call-arg, var-annotated, operator"

import functools
import operator
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model
from torch import Tensor

STORAGE = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
"""How ``value`` lies in memory. Half precision is widened to float32 as it is loaded."""

LANES = 16
"""Samples whose places and weights are computed together."""

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

# No fast mathematics: NaN and infinity have to survive, and two compilations of one source, the serial and the parallel
# kernel, have to give the same bits. Where a product and a sum shall be one operation, they say so (``multiply_add``).
COMPILE: dict[str, Any] = {
    "fastmath": False,
    "error_model": "numpy",
    "boundscheck": False,
    "nogil": True,
}


# ---------------------------------------------------------------------------------------------------------------------
# Several numbers as one value: the channels of a head, or one quantity of several samples. LLVM cuts <n x float> into
# the registers this CPU has and keeps it there; from loops over arrays numba makes code that is three times slower.


class Row(types.Type):
    """``width`` numbers as one LLVM vector."""

    def __init__(self, element: Any, width: int) -> None:
        super().__init__(name=f"Row({element}, {width})")
        self.element = element
        self.width = width


@register_model(Row)
class RowModel(models.PrimitiveModel):
    def __init__(self, manager, row):
        super().__init__(manager, row, ir.VectorType(manager.lookup(row.element).get_value_type(), row.width))


INDEX = types.int32


def _splat(builder, scalar, width):
    """The same number in all lanes."""
    vector = ir.VectorType(scalar.type, width)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width))


def _call(builder, name, result, *arguments, fastmath=()):
    """An LLVM intrinsic for vectors by its mangled name: llvmlite cannot name those."""
    kind = arguments[-1].type
    letter = "f" if isinstance(kind.element, ir.FloatType | ir.DoubleType) else "i"
    bits = {"float": 32, "double": 64}.get(str(kind.element)) or kind.element.width
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    called = cgutils.get_or_insert_function(builder.module, function, f"llvm.{name}.v{kind.count}{letter}{bits}")
    return builder.call(called, arguments, fastmath=fastmath)


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def _first(lanes, count, builder):
    """A mask of the first ``count`` lanes."""
    numbers = ir.Constant(ir.VectorType(ir.IntType(64), lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, _splat(builder, count, lanes))


def _masked(builder, name, result, *arguments):
    """``llvm.masked.load`` or ``llvm.masked.store``."""
    vector = arguments[0].type if name == "store" else result
    letter = {"float": "f32", "double": "f64"}[str(vector.element)]
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    mangled = f"llvm.masked.{name}.v{vector.count}{letter}.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, mangled), arguments)


@intrinsic(prefer_literal=True)
def load_row(context, address, storage, width):
    """The row at an address (in bytes, aligned to one element), stored as ``storage`` says."""
    kind = storage.literal_value
    element = {"float64": types.float64, "int32": INDEX}.get(kind, types.float32)
    row = Row(element, width.literal_value)

    def generate(context, builder, signature, arguments):
        result = context.get_value_type(row)
        stored = {"float16": ir.HalfType(), "bfloat16": ir.IntType(16)}.get(kind, result.element)
        source = _pointer(builder, arguments[0], ir.VectorType(stored, row.width))
        loaded = builder.load(source, align=2 if kind in ("float16", "bfloat16") else row.element.bitwidth // 8)
        if kind == "float16":
            return builder.fpext(loaded, result)
        if kind == "bfloat16":  # the upper half of a float32
            bits = ir.VectorType(ir.IntType(32), row.width)
            return builder.bitcast(builder.shl(builder.zext(loaded, bits), ir.Constant(bits, [16] * row.width)), result)
        return loaded

    return row(types.int64, storage, width), generate


@intrinsic
def store_row(context, address, row):
    def generate(context, builder, signature, arguments):
        address, vector = arguments
        builder.store(vector, _pointer(builder, address, vector.type), align=row.element.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, row), generate


@intrinsic
def prefetch(context, address):
    """Ask for the cache line at an address that will be read soon."""

    def generate(context, builder, signature, arguments):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        called = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(called, [builder.inttoptr(arguments[0], byte), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def load_lanes(context, address, count, rest):
    """The first ``count`` numbers at an address, and ``rest`` in the other lanes."""
    row = Row(rest, LANES)

    def generate(context, builder, signature, arguments):
        address, count, rest = arguments
        result = context.get_value_type(row)
        align = ir.IntType(32)(row.element.bitwidth // 8)
        source, mask = _pointer(builder, address, result), _first(LANES, count, builder)
        return _masked(builder, "load", result, source, align, mask, _splat(builder, rest, LANES))

    return row(types.int64, types.int64, rest), generate


@intrinsic
def store_lanes(context, address, row, count):
    """Store the first ``count`` lanes."""

    def generate(context, builder, signature, arguments):
        address, vector, count = arguments
        align = ir.IntType(32)(row.element.bitwidth // 8)
        target, mask = _pointer(builder, address, vector.type), _first(row.width, count, builder)
        _masked(builder, "store", ir.VoidType(), vector, target, align, mask)
        return context.get_dummy_value()

    return types.void(types.int64, row, types.int64), generate


@intrinsic
def load_pairs(context, address, count, rest):
    """``count`` pairs (x, y) at an address, as a row of x and a row of y, and ``rest`` in the other lanes."""
    row = Row(rest, LANES)

    def generate(context, builder, signature, arguments):
        address, count, rest = arguments
        kind = ir.VectorType(context.get_value_type(row).element, 2 * LANES)
        align = ir.IntType(32)(row.element.bitwidth // 8)
        mask = _first(2 * LANES, builder.shl(count, count.type(1)), builder)
        pairs = _masked(
            builder, "load", kind, _pointer(builder, address, kind), align, mask, _splat(builder, rest, 2 * LANES)
        )
        picked = ir.VectorType(ir.IntType(32), LANES)
        rows = [
            builder.shuffle_vector(pairs, pairs, ir.Constant(picked, list(range(axis, 2 * LANES, 2))))
            for axis in (0, 1)
        ]
        return context.make_tuple(builder, signature.return_type, rows)

    return types.UniTuple(row, 2)(types.int64, types.int64, rest), generate


@intrinsic
def store_pairs(context, address, x, y, count):
    """The opposite of ``load_pairs``."""

    def generate(context, builder, signature, arguments):
        address, x, y, count = arguments
        order = [lane + LANES * axis for lane in range(LANES) for axis in (0, 1)]
        pairs = builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), 2 * LANES), order))
        align = ir.IntType(32)(signature.args[1].element.bitwidth // 8)
        mask = _first(2 * LANES, builder.shl(count, count.type(1)), builder)
        _masked(builder, "store", ir.VoidType(), pairs, _pointer(builder, address, pairs.type), align, mask)
        return context.get_dummy_value()

    return types.void(types.int64, x, x, types.int64), generate


def _rows(context, builder, signature, arguments):
    """The arguments of an arithmetic operation as vectors of one type."""
    row = next(kind for kind in signature.args if isinstance(kind, Row))
    for kind, argument in zip(signature.args, arguments, strict=True):
        if isinstance(kind, Row):
            yield argument
        else:
            yield _splat(builder, context.cast(builder, argument, kind, row.element), row.width)


def _result(left, right):
    return left if isinstance(left, Row) else right


@intrinsic
def add_rows(context, left, right):
    def generate(context, builder, signature, arguments):
        left, right = _rows(context, builder, signature, arguments)
        if isinstance(signature.return_type.element, types.Integer):
            return builder.add(left, right)
        return builder.fadd(left, right)

    return _result(left, right)(left, right), generate


@intrinsic
def subtract_rows(context, left, right):
    def generate(context, builder, signature, arguments):
        return builder.fsub(*_rows(context, builder, signature, arguments))

    return _result(left, right)(left, right), generate


@intrinsic
def multiply_rows(context, left, right):
    def generate(context, builder, signature, arguments):
        left, right = _rows(context, builder, signature, arguments)
        if isinstance(signature.return_type.element, types.Integer):
            return builder.mul(left, right)
        return builder.fmul(left, right)

    return _result(left, right)(left, right), generate


def _is_arithmetic(left, right):
    return (isinstance(left, Row) or isinstance(right, Row)) and all(
        isinstance(kind, Row | types.Number) for kind in (left, right)
    )


@overload(operator.add)
def _add(left, right):
    return (lambda left, right: add_rows(left, right)) if _is_arithmetic(left, right) else None


@overload(operator.sub)
def _subtract(left, right):
    return (lambda left, right: subtract_rows(left, right)) if _is_arithmetic(left, right) else None


@overload(operator.mul)
def _multiply(left, right):
    return (lambda left, right: multiply_rows(left, right)) if _is_arithmetic(left, right) else None


@intrinsic
def floor(context, row):
    def generate(context, builder, signature, arguments):
        return _call(builder, "floor", arguments[0].type, *arguments)

    return row(row), generate


@intrinsic
def larger(context, left, right):
    """Of each lane the larger number; NaN counts as smaller than all."""

    def generate(context, builder, signature, arguments):
        left, right = _rows(context, builder, signature, arguments)
        return _call(builder, "maxnum", left.type, left, right)

    return _result(left, right)(left, right), generate


@intrinsic
def smaller(context, left, right):
    """Of each lane the smaller number; NaN counts as larger than all."""

    def generate(context, builder, signature, arguments):
        left, right = _rows(context, builder, signature, arguments)
        return _call(builder, "minnum", left.type, left, right)

    return _result(left, right)(left, right), generate


@intrinsic
def between(context, row, low, high, inside, outside):
    """``inside`` where ``low <= row <= high``, otherwise (also for NaN) ``outside``."""

    def generate(context, builder, signature, arguments):
        row, low, high, inside, outside = _rows(context, builder, signature, arguments)
        is_inside = builder.and_(builder.fcmp_ordered("<=", low, row), builder.fcmp_ordered("<=", row, high))
        return builder.select(is_inside, inside, outside)

    return row(row, low, high, inside, outside), generate


@intrinsic
def to_index(context, row):
    """Whole numbers as integers."""
    indices = Row(INDEX, row.width)

    def generate(context, builder, signature, arguments):
        return builder.fptosi(arguments[0], context.get_value_type(indices))

    return indices(row), generate


@intrinsic
def power_of_two(context, row):
    """``2 ** row`` of whole numbers, put together from the bits of a float."""

    def generate(context, builder, signature, arguments):
        width, bits = row.width, row.element.bitwidth
        mantissa, bias = {32: (23, 127), 64: (52, 1023)}[bits]
        kind = ir.VectorType(ir.IntType(bits), width)
        exponent = builder.add(builder.fptosi(arguments[0], kind), ir.Constant(kind, [bias] * width))
        return builder.bitcast(builder.shl(exponent, ir.Constant(kind, [mantissa] * width)), arguments[0].type)

    return row(row), generate


@intrinsic
def multiply_add(context, total, factor, row):
    """``total + factor * row`` for a number ``factor``, fused where the CPU can."""

    def generate(context, builder, signature, arguments):
        total, factor, vector = arguments
        return _call(builder, "fmuladd", vector.type, _splat(builder, factor, row.width), vector, total)

    return row(row, row.element, row), generate


@intrinsic
def sum_of(context, row):
    def generate(context, builder, signature, arguments):
        vector = arguments[0].type
        return _call(
            builder, "vector.reduce.fadd", vector.element, vector.element(0.0), *arguments, fastmath=("reassoc", "nsz")
        )

    return row.element(row), generate


@intrinsic
def largest(context, row):
    """NaN is passed over."""

    def generate(context, builder, signature, arguments):
        return _call(builder, "vector.reduce.fmax", arguments[0].type.element, *arguments)

    return row.element(row), generate


@intrinsic(prefer_literal=True)
def splat(context, number, width):
    """The same number in all lanes."""
    row = Row(types.unliteral(number), width.literal_value)

    def generate(context, builder, signature, arguments):
        return _splat(builder, arguments[0], row.width)

    return row(types.unliteral(number), width), generate


# ---------------------------------------------------------------------------------------------------------------------
# The mathematics, for one head of one query at a time. Everything is a contiguous array but ``value``, which is an
# address and strides in bytes. A position is where a sample lies in its level, in pixels: ``origin + raw * unit``.


class Geometry(NamedTuple):
    """What is the same for all queries. K is the number of samples of a head, over all levels."""

    sizes: np.ndarray
    """(2, K + LANES) real: width and height of the level of each sample."""
    tokens: np.ndarray
    """(2, K + LANES) int32: width of the level of each sample, and its first token."""
    levels: np.ndarray
    """(L, 5) int64: height, width, first token, first sample, number of samples of each level."""


class Scratch(NamedTuple):
    """What is known of the samples of one head; the kernels' only storage besides their results."""

    real: np.ndarray
    """(20, K + LANES) real: rows ``SHARE`` and so on."""
    token: np.ndarray
    """(4, K + LANES) int32: the pixels around each sample, above left, above right, below left, below right."""


ORIGIN_X, UNIT_X, ORIGIN_Y, UNIT_Y = range(4)
SHARE, X, Y, LIVE, CORNER, DOT, SUM = 0, 1, 2, 3, 4, 8, 12
"""Rows of ``Scratch.real``: attention weight; position; whether a pixel is touched; bilinear times attention weight of
the four pixels; their inner products with the upstream gradient; gradients of position and unit added up over heads."""
NUM_REAL = 16


@njit(**COMPILE)
def _scratch(samples, real):
    wide = samples + LANES
    return Scratch(np.zeros((NUM_REAL, wide), real), np.zeros((4, wide), np.int32))


@njit(**COMPILE)
def _row_address(array, row, lane):
    return array.ctypes.data + (row * array.shape[1] + lane) * array.itemsize


@njit(**COMPILE)
def _real_row(array, row, lane, compute):
    return load_row(_row_address(array, row, lane), compute, LANES)


@njit(**COMPILE)
def _exp(row, lowest):
    """``e ** row`` of numbers up to 0; 0 below ``lowest``, and NaN of NaN."""
    power = floor(row * 1.4426950408889634 + 0.5)
    rest = row - power * 0.693359375 + power * 2.1219444005469057e-4  # ln 2 in two parts: |rest| <= ln(2) / 2
    # Taylor: 13 terms are exact in double precision.
    series = rest * (1 / 6227020800) + 1 / 479001600
    for factor in (
        1 / 39916800, 1 / 3628800, 1 / 362880, 1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0,
    ):  # fmt: skip
        series = series * rest + factor
    return between(row, -np.inf, lowest, 0.0, series * power_of_two(power))


@njit(**COMPILE)
def _shares(weights, first, samples, is_logits, real, compute):
    """Attention weights of one head into ``real[SHARE]``; 0 behind the last one. ``first`` counts in ``weights``."""
    number = weights.dtype.type
    address = weights.ctypes.data + first * weights.itemsize
    if not is_logits:
        for k in range(0, samples, LANES):
            row = load_lanes(address + k * weights.itemsize, samples - k, number(0))
            store_row(_row_address(real, SHARE, k), row)
        return
    top = number(-np.inf)
    for k in range(0, samples, LANES):
        row = load_lanes(address + k * weights.itemsize, samples - k, number(-np.inf))
        store_row(_row_address(real, SHARE, k), row)
        top = max(top, largest(row))
    total = number(0)
    lowest = number(-87.0) if weights.itemsize == 4 else number(-708.0)  # from there on powers of two are subnormal
    for k in range(0, samples, LANES):
        row = _exp(_real_row(real, SHARE, k, compute) - top, lowest)
        store_row(_row_address(real, SHARE, k), row)
        total += sum_of(row)
    factor = number(1) / total
    for k in range(0, samples, LANES):
        store_row(_row_address(real, SHARE, k), _real_row(real, SHARE, k, compute) * factor)


@njit(**COMPILE)
def _frame(reference, n, q, geometry, frame):
    """Origin and unit of the samples of query ``q``: ``reference`` holds points, boxes, or (empty) nothing."""
    real = frame.dtype.type
    for i in range(geometry.levels.shape[0]):
        first, points = geometry.levels[i, 3], geometry.levels[i, 4]
        for axis in range(2):
            size = real(geometry.levels[i, 1 - axis])
            origin, unit = real(-0.5), size
            if reference.shape[3] > 0:
                origin, unit = reference[n, q, i, axis] * size - real(0.5), real(1)
            if reference.shape[3] == 4:
                unit = reference[n, q, i, axis + 2] * size * real(0.5) / real(points)
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
def _leave_out_padding(scratch, padding, n, samples):
    """A padded pixel counts nothing, and is not read: the first of the image is read in its place."""
    if padding.shape[1] == 0:
        return
    for corner in range(4):
        for k in range(samples):
            if padding[n, scratch.token[corner, k]]:
                scratch.token[corner, k] = 0
                scratch.real[CORNER + corner, k] = 0


@njit(**COMPILE)
def _prepare(n, q, m, locations, weights, reference, padding, geometry, frame, scratch, compute):
    """Everything about the samples of one head of one query, into ``scratch``; ``_frame`` comes before."""
    queries, heads, samples = locations.shape[1:4]
    number = locations.dtype.type
    first = ((n * queries + q) * heads + m) * samples
    _shares(weights, first, samples, reference.shape[3] > 0, scratch.real, compute)
    address = locations.ctypes.data + 2 * first * locations.itemsize
    for k in range(0, samples, LANES):
        raw_x, raw_y = load_pairs(address + 2 * k * locations.itemsize, samples - k, number(0))
        x = _real_row(frame, ORIGIN_X, k, compute) + raw_x * _real_row(frame, UNIT_X, k, compute)
        y = _real_row(frame, ORIGIN_Y, k, compute) + raw_y * _real_row(frame, UNIT_Y, k, compute)
        store_row(_row_address(scratch.real, X, k), x)
        store_row(_row_address(scratch.real, Y, k), y)
        sizes = _real_row(geometry.sizes, 0, k, compute), _real_row(geometry.sizes, 1, k, compute)
        width = load_row(_row_address(geometry.tokens, 0, k), "int32", LANES)
        start = load_row(_row_address(geometry.tokens, 1, k), "int32", LANES)
        _corners(scratch, k, x, y, _real_row(scratch.real, SHARE, k, compute), sizes, width, start)
    _leave_out_padding(scratch, padding, n, samples)


@njit(**COMPILE)
def _forward_rows(
    value, strides, geometry, locations, weights, reference, padding, out, first, last, channels, width, storage,
    compute, bits, far,
):  # fmt: skip
    """Output of the queries ``first .. last - 1`` out of all B*Q, all heads."""
    queries, heads, samples = locations.shape[1:4]
    frame = np.zeros((4, samples + LANES), locations.dtype)
    # While one head is added up, the pixels of the next are on their way.
    this, following = _scratch(samples, locations.dtype), _scratch(samples, locations.dtype)
    if reference.shape[3] == 0:
        _frame(reference, 0, 0, geometry, frame)
    for row in range(first, last):
        n, q = divmod(row, queries)
        image = value + n * strides[0]
        if reference.shape[3] > 0:
            _frame(reference, n, q, geometry, frame)
        _prepare(n, q, 0, locations, weights, reference, padding, geometry, frame, this, compute)
        for m in range(heads):
            if m + 1 < heads:
                _prepare(n, q, m + 1, locations, weights, reference, padding, geometry, frame, following, compute)
                if far:
                    _fetch(following, image + (m + 1) * strides[2], strides, samples, channels * bits // 8)
            real, token = this.real, this.token
            nothing = locations.dtype.type(0)  # or NaN, if a weight is not finite: 0 * NaN, as everywhere
            for k in range(0, samples, LANES):
                nothing += sum_of(_real_row(real, SHARE, k, compute) * 0.0)
            for channel in range(0, channels, width):
                head = image + m * strides[2] + channel * strides[3]
                total = splat(nothing, width)
                for k in range(samples):
                    if real[LIVE, k] != 0:
                        for corner in range(4):
                            pixel = load_row(head + token[corner, k] * strides[1], storage, width)
                            total = multiply_add(total, real[CORNER + corner, k], pixel)
                store_row(out.ctypes.data + ((row * heads + m) * channels + channel) * out.itemsize, total)
            this, following = following, this


@njit(**COMPILE)
def _fetch(scratch, head, strides, samples, size):
    """Ask for all pixels of the samples of a head, ``size`` bytes each."""
    for k in range(samples):
        if scratch.real[LIVE, k] != 0:
            for corner in range(4):
                address = head + scratch.token[corner, k] * strides[1]
                for line in range(0, size, 64):
                    prefetch(address + line)


@njit(**COMPILE)
def _query_gradients(
    value, strides, geometry, locations, weights, reference, padding, grad_out, grad_locations, grad_weights,
    grad_reference, places, needs, first, last, channels, width, storage, compute,
):  # fmt: skip
    """Gradients that belong to the queries ``first .. last - 1`` out of all B*Q; and ``places`` for the value's.

    ``places`` (3, B, M, Q*K) takes attention weight, x and y of every sample, level after level.
    """
    queries, heads, samples = locations.shape[1:4]
    number = locations.dtype.type
    size = locations.itemsize
    scratch = _scratch(samples, locations.dtype)
    real, token = scratch.real, scratch.token
    frame = np.zeros((4, samples + LANES), locations.dtype)
    with_reference, needs_dots = reference.shape[3] > 0, needs[1] or needs[2] or needs[3]
    if not with_reference:
        _frame(reference, 0, 0, geometry, frame)
    for row in range(first, last):
        n, q = divmod(row, queries)
        if with_reference:
            _frame(reference, n, q, geometry, frame)
            for k in range(0, samples, LANES):
                for i in range(4):
                    store_row(_row_address(real, SUM + i, k), splat(number(0), LANES))
        for m in range(heads):
            _prepare(n, q, m, locations, weights, reference, padding, geometry, frame, scratch, compute)
            head = (row * heads + m) * samples  # its first sample
            if needs[0]:
                for i in range(geometry.levels.shape[0]):
                    start, points = geometry.levels[i, 3], geometry.levels[i, 4]
                    for p in range(points):
                        place = queries * start + q * points + p
                        places[0, n, m, place] = real[SHARE, start + p]
                        places[1, n, m, place] = real[X, start + p]
                        places[2, n, m, place] = real[Y, start + p]
            if not needs_dots:
                continue
            for k in range(0, samples, LANES):
                for corner in range(4):
                    store_row(_row_address(real, DOT + corner, k), splat(number(0), LANES))
            for channel in range(0, channels, width):
                upstream = load_row(
                    grad_out.ctypes.data + ((row * heads + m) * channels + channel) * size, compute, width
                )
                pixels = value + n * strides[0] + m * strides[2] + channel * strides[3]
                for k in range(samples):
                    if real[LIVE, k] != 0:
                        for corner in range(4):
                            pixel = load_row(pixels + token[corner, k] * strides[1], storage, width)
                            real[DOT + corner, k] += sum_of(upstream * pixel)
            if padding.shape[1] > 0:
                for corner in range(4):
                    for k in range(samples):
                        if real[CORNER + corner, k] == 0:
                            real[DOT + corner, k] = 0
            pull = number(0)  # how much all logits of the head move together
            for k in range(0, samples, LANES):
                share = _real_row(real, SHARE, k, compute)
                _, _, left, right, left_slope, right_slope = _axis(
                    _real_row(real, X, k, compute), _real_row(geometry.sizes, 0, k, compute)
                )
                _, _, top, bottom, top_slope, bottom_slope = _axis(
                    _real_row(real, Y, k, compute), _real_row(geometry.sizes, 1, k, compute)
                )
                above_left, above_right = _real_row(real, DOT, k, compute), _real_row(real, DOT + 1, k, compute)
                below_left, below_right = _real_row(real, DOT + 2, k, compute), _real_row(real, DOT + 3, k, compute)
                above, below = left * above_left + right * above_right, left * below_left + right * below_right
                by_share = top * above + bottom * below
                by_x = share * (
                    top * (left_slope * above_left + right_slope * above_right)
                    + bottom * (left_slope * below_left + right_slope * below_right)
                )
                by_y = share * (top_slope * above + bottom_slope * below)
                if needs[1]:
                    store_pairs(
                        grad_locations.ctypes.data + 2 * (head + k) * size,
                        by_x * _real_row(frame, UNIT_X, k, compute),
                        by_y * _real_row(frame, UNIT_Y, k, compute),
                        samples - k,
                    )
                if needs[3]:
                    raw_x, raw_y = load_pairs(locations.ctypes.data + 2 * (head + k) * size, samples - k, number(0))
                    store_row(_row_address(real, SUM, k), _real_row(real, SUM, k, compute) + by_x)
                    store_row(_row_address(real, SUM + 1, k), _real_row(real, SUM + 1, k, compute) + by_y)
                    store_row(_row_address(real, SUM + 2, k), _real_row(real, SUM + 2, k, compute) + by_x * raw_x)
                    store_row(_row_address(real, SUM + 3, k), _real_row(real, SUM + 3, k, compute) + by_y * raw_y)
                if needs[2] and with_reference:
                    store_row(_row_address(real, DOT, k), by_share)
                    pull += sum_of(share * by_share)
                elif needs[2]:
                    store_lanes(grad_weights.ctypes.data + (head + k) * size, by_share, samples - k)
            if needs[2] and with_reference:
                for k in range(0, samples, LANES):
                    by_logit = _real_row(real, SHARE, k, compute) * (_real_row(real, DOT, k, compute) - pull)
                    store_lanes(grad_weights.ctypes.data + (head + k) * size, by_logit, samples - k)
        if needs[3]:
            _reference_gradients(real, geometry, grad_reference, n, q)


@njit(**COMPILE)
def _reference_gradients(real, geometry, grad_reference, n, q):
    """From gradients of position and unit of each sample to those of the point or box of each level."""
    number = real.dtype.type
    for i in range(geometry.levels.shape[0]):
        first, points = geometry.levels[i, 3], geometry.levels[i, 4]
        for axis in range(2):
            size = number(geometry.levels[i, 1 - axis])
            by_position = by_unit = number(0)
            for k in range(first, first + points):
                by_position += real[SUM + axis, k]
                by_unit += real[SUM + 2 + axis, k]
            grad_reference[n, q, i, axis] = by_position * size
            if grad_reference.shape[3] == 4:
                grad_reference[n, q, i, axis + 2] = by_unit * size * number(0.5) / number(max(points, 1))


@njit(**COMPILE)
def _value_gradient(task, geometry, places, padding, grad_out, grad_value, heads, queries, channels, width, compute):
    """Gradient of one (image, head, level), of which ``task`` is the number. No other task writes there."""
    number = grad_value.dtype.type
    size = grad_value.itemsize
    rest, i = divmod(task, geometry.levels.shape[0])
    n, m = divmod(rest, heads)
    h, w, start, before, points = geometry.levels[i]
    scratch = _scratch(LANES, grad_value.dtype)
    real, token = scratch.real, scratch.token
    sizes = splat(number(w), LANES), splat(number(h), LANES)
    columns, begin = splat(np.int32(w), LANES), splat(np.int32(start), LANES)
    head = grad_value.ctypes.data + (n * grad_value.shape[1] * heads + m) * channels * size
    one_plane = places.shape[1] * places.shape[2] * places.shape[3] * size
    address = places.ctypes.data + ((n * heads + m) * places.shape[3] + queries * before) * size
    count = queries * points
    q = p = 0
    for first in range(0, count, LANES):
        share = load_lanes(address + first * size, count - first, number(0))
        x = load_lanes(address + one_plane + first * size, count - first, number(0))
        y = load_lanes(address + 2 * one_plane + first * size, count - first, number(0))
        lanes = min(count - first, LANES)
        _corners(scratch, 0, x, y, share, sizes, columns, begin)
        _leave_out_padding(scratch, padding, n, lanes)
        for lane in range(lanes):
            if real[LIVE, lane] != 0:
                upstream = grad_out.ctypes.data + ((n * queries + q) * heads + m) * channels * size
                for channel in range(0, channels, width):
                    row = load_row(upstream + channel * size, compute, width)
                    for corner in range(4):
                        pixel = head + (token[corner, lane] * heads * channels + channel) * size
                        store_row(
                            pixel, multiply_add(load_row(pixel, compute, width), real[CORNER + corner, lane], row)
                        )
            p += 1
            if p == points:
                p, q = 0, q + 1
                ahead = grad_out.ctypes.data + ((n * queries + q + AHEAD) * heads + m) * channels * size
                for line in range(0, channels * size, 64):
                    prefetch(ahead + line)


# ---------------------------------------------------------------------------------------------------------------------
# Each kernel twice, serial and parallel, per number of channels and type of storage. They are closures over numbers and
# strings only, which numba's cache recognises in the next process (not so closures over functions). Serial and parallel
# are two functions because the cache would not tell apart one function compiled both ways.


def _width(channels: int) -> int:
    return max(width for width in range(1, MAX_WIDTH + 1) if channels % width == 0)


def _compile(parallel: bool) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``njit``, kept on disk for the next process where numba finds a place to write."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        try:
            return njit(function, cache=True, parallel=parallel, **COMPILE)
        except RuntimeError as error:
            warnings.warn(
                f"Kernels are compiled anew in each process (some seconds), because numba cannot write them anywhere "
                f"({error}). Set the environment variable NUMBA_CACHE_DIR to a folder of yours.",
                stacklevel=2,
            )
            return njit(function, parallel=parallel, **COMPILE)

    return decorate


Pair = tuple[Callable[..., None], Callable[..., None]]
"""Serial and parallel."""


def _compute(storage: str) -> str:
    return "float64" if storage == "float64" else "float32"


@functools.cache
def _forward_kernels(channels: int, storage: str) -> Pair:
    width, compute, bits = _width(channels), _compute(storage), int(storage[-2:])

    @_compile(parallel=False)
    def serial(value, strides, geometry, locations, weights, reference, padding, out, far):
        rows = locations.shape[0] * locations.shape[1]
        _forward_rows(
            value, strides, geometry, locations, weights, reference, padding, out, 0, rows, channels, width, storage,
            compute, bits, far,
        )  # fmt: skip

    @_compile(parallel=True)
    def parallel(value, strides, geometry, locations, weights, reference, padding, out, far):
        rows = locations.shape[0] * locations.shape[1]
        for tile in prange((rows + TILE - 1) // TILE):
            first = np.int64(tile) * TILE  # prange counts in uint64, and uint64 with int64 makes float64
            last = min(first + TILE, rows)
            _forward_rows(
                value, strides, geometry, locations, weights, reference, padding, out, first, last, channels, width,
                storage, compute, bits, far,
            )  # fmt: skip

    return serial, parallel


@functools.cache
def _query_kernels(channels: int, storage: str) -> Pair:
    width, compute = _width(channels), _compute(storage)

    @_compile(parallel=False)
    def serial(
        value, strides, geometry, locations, weights, reference, padding, grad_out, grad_locations, grad_weights,
        grad_reference, places, needs,
    ):  # fmt: skip
        rows = locations.shape[0] * locations.shape[1]
        _query_gradients(
            value, strides, geometry, locations, weights, reference, padding, grad_out, grad_locations, grad_weights,
            grad_reference, places, needs, 0, rows, channels, width, storage, compute,
        )  # fmt: skip

    @_compile(parallel=True)
    def parallel(
        value, strides, geometry, locations, weights, reference, padding, grad_out, grad_locations, grad_weights,
        grad_reference, places, needs,
    ):  # fmt: skip
        rows = locations.shape[0] * locations.shape[1]
        for tile in prange((rows + TILE - 1) // TILE):
            first = np.int64(tile) * TILE
            last = min(first + TILE, rows)
            _query_gradients(
                value, strides, geometry, locations, weights, reference, padding, grad_out, grad_locations,
                grad_weights, grad_reference, places, needs, first, last, channels, width, storage, compute,
            )  # fmt: skip

    return serial, parallel


@functools.cache
def _value_kernels(channels: int, compute: str) -> Pair:
    width = _width(channels)

    @_compile(parallel=False)
    def serial(geometry, places, padding, grad_out, grad_value, heads, queries):
        for task in range(places.shape[1] * heads * geometry.levels.shape[0]):
            _value_gradient(
                task, geometry, places, padding, grad_out, grad_value, heads, queries, channels, width, compute
            )

    @_compile(parallel=True)
    def parallel(geometry, places, padding, grad_out, grad_value, heads, queries):
        for task in prange(places.shape[1] * heads * geometry.levels.shape[0]):
            _value_gradient(
                np.int64(task), geometry, places, padding, grad_out, grad_value, heads, queries, channels, width,
                compute,
            )  # fmt: skip

    return serial, parallel


# ---------------------------------------------------------------------------------------------------------------------
# From tensors to kernels


_team = threading.Lock()
"""Held while numba's threads work: not every threading layer of numba survives two callers at once."""

_forked = False
"""Threads do not survive a fork, and GNU OpenMP kills a child that asks for them again."""


def _after_fork() -> None:
    global _team, _forked
    _team = threading.Lock()
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _run(kernels: Pair, work: int, *arguments: Any) -> None:
    """The parallel kernel on as many threads as torch uses, or the serial one where that is faster or safer.

    Both give the same bits.
    """
    serial, parallel = kernels
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    if threads == 1 or work < SERIAL_BELOW or _forked or not _team.acquire(blocking=False):
        serial(*arguments)
        return
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(threads)
        parallel(*arguments)
    finally:
        numba.set_num_threads(before)
        _team.release()


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
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _common(
    value: Tensor,
    shapes: tuple[int, ...],
    points: tuple[int, ...],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    padding: Tensor | None,
) -> tuple[Any, ...]:
    """What forward and query kernels take first. ``value`` has to outlive their run."""
    return (
        value.data_ptr(),
        tuple(stride * value.element_size() for stride in value.stride()),
        _geometry(shapes, points, locations.dtype),
        _array(locations),
        _array(weights),
        _array(locations.new_empty(0, 0, 0, 0) if reference is None else reference),
        _array(torch.empty(0, 0, dtype=torch.bool) if padding is None else padding),
    )


def _with_rows(value: Tensor) -> Tensor:
    """``value`` such that the channels of a head lie side by side."""
    return value if value.stride(3) == 1 else value.contiguous()


def _is_far(value: Tensor, locations: Tensor) -> bool:
    """Whether samples are so few that their pixels are hardly ever in the caches: those of a decoder."""
    return locations.shape[1] * CROWD < value.shape[1]


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
    channels = value.shape[3]
    value = _with_rows(value)
    out = locations.new_empty(locations.shape[0], locations.shape[1], value.shape[2] * channels)
    common = _common(value, shapes, points, locations, weights, reference, padding)
    _run(
        _forward_kernels(channels, STORAGE[value.dtype]),
        weights.numel() * channels,
        *common,
        out.numpy(),
        _is_far(value, locations),
    )
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
    batch, _, heads, channels = value.shape
    queries, samples = locations.shape[1], locations.shape[3]
    value = _with_rows(value)
    upstream = _array(grad_out.to(locations.dtype))
    common = _common(value, shapes, points, locations, weights, reference, padding)
    work = weights.numel() * channels
    places = locations.new_empty(3, batch, heads, queries * samples if needs[0] else 0)
    # what is not needed has no elements, but as many axes as the kernel has been compiled for
    inputs = (value, locations, weights, locations.new_empty(0, 0, 0, 0) if reference is None else reference)
    grads = [
        locations.new_empty(each.shape if needed else (0,) * each.ndim)
        for each, needed in zip(inputs, needs, strict=True)
    ]
    grad_value, *of_queries = grads
    grad_value.zero_()
    kernels = _query_kernels(channels, STORAGE[value.dtype])
    _run(kernels, work, *common, upstream, *(grad.numpy() for grad in of_queries), places.numpy(), needs)
    if needs[0]:
        _, _, geometry, *_, mask = common
        kernels = _value_kernels(channels, _compute(STORAGE[value.dtype]))
        _run(kernels, work, geometry, places.numpy(), mask, upstream, grad_value.numpy(), heads, queries)
    grads[0] = grad_value.to(value.dtype)
    value_grad, locations_grad, weights_grad, reference_grad = (
        grad if needed else grad.flatten() for grad, needed in zip(grads, needs, strict=True)
    )
    return value_grad, locations_grad, weights_grad, reference_grad
