"""CPU kernels, compiled by numba: activation, residual and normalization together with their dropout.

Each is one pass over memory, row by row. PyTorch's own operators make about eight passes, and draw one random number
per element on one thread.
"""
# numba infers the types of what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators
# mypy: disable-error-code="attr-defined, call-arg, operator, var-annotated"

import ctypes
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import carray, njit, types
from torch import Tensor

from detrs.ops import numba_compilation, numba_memory, threads
from detrs.ops.dropout import numba_elements, reference
from detrs.ops.dropout.numba_elements import is_kept, key_of_row, narrow, widen
from detrs.ops.numba_compilation import Kernel
from detrs.ops.numba_memory import fetch_and_add, pointer

DTYPES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
TASK = 16_384
"""Elements per task, about 64 KiB of each tensor."""
SERIAL_BELOW = 50_000
"""Elements below which waking the threads costs more than they save."""

# Sums may be reordered, so that LLVM computes them with vectors; arithmetic with NaN and infinity is exact. All code of
# a kernel is one function: otherwise the process that compiles a kernel calls functions that LLVM has optimized alone,
# and later processes call the copies in the cached file, whose sums may have another order.
COMPILE: dict[str, Any] = {
    "fastmath": {"reassoc", "nsz", "contract"},
    "error_model": "numpy",
    "boundscheck": False,
    "forceinline": True,
}


class Problem(ctypes.Structure):
    """One call of a kernel, by one or several threads. Addresses are those of contiguous tensors (rows, columns)."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                "address",  # of this structure
                "next_task", "num_tasks", "rows_per_task",  # work queue
                "rows", "columns",
                "seed", "threshold",  # which elements are kept; see ``reference.kept``
                "x", "update", "total", "out",
                "weight", "bias", "mean", "inverse",  # of the normalization, in the type to compute in
                "grad_out", "grad_x", "grad_update",
                "grad_affine",  # (tasks, 2, columns): part of the gradient of weight and bias from each task
            )
        ),
        ("scale", ctypes.c_double), ("eps", ctypes.c_double),
    ]  # fmt: skip


PROBLEM = types.CPointer(numba.from_dtype(np.dtype(Problem)))
NEXT_TASK = Problem.next_task.offset


@njit(**COMPILE)
def next_rows(problem):
    """Number of the next task, its first row and the end of its rows; empty if no task is left."""
    task = fetch_and_add(problem.address + NEXT_TASK, 1)
    return task, task * problem.rows_per_task, min((task + 1) * problem.rows_per_task, problem.rows)


@njit(**COMPILE)
def matrix(problem, address, element):
    return carray(pointer(address), (problem.rows, problem.columns), element)


@njit(**COMPILE)
def vector(address, size, real):
    return carray(pointer(address), size, real)


@njit(**COMPILE)
def relu_dropout(problem, storage, element, real):
    """``x <- dropout(relu(x))``. NaN remains where it is kept."""
    values = matrix(problem, problem.x, element)
    scale, threshold, zero = real(problem.scale), problem.threshold, real(0)
    _, row, end = next_rows(problem)
    while row < end:
        for i in range(row, end):
            key, x = key_of_row(problem.seed, i), values[i]
            for j in range(problem.columns):
                number = widen(x[j], storage)
                number = zero if number <= zero else number * scale
                x[j] = narrow(number if is_kept(key, j, threshold) else zero, storage)
        _, row, end = next_rows(problem)


@njit(**COMPILE)
def relu_dropout_backward(problem, storage, element, real):
    """Gradient of the input, given the result as ``x``: an element that was dropped is zero like a negative one."""
    results, grads_out = matrix(problem, problem.x, element), matrix(problem, problem.grad_out, element)
    grads = matrix(problem, problem.grad_x, element)
    scale, zero = real(problem.scale), real(0)
    _, row, end = next_rows(problem)
    while row < end:
        for i in range(row, end):
            x, grad_out, grad = results[i], grads_out[i], grads[i]
            for j in range(problem.columns):
                number = widen(grad_out[j], storage) * scale
                grad[j] = narrow(zero if widen(x[j], storage) <= zero else number, storage)
        _, row, end = next_rows(problem)


@njit(**COMPILE)
def drop(problem, storage, element, real):
    """``out <- dropout(x)``."""
    xs, outs = matrix(problem, problem.x, element), matrix(problem, problem.out, element)
    scale, threshold, zero = real(problem.scale), problem.threshold, real(0)
    _, row, end = next_rows(problem)
    while row < end:
        for i in range(row, end):
            key, x, out = key_of_row(problem.seed, i), xs[i], outs[i]
            for j in range(problem.columns):
                number = widen(x[j], storage) * scale
                out[j] = narrow(number if is_kept(key, j, threshold) else zero, storage)
        _, row, end = next_rows(problem)


@njit(**COMPILE)
def softmax_dropout_backward(problem, storage, element, real):
    """``grad_x`` of logits, in place of the gradient of ``dropout(x)``, where ``x`` is their softmax."""
    xs, grads = matrix(problem, problem.x, element), matrix(problem, problem.grad_x, element)
    scale, threshold, zero = real(problem.scale), problem.threshold, real(0)
    _, row, end = next_rows(problem)
    while row < end:
        for i in range(row, end):
            key, x, grad, mean = key_of_row(problem.seed, i), xs[i], grads[i], real(0)
            for j in range(problem.columns):
                number = widen(grad[j], storage) * scale
                number = number if is_kept(key, j, threshold) else zero
                grad[j] = narrow(number, storage)
                mean += widen(x[j], storage) * number
            for j in range(problem.columns):
                grad[j] = narrow(widen(x[j], storage) * (widen(grad[j], storage) - mean), storage)
        _, row, end = next_rows(problem)


@njit(**COMPILE)
def add_norm(problem, storage, element, real):
    """``out <- norm(total)`` and its statistics, where ``total <- x + dropout(update)``."""
    columns, threshold, scale, eps = problem.columns, problem.threshold, real(problem.scale), real(problem.eps)
    xs, updates = matrix(problem, problem.x, element), matrix(problem, problem.update, element)
    totals, outs = matrix(problem, problem.total, element), matrix(problem, problem.out, element)
    means, inverses = vector(problem.mean, problem.rows, real), vector(problem.inverse, problem.rows, real)
    weight, bias = vector(problem.weight, columns, real), vector(problem.bias, columns, real)
    _, row, end = next_rows(problem)
    while row < end:
        for i in range(row, end):
            x, update, total, out = xs[i], updates[i], totals[i], outs[i]
            key, sum_of_all = key_of_row(problem.seed, i), real(0)
            for j in range(columns):
                number = widen(update[j], storage) * scale
                number = number if is_kept(key, j, threshold) else real(0)
                total[j] = narrow(widen(x[j], storage) + number, storage)
            for j in range(columns):
                sum_of_all += widen(total[j], storage)
            mean, square = sum_of_all / real(columns), real(0)
            for j in range(columns):
                centered = widen(total[j], storage) - mean
                square += centered * centered
            inverse = real(1) / np.sqrt(square / real(columns) + eps)
            for j in range(columns):
                normal = (widen(total[j], storage) - mean) * inverse
                out[j] = narrow(normal * weight[j] + bias[j], storage)
            means[i], inverses[i] = mean, inverse
        _, row, end = next_rows(problem)


@njit(**COMPILE)
def add_norm_backward(problem, storage, element, real):
    """Gradients of ``x``, ``update``, weight and bias."""
    columns, threshold, scale = problem.columns, problem.threshold, real(problem.scale)
    totals, grads_out = matrix(problem, problem.total, element), matrix(problem, problem.grad_out, element)
    grads_x, grads_update = matrix(problem, problem.grad_x, element), matrix(problem, problem.grad_update, element)
    means, inverses = vector(problem.mean, problem.rows, real), vector(problem.inverse, problem.rows, real)
    weight = vector(problem.weight, columns, real)
    affine = carray(pointer(problem.grad_affine), (problem.num_tasks, 2, columns), real)
    task, row, end = next_rows(problem)
    while row < end:
        grad_weight, grad_bias = affine[task, 0], affine[task, 1]
        grad_weight[:], grad_bias[:] = 0, 0
        for i in range(row, end):
            total, grad_out, grad_x, grad_update = totals[i], grads_out[i], grads_x[i], grads_update[i]
            mean, inverse, first, second = means[i], inverses[i], real(0), real(0)
            for j in range(columns):
                upstream, normal = widen(grad_out[j], storage), (widen(total[j], storage) - mean) * inverse
                grad_weight[j] += upstream * normal
                grad_bias[j] += upstream
                first += upstream * weight[j]
                second += upstream * weight[j] * normal
            first, second = first / real(columns), second / real(columns)
            key = key_of_row(problem.seed, i)
            for j in range(columns):
                normal = (widen(total[j], storage) - mean) * inverse
                grad = (widen(grad_out[j], storage) * weight[j] - first - normal * second) * inverse
                grad_x[j] = narrow(grad, storage)
                grad_update[j] = narrow(grad * scale if is_kept(key, j, threshold) else real(0), storage)
        task, row, end = next_rows(problem)


# Compilation; numba does not recognize functions that a kernel captures, so each kernel is written out.

_VERSION = numba_compilation.version(
    (__file__, *(module.__file__ for module in (numba_elements, numba_memory, reference)))
)


def _types(storage: str) -> tuple[type, type]:
    """Dtypes of an element in memory and of the arithmetic."""
    real = np.float64 if storage == "float64" else np.float32
    return np.uint16 if storage in ("float16", "bfloat16") else real, real


def _compiled(function: Callable[[Any], None], storage: str) -> Kernel:
    return numba_compilation.compiled(function, PROBLEM, storage, COMPILE)


@functools.cache
def _relu_dropout(storage: str) -> Kernel:
    (element, real), version = _types(storage), _VERSION

    def kernel(problem):
        version  # noqa: B018
        relu_dropout(carray(problem, 1)[0], storage, element, real)

    return _compiled(kernel, storage)


@functools.cache
def _relu_dropout_backward(storage: str) -> Kernel:
    (element, real), version = _types(storage), _VERSION

    def kernel(problem):
        version  # noqa: B018
        relu_dropout_backward(carray(problem, 1)[0], storage, element, real)

    return _compiled(kernel, storage)


@functools.cache
def _dropout(storage: str) -> Kernel:
    (element, real), version = _types(storage), _VERSION

    def kernel(problem):
        version  # noqa: B018
        drop(carray(problem, 1)[0], storage, element, real)

    return _compiled(kernel, storage)


@functools.cache
def _softmax_dropout_backward(storage: str) -> Kernel:
    (element, real), version = _types(storage), _VERSION

    def kernel(problem):
        version  # noqa: B018
        softmax_dropout_backward(carray(problem, 1)[0], storage, element, real)

    return _compiled(kernel, storage)


@functools.cache
def _add_norm(storage: str) -> Kernel:
    (element, real), version = _types(storage), _VERSION

    def kernel(problem):
        version  # noqa: B018
        add_norm(carray(problem, 1)[0], storage, element, real)

    return _compiled(kernel, storage)


@functools.cache
def _add_norm_backward(storage: str) -> Kernel:
    (element, real), version = _types(storage), _VERSION

    def kernel(problem):
        version  # noqa: B018
        add_norm_backward(carray(problem, 1)[0], storage, element, real)

    return _compiled(kernel, storage)


# Calls


def _run(kernel: Callable[[str], Kernel], x: Tensor, rate: float, **fields: Any) -> None:
    """Runs all tasks, on as many threads as PyTorch uses or on one if that is faster. The results are the same."""
    columns = x.shape[-1]
    problem = Problem(rows=x.numel() // max(columns, 1), columns=columns, x=x.data_ptr())
    problem.address = ctypes.addressof(problem)
    problem.threshold, problem.scale = reference.threshold(rate), reference.scale(rate)
    problem.rows_per_task, problem.num_tasks = _tasks(problem.rows, columns)
    for name, value in fields.items():
        setattr(problem, name, value.data_ptr() if isinstance(value, Tensor) else value)
    num_threads = min(torch.get_num_threads(), problem.num_tasks) if x.numel() >= SERIAL_BELOW else 1
    threads.run(kernel(DTYPES[x.dtype]), problem.address, num_threads)


def _tasks(rows: int, columns: int) -> tuple[int, int]:
    """Rows per task, and the number of tasks: functions of the size alone, so that sums do not depend on threads."""
    rows_per_task = max(TASK // max(columns, 1), 1)
    return rows_per_task, -(-rows // rows_per_task)


def _real(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def relu_dropout_(x: Tensor, rate: float, seed: int) -> None:
    """ReLU and dropout in place; ``x`` is contiguous."""
    _run(_relu_dropout, x, rate, seed=seed)


def relu_dropout_gradient(grad_out: Tensor, result: Tensor, rate: float) -> Tensor:
    """Gradient of the input of ``relu_dropout_``, given its result."""
    grad_x = torch.empty_like(result)
    _run(_relu_dropout_backward, result, rate, grad_out=grad_out.contiguous(), grad_x=grad_x)
    return grad_x


def dropout(x: Tensor, out: Tensor, rate: float, seed: int) -> None:
    """``out <- dropout(x)``; both are contiguous."""
    _run(_dropout, x, rate, seed=seed, out=out)


def softmax_dropout_gradient_(grad: Tensor, probabilities: Tensor, rate: float, seed: int) -> Tensor:
    """Gradient of the logits of softmax and dropout, in place of that of the result; both are contiguous."""
    _run(_softmax_dropout_backward, probabilities, rate, seed=seed, grad_x=grad)
    return grad


class Statistics(NamedTuple):
    """What the gradient of a normalized sum is computed from."""

    total: Tensor
    """The sum that was normalized."""
    mean: Tensor
    inverse: Tensor
    """Of the standard deviation, like ``mean`` one per row."""


def normalized_sum(
    x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, eps: float, rate: float, seed: int
) -> tuple[Tensor, Statistics]:
    """Layer normalization of ``x + dropout(update)``; both are contiguous and of one dtype."""
    real = _real(x.dtype)
    out = torch.empty_like(x)
    mean, inverse = torch.empty(2, x.numel() // max(x.shape[-1], 1), dtype=real)
    statistics = Statistics(torch.empty_like(x), mean, inverse)
    affine = {"weight": weight.to(real), "bias": bias.to(real)}  # kept until the kernel has run
    _run(_add_norm, x, rate, seed=seed, eps=eps, update=update, out=out, **statistics._asdict(), **affine)
    return out, statistics


def normalized_sum_gradients(
    grad_out: Tensor, statistics: Statistics, weight: Tensor, rate: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, of ``update``, and of weight and bias, (2, C)."""
    total, real = statistics.total, _real(statistics.total.dtype)
    grad_x, grad_update = torch.empty_like(total), torch.empty_like(total)
    grad_affine = torch.empty(_tasks(len(statistics.mean), total.shape[-1])[1], 2, total.shape[-1], dtype=real)
    fields = {"grad_out": grad_out.contiguous(), "grad_x": grad_x, "grad_update": grad_update}
    affine = {"weight": weight.to(real), "grad_affine": grad_affine}
    _run(_add_norm_backward, total, rate, seed=seed, **fields, **affine, **statistics._asdict())
    return grad_x, grad_update, grad_affine.sum(0)
