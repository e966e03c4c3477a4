"""Multi-scale deformable attention on the CPU: compiles the kernels and calls them. See the README of this folder."""
# numba infers the types of what it compiles:
# mypy: allow-untyped-defs, disable-error-code="attr-defined"

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from detrs.ops import numba_compilation, numba_memory, numba_simd, threads
from detrs.ops.ms_deform_attn import numba_backward, numba_forward, numba_problem, numba_samples
from detrs.ops.ms_deform_attn.inputs import Gradients, Inputs, Needs
from detrs.ops.ms_deform_attn.numba_backward import query_gradients, value_gradient
from detrs.ops.ms_deform_attn.numba_forward import forward as _forward
from detrs.ops.ms_deform_attn.numba_problem import (
    COMPILE,
    PROBLEM,
    Problem,
    build,
    bytes_of_workspace,
    num_tasks,
    tables,
    tiles,
)
from detrs.ops.numba_compilation import Kernel
from detrs.ops.numba_memory import LANES

STORAGE = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float64: "float64"}
"""Dtype of ``value`` in memory. Half precision is widened to float32 as it is loaded."""

MAX_WIDTH = 128
"""Channels in one vector. A larger D is divided into equal parts; a prime one into single channels, which is slow."""

PACK_FROM = 4
"""Samples of a head per token from which on a copy of ``value`` is faster than the value itself."""

SERIAL_BELOW = 100_000
"""Samples times channels below which waking the threads costs more than they save: about 50 microseconds of work."""


# Each kernel is compiled per number of channels and dtype, as a C function without Python in it. Kernels are closures
# over numbers, strings and types, which numba's cache recognizes in the next process; it does not recognize functions.

_MODULES = (numba_simd, numba_memory, numba_problem, numba_samples, numba_forward, numba_backward)
_VERSION = numba_compilation.version((*(module.__file__ for module in _MODULES), __file__))


def _compile(function: Callable[[Any], None], channels: int, storage: str) -> Kernel:
    return numba_compilation.compiled(function, PROBLEM, f"{channels}-{storage}", COMPILE)


def _dtypes(storage: str) -> tuple[str, type]:
    """The dtype to compute in, as a name and as a type."""
    return ("float64", np.float64) if storage == "float64" else ("float32", np.float32)


def _width(channels: int) -> int:
    return max(width for width in range(1, MAX_WIDTH + 1) if channels % width == 0)


@functools.cache
def _forward_kernel(channels: int, storage: str) -> Kernel:
    width, bits, version = _width(channels), int(storage[-2:]), _VERSION
    compute, real = _dtypes(storage)

    def kernel(problem):
        version  # noqa: B018
        _forward(carray(problem, 1)[0], channels, width, storage, compute, real, bits)

    return _compile(kernel, channels, storage)


@functools.cache
def _query_kernel(channels: int, storage: str) -> Kernel:
    width, version = _width(channels), _VERSION
    compute, real = _dtypes(storage)

    def kernel(problem):
        version  # noqa: B018
        query_gradients(carray(problem, 1)[0], channels, width, storage, compute, real)

    return _compile(kernel, channels, storage)


@functools.cache
def _value_kernel(channels: int, storage: str) -> Kernel:
    width, version = _width(channels), _VERSION
    compute, real = _dtypes(storage)

    def kernel(problem):
        version  # noqa: B018
        value_gradient(carray(problem, 1)[0], channels, width, compute, real)

    return _compile(kernel, channels, storage)


def _run(kernel: Kernel, problem: Problem, num_tasks: int, workspace_bytes: int) -> None:
    """Runs all tasks, on as many threads as PyTorch uses or on one if that is faster. The bits are the same."""
    work = problem.batch * problem.num_queries * problem.num_heads * problem.num_samples * problem.num_channels
    num_threads = max(min(torch.get_num_threads(), num_tasks), 1) if work >= SERIAL_BELOW else 1
    workspaces = torch.empty(num_threads, workspace_bytes, dtype=torch.uint8)
    problem.next_task = problem.next_workspace = 0
    problem.num_tasks, problem.workspaces, problem.workspace_bytes = num_tasks, workspaces.data_ptr(), workspace_bytes
    threads.run(kernel, problem.address, num_threads)


def _contiguous(inputs: Inputs) -> Inputs:
    """Contiguous tensors; of ``value`` only the channels of a head have to be contiguous. Padding that is all False is
    dropped."""
    value, shapes, points, *others, padding = inputs
    value = value if value.stride(3) == 1 else value.contiguous()
    padding = padding if padding is not None and bool(padding.any()) else None
    tensors: list[Any] = [None if tensor is None else tensor.contiguous() for tensor in (*others, padding)]
    return Inputs(value, shapes, points, *tensors)


def _packed(inputs: Inputs) -> Inputs:
    """If many samples read ``value``: a copy with the pixels of a head side by side, and with zeros for padding."""
    value, padding = inputs.value, inputs.padding
    _, num_tokens, _, channels = value.shape
    if inputs.locations.shape[1] * inputs.locations.shape[3] < PACK_FROM * num_tokens:
        return inputs
    if padding is None and value.stride(1) == channels:
        return inputs
    packed = value.transpose(1, 2).clone(memory_format=torch.contiguous_format)  # (B, M, S, D)
    if padding is not None:
        for image, of_image in zip(packed, padding, strict=True):
            image.index_fill_(1, of_image.nonzero()[:, 0], 0)
    return inputs._replace(value=packed.transpose(1, 2), padding=None)


def forward(inputs: Inputs) -> Tensor:
    """See ``operator.ms_deform_attn``."""
    inputs = _packed(_contiguous(inputs))
    value, locations = inputs.value, inputs.locations
    batch, _, num_heads, channels = value.shape
    out = locations.new_empty(batch, locations.shape[1], num_heads * channels)
    of_levels = tables(inputs.shapes, inputs.points, locations.dtype)
    of_queries = tiles(inputs.shapes, locations.shape[1])
    problem = build(inputs, of_levels, of_queries)
    problem.out = out.data_ptr()
    kernel = _forward_kernel(channels, STORAGE[value.dtype])
    _run(kernel, problem, num_tasks(problem), bytes_of_workspace(problem.num_samples))
    return out.to(value.dtype)


def backward(grad_out: Tensor, inputs: Inputs, needs: Needs) -> Gradients:
    """See ``operator.ms_deform_attn_backward``."""
    inputs = _contiguous(inputs)
    packed, padding = _packed(inputs), inputs.padding
    value, shapes, points, locations, weights, reference_points, _ = packed
    batch, _, num_heads, channels = value.shape
    upstream = grad_out.to(locations.dtype).contiguous()
    # The gradient of reference points is computed per head, and then summed.
    of_points = None if reference_points is None else reference_points[:, :, None].expand(-1, -1, num_heads, -1, -1)
    grads = [
        torch.empty(0 if tensor is None or not needed else tensor.shape, dtype=locations.dtype)
        for tensor, needed in zip((value, locations, weights, of_points), needs, strict=True)
    ]
    # Three tensors, because glibc maps new pages for each allocation of more than 32 MiB, which took 13 ms here.
    samples = [torch.empty(weights.numel() if needs[0] else 0, dtype=weights.dtype) for _ in range(3)]
    of_levels, of_queries = tables(shapes, points, locations.dtype), tiles(shapes, locations.shape[1])
    problem = build(packed, of_levels, of_queries)
    problem.grad_out = upstream.data_ptr()
    problem.sample_weights, problem.sample_x, problem.sample_y = (tensor.data_ptr() for tensor in samples)
    problem.grad_value, problem.grad_locations, problem.grad_weights, problem.grad_reference_points = (
        grad.data_ptr() for grad in grads
    )
    kernel = _query_kernel(channels, STORAGE[value.dtype])
    _run(kernel, problem, num_tasks(problem), bytes_of_workspace(problem.num_samples))
    if needs[0]:
        problem.padding, problem.is_padded = 0 if padding is None else padding.data_ptr(), padding is not None
        kernel = _value_kernel(channels, STORAGE[value.dtype])
        accumulator_bytes = problem.largest_level * channels * upstream.element_size()
        num_of_levels = problem.num_levels * batch * num_heads
        _run(kernel, problem, num_of_levels, bytes_of_workspace(LANES) + accumulator_bytes)
    if needs[3] and reference_points is not None:
        grads[3] = grads[3].sum(2)
    return grads[0].to(value.dtype), grads[1], grads[2], grads[3]
