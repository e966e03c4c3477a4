"""Multi-scale deformable attention on the CPU, compiled by numba. The README of this folder tells how it works.

One file on purpose: numba's cache on disk only watches the file in which a cached function is defined.
"""
# numba gives types to what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators, disable-error-code="call-arg, var-annotated"

import functools
import math
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from torch import Tensor

STORAGE = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
"""How ``value`` lies in memory. Half precision is widened to float32 as it is loaded."""

MAX_WIDTH = 128
"""Channels in one vector. A larger D is cut into equal pieces; if it is prime, of one channel: right but slow."""

TILE = 32
"""Queries in one task of the forward pass."""

SERIAL_BELOW = 100_000
"""Points times channels below which waking the threads costs more than they save: about 50 microseconds of work."""

# NaN and infinity have to survive: neither nnan nor ninf.
COMPILE: dict[str, Any] = {
    "fastmath": {"nsz", "contract", "arcp", "reassoc"},
    "error_model": "numpy",
    "boundscheck": False,
    "nogil": True,
}


# ---------------------------------------------------------------------------------------------------------------------
# The channels of one head as one value. LLVM cuts <D x float> into the registers this CPU has and keeps it there; from
# loops over channels numba makes code that is almost three times slower.


class Row(types.Type):
    """``width`` channels as one LLVM vector."""

    def __init__(self, element: types.Float, width: int) -> None:
        super().__init__(name=f"Row({element}, {width})")
        self.element = element
        self.width = width


@register_model(Row)
class RowModel(models.PrimitiveModel):
    def __init__(self, manager, row):
        super().__init__(manager, row, ir.VectorType(manager.lookup(row.element).get_value_type(), row.width))


def _row(storage: types.StringLiteral, width: types.IntegerLiteral) -> Row:
    return Row(types.float64 if storage.literal_value == "float64" else types.float32, width.literal_value)


@intrinsic(prefer_literal=True)
def zero_row(context, storage, width):
    def generate(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(signature.return_type), None)

    return _row(storage, width)(storage, width), generate


@intrinsic(prefer_literal=True)
def load_row(context, address, storage, width):
    """The row at an address (in bytes, aligned to one channel), stored as ``storage`` says."""
    row = _row(storage, width)
    kind = storage.literal_value

    def generate(context, builder, signature, arguments):
        result = context.get_value_type(row)
        stored = {"float16": ir.HalfType(), "bfloat16": ir.IntType(16)}.get(kind, result.element)
        source = builder.inttoptr(arguments[0], ir.VectorType(stored, row.width).as_pointer())
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
        builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()), align=row.element.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, row), generate


@intrinsic
def multiply_add(context, total, factor, row):
    """``total + factor * row``, fused where the CPU can."""

    def generate(context, builder, signature, arguments):
        total, factor, vector = arguments
        empty = ir.Constant(vector.type, ir.Undefined)
        first = builder.insert_element(empty, factor, ir.IntType(32)(0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), row.width), [0] * row.width)
        product = builder.fmul(builder.shuffle_vector(first, empty, everywhere), vector, flags=("contract",))
        return builder.fadd(product, total, flags=("contract",))

    return row(row, row.element, row), generate


@intrinsic
def dot(context, left, right):
    def generate(context, builder, signature, arguments):
        vector = arguments[0].type
        # llvmlite cannot name intrinsics that are overloaded on vectors, hence the mangled name.
        name = f"llvm.vector.reduce.fadd.v{left.width}f{left.element.bitwidth}"
        signature = ir.FunctionType(vector.element, [vector.element, vector])
        add_up = cgutils.get_or_insert_function(builder.module, signature, name)
        start = ir.Constant(vector.element, 0.0)
        return builder.call(add_up, [start, builder.fmul(*arguments)], fastmath=("reassoc", "nsz", "contract"))

    return left.element(left, right), generate


# ---------------------------------------------------------------------------------------------------------------------
# The mathematics. ``value`` is an address and strides in bytes, everything else a contiguous array; ``levels`` holds
# (height, width, first token). Only a point with -1 < x < width and -1 < y < height touches a pixel; put that way, NaN
# is outside, and nothing outside is ever turned into an address.


@njit(**COMPILE)
def _neighbours(position, size):
    """The two pixels around a position (in pixels, -1 < position < size) along one axis.

    Returns:
        Index, index; bilinear weight, weight; derivative of each weight by the position. A pixel beyond the edge has
        weight and derivative 0 and repeats the index of the other one, which is safe to read.
    """
    one = type(position)(1)
    zero = type(position)(0)
    low = int(np.floor(position))
    high = low + 1
    fraction = position - type(position)(low)
    if low < 0:
        return high, high, zero, fraction, zero, one
    if high >= size:
        return low, low, one - fraction, zero, -one, zero
    return low, high, one - fraction, fraction, -one, one


@njit(**COMPILE)
def _forward_rows(value, strides, levels, locations, weights, out, first, last, channels, width, storage):
    """Output of the queries ``first .. last - 1`` out of all B*Q, all heads."""
    queries, heads, num_levels, points = locations.shape[1:5]
    real = locations.dtype.type
    for row in range(first, last):
        n, q = divmod(row, queries)
        for m in range(heads):
            for channel in range(0, channels, width):
                head = value + n * strides[0] + m * strides[2] + channel * strides[3]
                total = zero_row(storage, width)
                for i in range(num_levels):
                    h, w, start = levels[i]
                    level = head + start * strides[1]
                    for p in range(points):
                        x = locations[n, q, m, i, p, 0] * real(w) - real(0.5)
                        y = locations[n, q, m, i, p, 1] * real(h) - real(0.5)
                        weight = weights[n, q, m, i, p]
                        if x > -1 and y > -1 and x < w and y < h:
                            x0, x1, wx0, wx1, _, _ = _neighbours(x, w)
                            y0, y1, wy0, wy1, _, _ = _neighbours(y, h)
                            above = level + y0 * w * strides[1]
                            below = level + y1 * w * strides[1]
                            wy0 *= weight
                            wy1 *= weight
                            total = multiply_add(total, wy0 * wx0, load_row(above + x0 * strides[1], storage, width))
                            total = multiply_add(total, wy0 * wx1, load_row(above + x1 * strides[1], storage, width))
                            total = multiply_add(total, wy1 * wx0, load_row(below + x0 * strides[1], storage, width))
                            total = multiply_add(total, wy1 * wx1, load_row(below + x1 * strides[1], storage, width))
                        elif not math.isfinite(weight):  # 0 * NaN, as everywhere
                            total = multiply_add(total, weight * real(0), total)
                store_row(out.ctypes.data + ((row * heads + m) * channels + channel) * out.itemsize, total)


@njit(**COMPILE)
def _add(address, factor, row, compute, width):
    store_row(address, multiply_add(load_row(address, compute, width), factor, row))


@njit(**COMPILE)
def _backward_level(
    task, value, strides, levels, locations, weights, grad_out, grad_value, grad_locations, grad_weights, needs,
    channels, width, storage, compute,
):  # fmt: skip
    """All gradients through one (image, head, level), of which ``task`` is the number. No other task writes here."""
    queries, heads, num_levels, points = locations.shape[1:5]
    real = locations.dtype.type
    size = locations.itemsize
    rest, i = divmod(task, num_levels)
    n, m = divmod(rest, heads)
    h, w, start = levels[i]
    tokens = levels[-1, 0] * levels[-1, 1] + levels[-1, 2]
    level = value + n * strides[0] + start * strides[1] + m * strides[2]
    grad_token = heads * channels * size
    grad_level = grad_value.ctypes.data + (n * tokens + start) * grad_token + m * channels * size
    for q in range(queries):
        grad_row = grad_out.ctypes.data + ((n * queries + q) * heads + m) * channels * size
        for p in range(points):
            x = locations[n, q, m, i, p, 0] * real(w) - real(0.5)
            y = locations[n, q, m, i, p, 1] * real(h) - real(0.5)
            if not (x > -1 and y > -1 and x < w and y < h):
                if needs[1]:
                    grad_locations[n, q, m, i, p, 0] = 0
                    grad_locations[n, q, m, i, p, 1] = 0
                if needs[2]:
                    grad_weights[n, q, m, i, p] = 0
                continue
            weight = weights[n, q, m, i, p]
            x0, x1, wx0, wx1, dx0, dx1 = _neighbours(x, w)
            y0, y1, wy0, wy1, dy0, dy1 = _neighbours(y, h)
            t00, t01, t10, t11 = y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1
            g00 = g01 = g10 = g11 = real(0)  # grad_out . pixel
            for channel in range(0, channels, width):
                grad = load_row(grad_row + channel * size, compute, width)
                if needs[1] or needs[2]:
                    pixels = level + channel * strides[3]
                    g00 += dot(grad, load_row(pixels + t00 * strides[1], storage, width))
                    g01 += dot(grad, load_row(pixels + t01 * strides[1], storage, width))
                    g10 += dot(grad, load_row(pixels + t10 * strides[1], storage, width))
                    g11 += dot(grad, load_row(pixels + t11 * strides[1], storage, width))
                if needs[0]:
                    pixels = grad_level + channel * size
                    _add(pixels + t00 * grad_token, weight * wy0 * wx0, grad, compute, width)
                    _add(pixels + t01 * grad_token, weight * wy0 * wx1, grad, compute, width)
                    _add(pixels + t10 * grad_token, weight * wy1 * wx0, grad, compute, width)
                    _add(pixels + t11 * grad_token, weight * wy1 * wx1, grad, compute, width)
            above = wx0 * g00 + wx1 * g01
            below = wx0 * g10 + wx1 * g11
            if needs[1]:
                along_x = wy0 * (dx0 * g00 + dx1 * g01) + wy1 * (dx0 * g10 + dx1 * g11)
                along_y = dy0 * above + dy1 * below
                grad_locations[n, q, m, i, p, 0] = weight * real(w) * along_x
                grad_locations[n, q, m, i, p, 1] = weight * real(h) * along_y
            if needs[2]:
                grad_weights[n, q, m, i, p] = wy0 * above + wy1 * below


# ---------------------------------------------------------------------------------------------------------------------
# One pair of kernels, serial and parallel, per number of channels and storage type. They are closures over numbers and
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


Kernels = tuple[Callable[..., None], Callable[..., None]]


@functools.cache
def _forward_kernels(channels: int, storage: str) -> Kernels:
    width = _width(channels)

    @_compile(parallel=False)
    def serial(value, strides, levels, locations, weights, out):
        rows = locations.shape[0] * locations.shape[1]
        _forward_rows(value, strides, levels, locations, weights, out, 0, rows, channels, width, storage)

    @_compile(parallel=True)
    def parallel(value, strides, levels, locations, weights, out):
        rows = locations.shape[0] * locations.shape[1]
        for tile in prange((rows + TILE - 1) // TILE):
            first = np.int64(tile) * TILE  # prange counts in uint64, and uint64 with int64 makes float64
            last = min(first + TILE, rows)
            _forward_rows(value, strides, levels, locations, weights, out, first, last, channels, width, storage)

    return serial, parallel


@functools.cache
def _backward_kernels(channels: int, storage: str) -> Kernels:
    width = _width(channels)
    compute = "float64" if storage == "float64" else "float32"

    @_compile(parallel=False)
    def serial(value, strides, levels, locations, weights, grad_out, grad_value, grad_locations, grad_weights, needs):
        for task in range(locations.shape[0] * locations.shape[2] * locations.shape[3]):
            _backward_level(
                task, value, strides, levels, locations, weights, grad_out, grad_value, grad_locations, grad_weights,
                needs, channels, width, storage, compute,
            )  # fmt: skip

    @_compile(parallel=True)
    def parallel(value, strides, levels, locations, weights, grad_out, grad_value, grad_locations, grad_weights, needs):
        for task in prange(locations.shape[0] * locations.shape[2] * locations.shape[3]):
            _backward_level(
                np.int64(task), value, strides, levels, locations, weights, grad_out, grad_value, grad_locations,
                grad_weights, needs, channels, width, storage, compute,
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


def _run(kernels: Kernels, work: int, *arguments: Any) -> None:
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
def _levels(shapes: tuple[int, ...]) -> np.ndarray:
    """(L, 3): height, width and first token of each level."""
    sizes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
    areas = sizes.prod(axis=1)
    return np.column_stack([sizes, areas.cumsum() - areas])


def _rows(value: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """``value`` such that the channels of a head lie side by side, and its strides in bytes."""
    if value.stride(3) != 1:
        value = value.contiguous()
    return value, tuple(stride * value.element_size() for stride in value.stride())


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def forward(value: Tensor, shapes: tuple[int, ...], locations: Tensor, weights: Tensor) -> Tensor:
    """See ``operator.ms_deform_attn``; locations and weights are float32, or float64 if ``value`` is."""
    channels = value.shape[3]
    value, strides = _rows(value)
    out = locations.new_empty(locations.shape[0], locations.shape[1], value.shape[2] * channels)
    _run(
        _forward_kernels(channels, STORAGE[value.dtype]),
        weights.numel() * channels,
        value.data_ptr(),
        strides,
        _levels(shapes),
        _array(locations),
        _array(weights),
        out.numpy(),
    )
    return out.to(value.dtype)


def backward(
    grad_out: Tensor,
    value: Tensor,
    shapes: tuple[int, ...],
    locations: Tensor,
    weights: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``operator.ms_deform_attn_backward``."""
    channels = value.shape[3]
    value, strides = _rows(value)
    grad_value = locations.new_zeros(value.shape if needs[0] else (0,) * 4)
    grad_locations = locations.new_empty(locations.shape if needs[1] else (0,) * 6)
    grad_weights = locations.new_empty(weights.shape if needs[2] else (0,) * 5)
    _run(
        _backward_kernels(channels, STORAGE[value.dtype]),
        2 * weights.numel() * channels,
        value.data_ptr(),
        strides,
        _levels(shapes),
        _array(locations),
        _array(weights),
        _array(grad_out.to(locations.dtype)),
        grad_value.numpy(),
        grad_locations.numpy(),
        grad_weights.numpy(),
        needs,
    )
    return grad_value.to(value.dtype), grad_locations, grad_weights
