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

TILE_SIDE = 8
TILE = TILE_SIDE**2
"""Queries per tile at most."""

ROW = 32
"""Queries per tile where they are not pixels."""

GROUP = 32
"""Tiles per group: the heads of a group are computed one after the other. See ``tile_of``."""

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
            "tile_table", "num_tiles",  # see ``tiles``
            "locations",  # (B, Q, M, K, 2) real
            "weights",  # (B, Q, M, K) real
            "reference_points", "reference_dim",  # (B, Q, L, reference_dim) real; 0: weights and locations as they are
            "padding", "is_padded",  # (B, S) bytes, if it is
            "prefetches",  # whether pixels are prefetched
            "out",  # (B, Q, M, D) real
            # For gradients, 0 where not needed:
            "grad_out", "grad_value", "grad_locations", "grad_weights",  # shaped as the inputs
            "grad_reference_points",  # (B, Q, M, L, reference_dim): those of each head
            "sample_weights", "sample_x", "sample_y",  # (B, M, K*Q) real: weight and position, by level and tile
        )
    ]  # fmt: skip


PROBLEM = types.CPointer(numba.from_dtype(np.dtype(Problem)))
NEXT_TASK, NEXT_WORKSPACE = Problem.next_task.offset, Problem.next_workspace.offset


# Built from tensors


class Tables(NamedTuple):
    """What is the same for all queries. K is the number of samples of a head, over all levels."""

    sizes: np.ndarray
    """(3, K + LANES) real: width and height of the level of each sample, and 1 / 2P of the level."""
    tokens: np.ndarray
    """(3, K + LANES) int32: width of the level of each sample, its first token, and its number."""
    levels: np.ndarray
    """(L, 5) int64: height, width, first token, first sample, number of samples of each level."""
    largest: int
    """Tokens of the largest level."""


@functools.lru_cache(maxsize=256)
def tables(shapes: Shapes, points: tuple[int, ...], dtype: torch.dtype) -> Tables:
    sizes = np.array(shapes, dtype=np.int64).reshape(-1, 2)
    areas, counts = sizes.prod(axis=1), np.array(points, dtype=np.int64)
    levels = np.column_stack([sizes, areas.cumsum() - areas, counts.cumsum() - counts, counts])
    numbered = np.column_stack([levels, np.arange(len(levels))]).repeat(counts, axis=0)
    behind = np.array([[1, 1, 0, 0, 1, 0]] * LANES, dtype=np.int64)  # of vectors that extend beyond the last sample
    of_samples = np.concatenate([numbered, behind])
    real = np.float64 if dtype == torch.float64 else np.float32
    return Tables(
        np.ascontiguousarray([of_samples[:, 1], of_samples[:, 0], 0.5 / of_samples[:, 4]], dtype=real),
        np.ascontiguousarray(of_samples[:, [1, 2, 5]].T, dtype=np.int32),
        levels,
        int(areas.max()),
    )


@functools.lru_cache(maxsize=64)
def tiles(shapes: Shapes, num_queries: int) -> np.ndarray:
    """(T, 5) int64: first query, rows, columns, queries from one row to the next, and number of queries before it.

    Where there are as many queries as pixels, they are taken to be the pixels, and a tile is a square of them: their
    samples are close to each other. Otherwise a tile is a row. The order of queries does not change the result.
    """
    found = [(q, 1, min(ROW, num_queries - q), 0) for q in range(0, num_queries, ROW)]
    if sum(h * w for h, w in shapes) == num_queries:
        found, start = [], 0
        for h, w in shapes:
            for y in range(0, h, TILE_SIDE):
                rows = min(TILE_SIDE, h - y)
                found += [(start + y * w + x, rows, min(TILE_SIDE, w - x), w) for x in range(0, w, TILE_SIDE)]
            start += h * w
    table = np.array(found, dtype=np.int64).reshape(-1, 4)
    counts = table[:, 1] * table[:, 2]
    return np.column_stack([table, counts.cumsum() - counts])


def build(inputs: Inputs, tables: Tables, tiles: np.ndarray) -> Problem:
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
        token_table=tables.tokens.ctypes.data, tile_table=tiles.ctypes.data, num_tiles=len(tiles),
        locations=locations.data_ptr(), weights=weights.data_ptr(),
        reference_points=0 if reference_points is None else reference_points.data_ptr(),
        reference_dim=inputs.reference_dim,
        padding=0 if padding is None else padding.data_ptr(), is_padded=padding is not None,
        prefetches=num_queries * PREFETCH_FROM < num_tokens,
    )  # fmt: skip
    problem.address = ctypes.addressof(problem)
    return problem


def num_tasks(problem: Problem) -> int:
    """Tasks of kernels that work on tiles of queries: each is one head of a tile."""
    return problem.batch * -(-problem.num_tiles // GROUP) * GROUP * problem.num_heads


def bytes_of_workspace(num_samples: int) -> int:
    """One ``Samples``, and ``NUM_SUMS`` rows of one query behind it."""
    columns = -(-num_samples // LANES) * LANES
    return (TILE * columns * (NUM_REAL + NUM_TOKENS) + columns * NUM_SUMS) * 8


# Read by kernels


class Samples(NamedTuple):
    """The samples of a tile of queries for one head, in a workspace: views of memory.

    Those of a query are side by side, in as many columns as fill whole vectors.
    """

    real: np.ndarray
    """(7, columns) real: rows ``CORNER_WEIGHT`` to ``Y``. The backward pass stores inner products in the first four."""
    token: np.ndarray
    """(5, columns) int32: the pixels around each sample (top left, top right, bottom left, bottom right) and
    ``PADDED``, which of them are padding, one bit each. The first one is ``SKIPPED`` if no pixel contributes."""
    columns: int
    """Columns of one query."""


CORNER_WEIGHT, WEIGHT, X, Y = 0, 4, 5, 6
"""Rows of ``Samples.real``: bilinear times attention weight of the four pixels; attention weight; position."""
NUM_REAL = 7
PADDED = 4
"""Row of ``Samples.token``."""
NUM_TOKENS = 5
SKIPPED = -1
NUM_SUMS = 5
"""Rows of the backward pass for one query: gradients of the attention weights, of positions and of scales."""


@njit(**COMPILE)
def next_task(problem):
    """Number of the next task in the queue; ``problem.num_tasks`` or more if none is left."""
    return fetch_and_add(problem.address + NEXT_TASK, 1)


@njit(**COMPILE)
def tile_of(problem, task):
    """Image, tile and head of a task. The number of the tile may be too large: such tasks are empty.

    Tasks are ordered by image, group of tiles, head, tile. The pixels of one head fit into the L2 cache, so a head is
    worth many tiles; the locations and weights of a query are adjacent for all heads, so a group has to be small.
    """
    rest, tile = divmod(task, GROUP)
    rest, m = divmod(rest, problem.num_heads)
    n, group = divmod(rest, (problem.num_tiles + GROUP - 1) // GROUP)
    return n, group * GROUP + tile, m


@njit(**COMPILE)
def take_workspace(problem):
    """Address of memory for the calling thread alone."""
    return problem.workspaces + fetch_and_add(problem.address + NEXT_WORKSPACE, 1) * problem.workspace_bytes


@njit(**COMPILE)
def levels_of(problem):
    return carray(pointer(problem.level_table), (problem.num_levels, 5), np.int64)


@njit(**COMPILE)
def tiles_of(problem):
    return carray(pointer(problem.tile_table), (problem.num_tiles, 5), np.int64)


@njit(**COMPILE)
def samples_at(address, num_samples, queries, real):
    """Samples of up to ``queries`` queries, and the address behind them."""
    columns = (num_samples + LANES - 1) // LANES * LANES
    floats = carray(pointer(address), (NUM_REAL, queries * columns), real)
    address += NUM_REAL * queries * columns * floats.itemsize
    token = carray(pointer(address), (NUM_TOKENS, queries * columns), np.int32)
    return Samples(floats, token, columns), address + NUM_TOKENS * queries * columns * 4


@njit(**COMPILE)
def row_address(array, row, column):
    return array.ctypes.data + (row * array.shape[1] + column) * array.itemsize


@njit(**COMPILE)
def load_row(array, row, column, compute):
    """LANES elements of a row of reals."""
    return load_vector(row_address(array, row, column), compute, LANES)
