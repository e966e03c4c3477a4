"""What the CPU kernels work on: sizes, addresses of tensors, and memory for each thread.

Kernels run without Python, so all of it is in one ctypes structure. ``real`` is the dtype of the locations, float32 or
float64, as numpy has it; ``compute`` is its name.
"""
# numba infers the types of what it compiles, and calls an intrinsic without the first parameter of its Python function:
# mypy: allow-untyped-defs, allow-untyped-decorators
# mypy: disable-error-code="attr-defined, call-arg, operator, var-annotated"

import ctypes
import functools
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import carray, njit, types

from detrs.ops.ms_deform_attn.inputs import Inputs
from detrs.ops.numba_memory import LANES, fetch_and_add, load_vector, pointer
from detrs.structures import Shapes

TILE = 32
"""Queries per task."""

PREFETCH_FROM = 4
"""Tokens per query above which pixels are prefetched: few samples rarely find their pixels in the caches."""

# No fast math: NaN and infinity must survive, and the same source must give the same bits wherever it is compiled.
# ``multiply_add`` marks where a product and a sum may be fused.
COMPILE: dict[str, Any] = {"fastmath": False, "error_model": "numpy", "boundscheck": False}


class Problem(ctypes.Structure):
    """One call of a kernel, by one or several threads."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "address",  # of this structure
            "next_task", "num_tasks",  # work queue: each thread takes the next task until none is left
            "next_workspace", "workspaces", "workspace_bytes",  # one per thread: address of the first, size of each
            "batch", "num_tokens", "num_heads", "num_channels", "num_queries", "num_samples", "num_levels",
            "largest_level",  # tokens of the largest level
            "value", "image_stride", "token_stride", "head_stride", "channel_stride",  # address, and strides in bytes
            "level_table", "size_table", "token_table",  # see ``Tables``
            "locations",  # (B, Q, M, K, 2) real
            "weights",  # (B, Q, M, K) real
            "reference_points", "reference_dim",  # (B, Q, L, reference_dim) real; 0: weights and locations as they are
            "padding", "is_padded",  # (B, S) bytes, if it is
            "prefetches",  # whether pixels are prefetched
            "out",  # (B, Q, M, D) real
            # For gradients, 0 where not needed:
            "grad_out", "grad_value", "grad_locations", "grad_weights", "grad_reference_points",  # shaped as the inputs
            "sample_weights", "sample_x", "sample_y",  # (B, M, Q*K) real, ordered by level: weight and position
        )
    ]  # fmt: skip


PROBLEM = types.CPointer(numba.from_dtype(np.dtype(Problem)))
NEXT_TASK, NEXT_WORKSPACE = Problem.next_task.offset, Problem.next_workspace.offset


# Built from tensors


class Tables(NamedTuple):
    """What is the same for all queries. K is the number of samples of a head, over all levels."""

    sizes: np.ndarray
    """(2, K + LANES) real: width and height of the level of each sample."""
    tokens: np.ndarray
    """(2, K + LANES) int32: width of the level of each sample, and its first token."""
    levels: np.ndarray
    """(L, 5) int64: height, width, first token, first sample, number of samples of each level."""
    largest: int
    """Tokens of the largest level."""


@functools.lru_cache(maxsize=256)
def tables(shapes: Shapes, points: tuple[int, ...], dtype: torch.dtype) -> Tables:
    sizes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
    areas, counts = sizes.prod(axis=1), np.array(points, dtype=np.int64)
    levels = np.column_stack([sizes, areas.cumsum() - areas, counts.cumsum() - counts, counts])
    of_samples = np.pad(levels.repeat(counts, axis=0), ((0, LANES), (0, 0)), mode="constant", constant_values=1)
    real = np.float64 if dtype == torch.float64 else np.float32
    return Tables(
        np.ascontiguousarray(of_samples[:, [1, 0]].T, dtype=real),
        np.ascontiguousarray(of_samples[:, [1, 2]].T, dtype=np.int32),
        levels,
        int(areas.max()),
    )


def build(inputs: Inputs, tables: Tables) -> Problem:
    """The part that forward and backward share. It points into the memory of its arguments, which must outlive it."""
    value, _, _, locations, weights, reference_points, padding = inputs
    batch, num_tokens, num_heads, num_channels = value.shape
    num_queries, num_samples = locations.shape[1], locations.shape[3]
    image, token, head, channel = (stride * value.element_size() for stride in value.stride())
    problem = Problem(
        batch=batch, num_tokens=num_tokens, num_heads=num_heads, num_channels=num_channels,
        num_queries=num_queries, num_samples=num_samples,
        num_levels=len(tables.levels), largest_level=tables.largest,
        value=value.data_ptr(), image_stride=image, token_stride=token, head_stride=head, channel_stride=channel,
        level_table=tables.levels.ctypes.data, size_table=tables.sizes.ctypes.data,
        token_table=tables.tokens.ctypes.data,
        locations=locations.data_ptr(), weights=weights.data_ptr(),
        reference_points=0 if reference_points is None else reference_points.data_ptr(),
        reference_dim=inputs.reference_dim,
        padding=0 if padding is None else padding.data_ptr(), is_padded=padding is not None,
        prefetches=num_queries * PREFETCH_FROM < num_tokens,
    )  # fmt: skip
    problem.address = ctypes.addressof(problem)
    return problem


def num_tiles(problem: Problem) -> int:
    """Tasks of kernels that work on tiles of queries."""
    return -(-problem.batch * problem.num_queries // TILE)


# Read by kernels


class Views(NamedTuple):
    """Arrays of a problem that are read element by element."""

    levels: np.ndarray
    reference_points: np.ndarray
    padding: np.ndarray


class Samples(NamedTuple):
    """The samples of one head, in a workspace: views of memory, because numba counts references to its own arrays."""

    real: np.ndarray
    """(13, K + LANES) real: rows ``WEIGHT`` to ``GRAD_SUM + 3``."""
    token: np.ndarray
    """(5, K + LANES) int32: the pixels around each sample (top left, top right, bottom left, bottom right) and
    ``PADDED``, which of them are padding, one bit each."""
    dots: np.ndarray
    """(K + LANES, 4) real: inner products of these pixels with the upstream gradient."""


WEIGHT, X, Y, IN_BOUNDS, CORNER_WEIGHT, GRAD_WEIGHT, GRAD_SUM = 0, 1, 2, 3, 4, 8, 9
"""Rows of ``Samples.real``: attention weight; position; nonzero if the sample touches a pixel; bilinear times attention
weight of the four pixels; gradient of the attention weight; gradients of position and scale, summed over heads."""
NUM_REAL = 13
PADDED = 4
"""Row of ``Samples.token``."""
SAMPLE_ROWS = NUM_REAL + 8
"""8-byte rows of one ``Samples``."""

ORIGIN_X, SCALE_X, ORIGIN_Y, SCALE_Y = range(4)
"""Rows of a transform, (4, K + LANES) real: a sample is at ``origin + raw * scale`` in pixels of its level, where
``raw`` is its location or offset."""


def bytes_of_workspace(num_samples: int) -> int:
    """Two ``Samples`` and a transform."""
    return (2 * SAMPLE_ROWS + 4) * (num_samples + LANES) * 8


@njit(**COMPILE)
def next_task(problem):
    """Number of the next task in the queue; ``problem.num_tasks`` or more if none is left."""
    return fetch_and_add(problem.address + NEXT_TASK, 1)


@njit(**COMPILE)
def take_workspace(problem):
    """Address of memory for the calling thread alone."""
    return problem.workspaces + fetch_and_add(problem.address + NEXT_WORKSPACE, 1) * problem.workspace_bytes


@njit(**COMPILE)
def views_of(problem, real):
    levels = carray(pointer(problem.level_table), (problem.num_levels, 5), np.int64)
    shape = problem.batch, problem.num_queries, problem.num_levels, problem.reference_dim
    reference_points = carray(pointer(problem.reference_points), shape, real)
    padding = carray(pointer(problem.padding), (problem.batch, problem.num_tokens), np.uint8)
    return Views(levels, reference_points, padding)


@njit(**COMPILE)
def samples_at(address, num_samples, real):
    columns = num_samples + LANES
    row_bytes = columns * 8  # float32 takes half of them
    floats = carray(pointer(address), (NUM_REAL, columns), real)
    dots = carray(pointer(address + NUM_REAL * row_bytes), (columns, 4), real)
    token = carray(pointer(address + (NUM_REAL + 4) * row_bytes), (5, columns), np.int32)
    return Samples(floats, token, dots)


@njit(**COMPILE)
def transform_at(address, num_samples, real):
    """A transform, 0 behind the last sample."""
    transform = carray(pointer(address), (4, num_samples + LANES), real)
    transform[:] = 0
    return transform


@njit(**COMPILE)
def row_address(array, row, lane):
    return array.ctypes.data + (row * array.shape[1] + lane) * array.itemsize


@njit(**COMPILE)
def load_row(array, row, lane, compute):
    """LANES elements of a row of reals."""
    return load_vector(row_address(array, row, lane), compute, LANES)


@njit(**COMPILE)
def load_sizes(problem, k, num_samples, compute):
    """Width and height of the levels of the samples from the ``k``-th on."""
    size = 8 if compute == "float64" else 4
    table = problem.size_table + k * size
    return load_vector(table, compute, LANES), load_vector(table + (num_samples + LANES) * size, compute, LANES)
