"""Multi-scale deformable attention on the CPU, compiled by numba. README.md in this folder tells how it works.

One file on purpose: numba's on-disk cache only watches the file in which a cached function is defined.
"""

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import literally, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from torch import Tensor

STORAGE = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
"""How rows of ``value`` lie in memory; half precision is widened to float32 as it is loaded."""

MAX_WIDTH = 128
"""Channels handled as one vector. A larger D is cut into equal pieces."""

TILE = 32
"""Queries per task of the forward pass."""

SERIAL_BELOW = 100_000
"""Points x channels below which starting threads costs more than it saves (about 50 microseconds of work)."""

# NaN and infinity must survive, so neither nnan nor ninf. Divisions by zero cannot occur.
COMPILE = {
    "fastmath": {"nsz", "contract", "arcp", "reassoc"},
    "error_model": "numpy",
    "boundscheck": False,
    "nogil": True,
}


# ---------------------------------------------------------------------------------------------------------------------
# Rows of channels as values: LLVM cuts <D x float> into the registers this CPU has, and keeps them there.


class Row(types.Type):
    """``width`` channels of one head, as one LLVM vector."""

    def __init__(self, element: types.Float, width: int) -> None:
        super().__init__(name=f"Row({element}, {width})")
        self.element = element
        self.width = width


@register_model(Row)
class RowModel(models.PrimitiveModel):
    def __init__(self, manager: Any, row: Row) -> None:
        super().__init__(manager, row, ir.VectorType(manager.lookup(row.element).get_value_type(), row.width))


def _row_type(storage: types.StringLiteral, width: types.IntegerLiteral) -> Row:
    return Row(types.float64 if storage.literal_value == "float64" else types.float32, width.literal_value)


def _splat(builder: ir.IRBuilder, scalar: ir.Value, width: int) -> ir.Value:
    undefined = ir.Constant(ir.VectorType(scalar.type, width), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width))


@intrinsic(prefer_literal=True)
def zero_row(context, storage, width):  # type: ignore[no-untyped-def]
    row = _row_type(storage, width)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return ir.Constant(context.get_value_type(row), None)

    return row(storage, width), generate


@intrinsic(prefer_literal=True)
def load_row(context, address, storage, width):  # type: ignore[no-untyped-def]
    row = _row_type(storage, width)
    kind = storage.literal_value
    stored = {"float16": ir.HalfType(), "bfloat16": ir.IntType(16)}

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        result = context.get_value_type(row)
        element = stored.get(kind, result.element)
        vector = ir.VectorType(element, row.width)
        loaded = builder.load(builder.inttoptr(arguments[0], vector.as_pointer()), align=8 if kind == "float64" else 4)
        if kind in stored:
            loaded.align = 2
        if kind == "float16":
            return builder.fpext(loaded, result)
        if kind == "bfloat16":  # the upper half of a float32
            bits = ir.VectorType(ir.IntType(32), row.width)
            return builder.bitcast(builder.shl(builder.zext(loaded, bits), ir.Constant(bits, [16] * row.width)), result)
        return loaded

    return row(types.int64, storage, width), generate


@intrinsic
def store_row(context, address, row):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        address, vector = arguments
        builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()), align=row.element.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, row), generate


@intrinsic
def multiply_add(context, total, factor, row):  # type: ignore[no-untyped-def]
    """``total + factor * row``, fused where the CPU can."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        total, factor, vector = arguments
        product = builder.fmul(_splat(builder, factor, row.width), vector, flags=("contract",))
        return builder.fadd(product, total, flags=("contract",))

    return row(row, row.element, row), generate


@intrinsic
def dot(context, left, right):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vector = arguments[0].type
        # llvmlite cannot name intrinsics overloaded on vectors, hence the mangled name.
        name = f"llvm.vector.reduce.fadd.v{left.width}f{left.element.bitwidth}"
        kind = ir.FunctionType(vector.element, [vector.element, vector])
        add_up = cgutils.get_or_insert_function(builder.module, kind, name)
        product = builder.fmul(*arguments)
        return builder.call(
            add_up, [ir.Constant(vector.element, -0.0), product], fastmath=("reassoc", "nsz", "contract")
        )

    return left.element(left, right), generate


# ---------------------------------------------------------------------------------------------------------------------
# The maths


@njit(**COMPILE)
def _neighbours(position, size):  # type: ignore[no-untyped-def]
    """The two pixels around a position (in pixels, -1 < position < size) along one axis.

    Returns:
        Index, index; bilinear weight, weight; derivative of each weight by the position. A pixel outside the level gets
        weight and derivative 0 and the index of the other one, so that reading it is harmless.
    """
    one = type(position)(1)
    zero = type(position)(0)
    low = int(np.floor(position))
    fraction = position - type(position)(low)
    high = low + 1
    if low < 0:
        return high, high, zero, fraction, zero, one
    if high >= size:
        return low, low, one - fraction, zero, -one, zero
    return low, high, one - fraction, fraction, -one, one


@njit(**COMPILE)
def _forward_rows(value, strides, levels, locations, weights, out, first, last, channels, width, storage):  # type: ignore[no-untyped-def]
    """Output rows ``first .. last`` of the B*Q, all heads."""
    width = literally(width)
    storage = literally(storage)
    queries, heads, num_levels, points = locations.shape[1:5]
    element = locations.itemsize
    half = locations.dtype.type(0.5)
    for row in range(first, last):
        n = row // queries
        q = row % queries
        for m in range(heads):
            for channel in range(0, channels, width):
                base = value + n * strides[0] + m * strides[2] + channel * strides[3]
                total = zero_row(storage, width)
                for l in range(num_levels):
                    height, breadth, start = levels[l]
                    level = base + start * strides[1]
                    for p in range(points):
                        x = locations[n, q, m, l, p, 0] * locations.dtype.type(breadth) - half
                        y = locations[n, q, m, l, p, 1] * locations.dtype.type(height) - half
                        weight = weights[n, q, m, l, p]
                        # Also false for NaN: such a point is outside.
                        if x > -1 and y > -1 and x < breadth and y < height:
                            x0, x1, wx0, wx1, _, _ = _neighbours(x, breadth)
                            y0, y1, wy0, wy1, _, _ = _neighbours(y, height)
                            upper = level + y0 * breadth * strides[1]
                            lower = level + y1 * breadth * strides[1]
                            wy0 *= weight
                            wy1 *= weight
                            total = multiply_add(total, wy0 * wx0, load_row(upper + x0 * strides[1], storage, width))
                            total = multiply_add(total, wy0 * wx1, load_row(upper + x1 * strides[1], storage, width))
                            total = multiply_add(total, wy1 * wx0, load_row(lower + x0 * strides[1], storage, width))
                            total = multiply_add(total, wy1 * wx1, load_row(lower + x1 * strides[1], storage, width))
                store_row(out.ctypes.data + ((row * heads + m) * channels + channel) * element, total)


@njit(**COMPILE)
def _backward_level(
    value, strides, levels, locations, weights, grad_out, grad_value, grad_locations, grad_weights, needs,
    task, channels, width, storage, compute,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """All gradients that flow through one (image, head, level): nobody else writes where this writes."""
    width = literally(width)
    storage = literally(storage)
    compute = literally(compute)
    queries, heads, num_levels, points = locations.shape[1:5]
    tokens = grad_value.shape[1]
    n = task // (heads * num_levels)
    m = task // num_levels % heads
    l = task % num_levels
    element = locations.itemsize
    zero = locations.dtype.type(0)
    half = locations.dtype.type(0.5)
    height, breadth, start = levels[l]
    level = value + n * strides[0] + start * strides[1] + m * strides[2]
    grad_step = heads * channels * element
    grad_level = grad_value.ctypes.data + (n * tokens + start) * grad_step + m * channels * element
    for q in range(queries):
        grad_row = grad_out.ctypes.data + ((n * queries + q) * heads + m) * channels * element
        for p in range(points):
            x = locations[n, q, m, l, p, 0] * locations.dtype.type(breadth) - half
            y = locations[n, q, m, l, p, 1] * locations.dtype.type(height) - half
            if not (x > -1 and y > -1 and x < breadth and y < height):
                if needs[1]:
                    grad_locations[n, q, m, l, p, 0] = zero
                    grad_locations[n, q, m, l, p, 1] = zero
                if needs[2]:
                    grad_weights[n, q, m, l, p] = zero
                continue
            weight = weights[n, q, m, l, p]
            x0, x1, wx0, wx1, sx0, sx1 = _neighbours(x, breadth)
            y0, y1, wy0, wy1, sy0, sy1 = _neighbours(y, height)
            t00 = y0 * breadth + x0
            t01 = y0 * breadth + x1
            t10 = y1 * breadth + x0
            t11 = y1 * breadth + x1
            d00 = d01 = d10 = d11 = zero
            for channel in range(0, channels, width):
                grad = load_row(grad_row + channel * element, compute, width)
                if needs[1] or needs[2]:
                    rows = level + channel * strides[3]
                    d00 += dot(grad, load_row(rows + t00 * strides[1], storage, width))
                    d01 += dot(grad, load_row(rows + t01 * strides[1], storage, width))
                    d10 += dot(grad, load_row(rows + t10 * strides[1], storage, width))
                    d11 += dot(grad, load_row(rows + t11 * strides[1], storage, width))
                if needs[0]:
                    rows = grad_level + channel * element
                    a00 = rows + t00 * grad_step
                    a01 = rows + t01 * grad_step
                    a10 = rows + t10 * grad_step
                    a11 = rows + t11 * grad_step
                    store_row(a00, multiply_add(load_row(a00, compute, width), weight * wy0 * wx0, grad))
                    store_row(a01, multiply_add(load_row(a01, compute, width), weight * wy0 * wx1, grad))
                    store_row(a10, multiply_add(load_row(a10, compute, width), weight * wy1 * wx0, grad))
                    store_row(a11, multiply_add(load_row(a11, compute, width), weight * wy1 * wx1, grad))
            upper = wx0 * d00 + wx1 * d01
            lower = wx0 * d10 + wx1 * d11
            if needs[1]:
                along_x = wy0 * (sx0 * d00 + sx1 * d01) + wy1 * (sx0 * d10 + sx1 * d11)
                along_y = sy0 * upper + sy1 * lower
                grad_locations[n, q, m, l, p, 0] = weight * locations.dtype.type(breadth) * along_x
                grad_locations[n, q, m, l, p, 1] = weight * locations.dtype.type(height) * along_y
            if needs[2]:
                grad_weights[n, q, m, l, p] = wy0 * upper + wy1 * lower


# ---------------------------------------------------------------------------------------------------------------------
# Kernels for one number of channels and one storage type. Both are closures over plain numbers and strings, which
# numba's cache recognises in the next process. Serial and parallel are separate functions because the cache does not
# tell apart one function compiled both ways.


def _width(channels: int) -> int:
    return max(width for width in range(1, MAX_WIDTH + 1) if channels % width == 0)


@functools.cache
def _forward_kernels(channels: int, storage: str) -> tuple[Callable[..., None], Callable[..., None]]:
    width = _width(channels)

    @njit(cache=True, **COMPILE)
    def serial(value, strides, levels, locations, weights, out):  # type: ignore[no-untyped-def]
        rows = locations.shape[0] * locations.shape[1]
        _forward_rows(value, strides, levels, locations, weights, out, 0, rows, channels, width, storage)

    @njit(cache=True, parallel=True, **COMPILE)
    def parallel(value, strides, levels, locations, weights, out):  # type: ignore[no-untyped-def]
        rows = locations.shape[0] * locations.shape[1]
        for tile in prange((rows + TILE - 1) // TILE):
            first = tile * TILE
            last = min(first + TILE, rows)
            _forward_rows(value, strides, levels, locations, weights, out, first, last, channels, width, storage)

    return serial, parallel


@functools.cache
def _backward_kernels(channels: int, storage: str) -> tuple[Callable[..., None], Callable[..., None]]:
    width = _width(channels)
    compute = "float64" if storage == "float64" else "float32"

    @njit(cache=True, **COMPILE)
    def serial(
        value, strides, levels, locations, weights, grad_out, grad_value, grad_locations, grad_weights, needs
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        for task in range(locations.shape[0] * locations.shape[2] * locations.shape[3]):
            _backward_level(
                value, strides, levels, locations, weights, grad_out, grad_value, grad_locations, grad_weights, needs,
                task, channels, width, storage, compute,
            )  # fmt: skip

    @njit(cache=True, parallel=True, **COMPILE)
    def parallel(
        value, strides, levels, locations, weights, grad_out, grad_value, grad_locations, grad_weights, needs
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        for task in prange(locations.shape[0] * locations.shape[2] * locations.shape[3]):
            _backward_level(
                value, strides, levels, locations, weights, grad_out, grad_value, grad_locations, grad_weights, needs,
                task, channels, width, storage, compute,
            )  # fmt: skip

    return serial, parallel


# ---------------------------------------------------------------------------------------------------------------------
# From tensors to kernels


_team = threading.Lock()
"""Held while the threads of numba are at work: not every threading layer survives two callers at once."""

_forked = False


def _after_fork() -> None:
    global _forked, _team
    _forked = True  # threads do not survive a fork, and GNU OpenMP aborts a child that asks for them again
    _team = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _launch(kernels: tuple[Callable[..., None], Callable[..., None]], work: int, *arguments: Any) -> None:
    """Runs the parallel kernel on as many threads as torch uses, or the serial one where that is better or safer."""
    serial, parallel = kernels
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads == 1 or work < SERIAL_BELOW or _forked or not _team.acquire(blocking=False):
        serial(*arguments)
        return
    try:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        parallel(*arguments)
        numba.set_num_threads(before)
    finally:
        _team.release()


@functools.lru_cache(maxsize=256)
def _levels(shapes: tuple[int, ...]) -> np.ndarray:
    """(L, 3): height, width and first token of each level."""
    sizes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
    ends = sizes.prod(1).cumsum()
    return np.column_stack([sizes, ends - sizes.prod(1)])


def _rows(value: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
    """``value`` with contiguous channels, and its strides in bytes."""
    if value.stride(3) != 1:
        value = value.contiguous()
    size = value.element_size()
    n, s, m, _ = value.stride()
    return value, (n * size, s * size, m * size, size)


def forward(value: Tensor, shapes: tuple[int, ...], locations: Tensor, weights: Tensor) -> Tensor:
    """(B, S, M, D), (h, w, h, w, ...), (B, Q, M, L, P, 2), (B, Q, M, L, P) -> (B, Q, M*D) in the type of ``value``."""
    batch, queries, heads, num_levels, points, _ = locations.shape
    channels = value.shape[3]
    value, strides = _rows(value)
    out = locations.new_empty(batch, queries, heads * channels)
    _launch(
        _forward_kernels(channels, STORAGE[value.dtype]),
        weights.numel() * channels,
        value.data_ptr(),
        strides,
        _levels(shapes),
        locations.detach().contiguous().numpy(),
        weights.detach().contiguous().numpy(),
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
    """Gradients of value, locations and weights; an empty tensor for each that is not needed."""
    channels = value.shape[3]
    value, strides = _rows(value)
    grad_value = locations.new_zeros(value.shape) if needs[0] else locations.new_empty(0, value.shape[1], 0, 0)
    grad_locations = torch.empty_like(locations, memory_format=torch.contiguous_format) if needs[1] else locations.new_empty((0,) * 6)
    grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format) if needs[2] else locations.new_empty((0,) * 5)
    _launch(
        _backward_kernels(channels, STORAGE[value.dtype]),
        2 * weights.numel() * channels,
        value.data_ptr(),
        strides,
        _levels(shapes),
        locations.detach().contiguous().numpy(),
        weights.detach().contiguous().numpy(),
        grad_out.detach().to(locations.dtype).contiguous().numpy(),
        grad_value.numpy(),
        grad_locations.numpy(),
        grad_weights.numpy(),
        needs,
    )
    return grad_value.to(value.dtype), grad_locations, grad_weights
