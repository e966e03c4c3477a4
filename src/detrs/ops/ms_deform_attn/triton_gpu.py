"""Multi-scale deformable attention on the GPU, written in Triton. The README of this folder tells how it works.

Axes: B images, S tokens of all levels, M heads, D channels per head, Q queries, L levels, P points of a level, K points
of all levels. A *row* is the channels of one head of a token or a query.

Whatever a query predicts for a sample becomes a position in pixels of the level in one way, ``base + raw * scale``:

    ======================  =========================  ==========================
    raw                     base                       scale
    ======================  =========================  ==========================
    location                -0.5                       width
    offset around a point   reference x * width - 0.5  1
    offset around a box     reference x * width - 0.5  reference w * width / 2P
    ======================  =========================  ==========================

and likewise for y. Positions and sums are float32, whatever the type of ``value``.
"""
# Triton gives types to what it compiles, and none to mypy:
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, disable-error-code="import-untyped"

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LANES = 64 if torch.version.hip else 32
"""Threads that work in lockstep: a warp."""

LANE_BYTES = 16
"""The widest access to memory that one lane can make."""

CELLS = tl.constexpr(7)
"""Side of a bin in cells, the squares between four neighbouring pixels. Its samples touch 8 x 8 pixels: a tile."""

SIDE = tl.constexpr(8)
"""Side of a tile in pixels."""

PIECE = tl.constexpr(1024)
"""Samples that one program adds up. Longer bins are shared by several: one full bin must not keep others waiting."""

LOG2_E = tl.constexpr(math.log2(math.e))

OWNERS_FROM = 4
"""Samples per row of ``value`` from which sorting them costs less than adding them to memory one by one."""

DOT_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
"""What tensor cores multiply. Sums are float32."""

STEPS = {torch.float16: 128, torch.bfloat16: 128, torch.float32: 64}
"""How many samples they multiply at once."""

DOT_PRECISION = "ieee" if torch.version.hip else "tf32x3"
"""How they multiply float32: as three products of shorter numbers, which together are as precise, or directly."""

# Triton is about to change the default. Without fused multiplications and additions half of the speed is gone.
COMPILE: dict[str, Any] = {"enable_fp_fusion": True}


# ---------------------------------------------------------------------------------------------------------------------
# Parts of kernels


@triton.jit
def _tile(num_queries, M: tl.constexpr, TILE: tl.constexpr):
    """What this program owns: some queries of one head of one image.

    Returns:
        Image, head, and of each query its number and that of its row in the batch, and whether it exists: those beyond
        the last repeat it. Numbers that become addresses in the batch have 64 bits.
    """
    tiles = tl.cdiv(num_queries, TILE)
    image = (tl.program_id(0) // tiles // M).to(tl.int64)
    head = (tl.program_id(0) // tiles % M).to(tl.int64)
    query = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    exists = query < num_queries
    query = image * num_queries + tl.minimum(query, num_queries - 1)
    return image, head, query, query * M + head, exists


@triton.jit
def _behind(pointer, offset):
    """A pointer moved on, if there is one."""
    return pointer if pointer is None else pointer + offset


@triton.jit
def _exp(x):
    """Without what ``tl.exp`` does for results below 1e-38, several instructions for each sample."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def _softmax(logits, K: tl.constexpr):
    """Largest logit and one over the sum of exponentials, of the K logits to which each pointer points.

    Not as rows of a matrix: lanes that hold rows would have to hand their results to the lanes that need them.
    """
    largest = tl.load(logits)
    for k in tl.static_range(1, K):
        largest = tl.maximum(largest, tl.load(logits + k))
    total = _exp(tl.load(logits) - largest)
    for k in tl.static_range(1, K):
        total += _exp(tl.load(logits + k) - largest)
    return largest, 1 / total


@triton.jit
def _size(sizes, level: tl.constexpr):
    """Height and width of a level."""
    height = sizes[2 * level]
    width = sizes[2 * level + 1]
    return height.to(tl.int32), width.to(tl.int32)


@triton.constexpr_function
def _half(P):
    """What an offset of 1 is worth, in boxes."""
    return 0.5 / P if P else 0.0


@triton.jit
def _placement(reference, sizes, level: tl.constexpr, P: tl.constexpr, R: tl.constexpr):
    """``base`` of x and y, ``scale`` of x and y (see above). ``reference`` points to those of each query."""
    height = sizes[2 * level]
    width = sizes[2 * level + 1]
    base_x, base_y, scale_x, scale_y = -0.5, -0.5, width, height
    if reference is not None:
        base_x = tl.load(reference + level * R) * width - 0.5
        base_y = tl.load(reference + level * R + 1) * height - 0.5
        scale_x = 1.0
        scale_y = 1.0
        if R == 4:
            scale_x = tl.load(reference + level * R + 2) * (width * _half(P))
            scale_y = tl.load(reference + level * R + 3) * (height * _half(P))
    return base_x, base_y, scale_x, scale_y


@triton.jit
def _cell(position, size):
    """Of a position along one axis: the pixel before it (-2 if it touches none), and how far behind that it lies.

    Nothing outside is ever turned into an address.
    """
    position = tl.where((position > -1) & (position < size), position, -2.0)  # put this way, NaN is outside
    before = tl.floor(position)
    return before.to(tl.int32), position - before


@triton.jit
def _sample(location, weight, softmax, placement, sizes, level: tl.constexpr, mask=None):
    """Weight of a sample, what was predicted as its location (x, y), and its cell: left, top, across and down."""
    base_x, base_y, scale_x, scale_y = placement
    share = tl.load(weight, mask=mask)
    if softmax is not None:
        share = _exp(share - softmax[0]) * softmax[1]
    raw_x = tl.load(location, mask=mask)
    raw_y = tl.load(location + 1, mask=mask)
    left, across = _cell(base_x + raw_x * scale_x, sizes[2 * level + 1])
    top, down = _cell(base_y + raw_y * scale_y, sizes[2 * level])
    return share, raw_x, raw_y, (left, top, across, down)


@triton.jit
def _corner(right: tl.constexpr, below: tl.constexpr, cell, height, width, padding):
    """Of one of the four pixels around a sample: does it have a value, and its bilinear weight in x and in y."""
    left, top, across, down = cell
    there = (left + right).to(tl.uint32, bitcast=True) < width.to(tl.uint32, bitcast=True)  # 0 <= x < width
    there &= (top + below).to(tl.uint32, bitcast=True) < height.to(tl.uint32, bitcast=True)
    if padding is not None:
        there &= tl.load(padding + (top + below) * width + left + right, mask=there, other=1) == 0
    near_x = across if right else 1 - across
    near_y = down if below else 1 - down
    return there, near_x, near_y


@triton.jit
def _channels(PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """(PARTS, 1, WIDTH): few lanes share a row and repeat its arithmetic of positions; each holds some of all parts."""
    return tl.arange(0, PARTS)[:, None, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def _rows(there, channel, D: tl.constexpr, ROOM: tl.constexpr):
    """Mask of the elements of rows; there is room for more channels than exist if their number is no power of two."""
    mask = there[None, :, None]
    return mask if ROOM == D else mask & (channel < D)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels of queries. Inside a level addresses have 32 bits; pointers move on from level to level.


@triton.jit(do_not_specialize=["num_queries", "num_tokens"])
def _forward(
    value, locations, weights, reference, padding, out, stride_b, stride_s, stride_m, num_queries, num_tokens, sizes,
    points: tl.constexpr, K: tl.constexpr, M: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sums of samples, (B, Q, M, D)."""
    image, head, query, row, exists = _tile(num_queries, M, TILE)
    locations += row * (2 * K)
    weights += row * K
    reference = _behind(reference, query * (len(points) * R))
    softmax = None if reference is None else _softmax(weights, K)
    channel = _channels(PARTS, WIDTH)
    value += image * stride_b + head * stride_m
    padding = _behind(padding, image * num_tokens)
    total = tl.zeros((PARTS, TILE, WIDTH), tl.float32)
    first = 0
    for level in tl.static_range(len(points)):
        height, width = _size(sizes, level)
        placement = _placement(reference, sizes, level, points[level], R)
        for k in tl.range(first, first + points[level]):
            weight, _, _, cell = _sample(locations + 2 * k, weights + k, softmax, placement, sizes, level)
            pixel = value + channel + ((cell[1] * width + cell[0]) * stride_s)[None, :, None]
            for right in tl.static_range(2):  # the other way around, a register is spilled on sm_80
                for below in tl.static_range(2):
                    there, near_x, near_y = _corner(right, below, cell, height, width, padding)
                    mask = _rows(there, channel, D, PARTS * WIDTH)
                    sample = tl.load(pixel + (below * width + right) * stride_s, mask=mask, other=0.0)
                    total += sample.to(tl.float32) * (weight * near_y * near_x)[None, :, None]
        first += points[level]
        value += height * width * stride_s
        padding = _behind(padding, height * width)
    mask = _rows(exists, channel, D, PARTS * WIDTH)
    tl.store(out + (row * D)[None, :, None] + channel, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_queries", "num_tokens"])
def _backward(
    value, locations, weights, reference, padding, grad_out, grad_locations, grad_weights, grad_reference,
    stride_b, stride_s, stride_m, num_queries, num_tokens, sizes,
    points: tl.constexpr, K: tl.constexpr, M: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of what the queries predict; those that are ``None`` are not wanted.

    ``grad_reference`` is (B, Q, M, L, R), that is, before the sum over heads.
    """
    image, head, query, row, exists = _tile(num_queries, M, TILE)
    locations += row * (2 * K)
    weights += row * K
    reference = _behind(reference, query * (len(points) * R))
    softmax = None if reference is None else _softmax(weights, K)
    channel = _channels(PARTS, WIDTH)
    value += image * stride_b + head * stride_m
    padding = _behind(padding, image * num_tokens)
    grad_locations = _behind(grad_locations, row * (2 * K))
    grad_weights = _behind(grad_weights, row * K)
    grad_reference = _behind(grad_reference, row * (len(points) * R))
    mask = _rows(exists, channel, D, PARTS * WIDTH)
    grad = tl.load(grad_out + (row * D)[None, :, None] + channel, mask=mask, other=0.0).to(tl.float32)
    first = 0
    for level in tl.static_range(len(points)):
        height, width = _size(sizes, level)
        placement = _placement(reference, sizes, level, points[level], R)
        center_x = tl.zeros((TILE,), tl.float32)  # gradients of the reference, in pixels
        center_y = tl.zeros((TILE,), tl.float32)
        size_x = tl.zeros((TILE,), tl.float32)
        size_y = tl.zeros((TILE,), tl.float32)
        for k in tl.range(first, first + points[level]):
            weight, raw_x, raw_y, cell = _sample(locations + 2 * k, weights + k, softmax, placement, sizes, level)
            pixel = value + channel + ((cell[1] * width + cell[0]) * stride_s)[None, :, None]
            along_x = tl.zeros((TILE,), tl.float32)  # gradients of the position
            along_y = tl.zeros((TILE,), tl.float32)
            along_weight = tl.zeros((TILE,), tl.float32)
            for below in tl.static_range(2):
                for right in tl.static_range(2):
                    there, near_x, near_y = _corner(right, below, cell, height, width, padding)
                    mask = _rows(there, channel, D, PARTS * WIDTH)
                    sample = tl.load(pixel + (below * width + right) * stride_s, mask=mask, other=0.0)
                    dot = tl.sum(tl.sum(grad * sample.to(tl.float32), axis=0), axis=1)
                    along_x += dot * near_y if right else -dot * near_y
                    along_y += dot * near_x if below else -dot * near_x
                    along_weight += dot * near_y * near_x
            inside = (cell[0] > -2) & (cell[1] > -2)  # elsewhere raw and scale may be anything
            along_x = tl.where(inside, along_x * weight, 0.0)
            along_y = tl.where(inside, along_y * weight, 0.0)
            if grad_locations is not None:
                tl.store(grad_locations + 2 * k, tl.where(inside, along_x * placement[2], 0.0), mask=exists)
                tl.store(grad_locations + 2 * k + 1, tl.where(inside, along_y * placement[3], 0.0), mask=exists)
            if grad_weights is not None:
                tl.store(grad_weights + k, along_weight, mask=exists)
            center_x += along_x
            center_y += along_y
            size_x += tl.where(inside, along_x * raw_x, 0.0)
            size_y += tl.where(inside, along_y * raw_y, 0.0)
        if grad_reference is not None:
            here = grad_reference + level * R
            tl.store(here, center_x * width, mask=exists)
            tl.store(here + 1, center_y * height, mask=exists)
            if R == 4:
                tl.store(here + 2, size_x * (width * _half(points[level])), mask=exists)
                tl.store(here + 3, size_y * (height * _half(points[level])), mask=exists)
        first += points[level]
        value += height * width * stride_s
        padding = _behind(padding, height * width)

    if softmax is not None and grad_weights is not None:  # from weights to logits: the derivative of softmax
        tl.debug_barrier()  # lanes read what others have just written
        k = tl.arange(0, triton.next_power_of_2(K))[None, :]
        mask = exists[:, None] & (k < K)
        weight = tl.load(weights[:, None] + k, mask=mask, other=float("-inf"))
        weight = _exp(weight - softmax[0][:, None]) * softmax[1][:, None]
        along_weight = tl.load(grad_weights[:, None] + k, mask=mask, other=0.0)
        mean = tl.sum(weight * along_weight, axis=1)[:, None]
        tl.store(grad_weights[:, None] + k, weight * (along_weight - mean), mask=mask)


@triton.jit(do_not_specialize=["num_queries", "num_tokens"])
def _add(
    grad_value, locations, weights, reference, padding, grad_out,
    stride_b, stride_s: tl.constexpr, stride_m, num_queries, num_tokens, sizes,
    points: tl.constexpr, K: tl.constexpr, M: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of ``value``, sample by sample: added to memory that begins as zeros, in whatever order they come."""
    image, head, query, row, exists = _tile(num_queries, M, TILE)
    locations += row * (2 * K)
    weights += row * K
    reference = _behind(reference, query * (len(points) * R))
    softmax = None if reference is None else _softmax(weights, K)
    channel = _channels(PARTS, WIDTH)
    grad_value += image * stride_b + head * stride_m
    padding = _behind(padding, image * num_tokens)
    mask = _rows(exists, channel, D, PARTS * WIDTH)
    grad = tl.load(grad_out + (row * D)[None, :, None] + channel, mask=mask, other=0.0)
    first = 0
    for level in tl.static_range(len(points)):
        height, width = _size(sizes, level)
        placement = _placement(reference, sizes, level, points[level], R)
        for k in tl.range(first, first + points[level]):
            weight, _, _, cell = _sample(locations + 2 * k, weights + k, softmax, placement, sizes, level)
            pixel = grad_value + channel + ((cell[1] * width + cell[0]) * stride_s)[None, :, None]
            for below in tl.static_range(2):
                for right in tl.static_range(2):
                    there, near_x, near_y = _corner(right, below, cell, height, width, padding)
                    mask = _rows(there & exists, channel, D, PARTS * WIDTH)
                    share = grad * (weight * near_y * near_x)[None, :, None]
                    tl.atomic_add(pixel + (below * width + right) * stride_s, share, mask=mask, sem="relaxed")
        first += points[level]
        grad_value += height * width * stride_s
        padding = _behind(padding, height * width)


# ---------------------------------------------------------------------------------------------------------------------
# Gradient of value by owners: samples are sorted into bins, and a program owns what the samples of one bin touch.


@triton.jit
def _bins(sizes, level: tl.constexpr):
    """Rows and columns of bins of a level. The first cell lies before the first pixel, the last behind the last."""
    height, width = _size(sizes, level)
    return (height + CELLS) // CELLS, (width + CELLS) // CELLS


@triton.jit
def _bins_of_head(sizes, L: tl.constexpr):
    total = 0
    for level in tl.static_range(L):
        lines, columns = _bins(sizes, level)
        total += lines * columns
    return total


@triton.jit(do_not_specialize=["num_queries", "num_bins"])
def _bin(
    locations, weights, reference, keys, placed, num_queries, num_bins, sizes,
    points: tl.constexpr, K: tl.constexpr, M: tl.constexpr, R: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Bin of each sample (``num_bins`` if it touches no pixel), and its position in the tile and weight.

    ``keys`` is (B, Q, M, K), ``placed`` (B, Q, M, K, 3).
    """
    image, head, query, row, exists = _tile(num_queries, M, TILE)
    row = row[:, None]
    locations += row * (2 * K)
    weights += row * K
    keys += row * K
    placed += row * (3 * K)
    reference = _behind(reference, query[:, None] * (len(points) * R))
    softmax = None if reference is None else _softmax(weights, K)
    before = (image * M + head).to(tl.int32) * _bins_of_head(sizes, len(points))
    first = 0
    for level in tl.static_range(len(points)):
        lines, columns = _bins(sizes, level)
        if points[level]:
            point = tl.arange(0, triton.next_power_of_2(points[level]))[None, :]
            k = first + point
            mask = exists[:, None] & (point < points[level])
            placement = _placement(reference, sizes, level, points[level], R)
            weight, _, _, cell = _sample(locations + 2 * k, weights + k, softmax, placement, sizes, level, mask)
            left, top, across, down = cell
            column = (left + 1) // CELLS
            line = (top + 1) // CELLS
            key = tl.where((left > -2) & (top > -2), before + line * columns + column, num_bins)
            tl.store(keys + k, key.to(keys.dtype.element_ty), mask=mask)
            tl.store(placed + 3 * k, left + 1 - column * CELLS + across, mask=mask)
            tl.store(placed + 3 * k + 1, top + 1 - line * CELLS + down, mask=mask)
            tl.store(placed + 3 * k + 2, weight, mask=mask)
        first += points[level]
        before += lines * columns


@triton.jit(do_not_specialize=["num_bins"])
def _own(
    grad_out, order, placed, bounds, ends, owned, tiles, num_bins,
    K: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the samples of one bin, or of a piece of a long one, add to the pixels of its tile: (pieces, SIDE**2, D).

    That is a product of matrices: (pixels, samples) of weights times (samples, channels) of ``grad_out``. The weights
    are hats: 1 where the sample lies on the pixel, 0 where it is a pixel away. NaN spreads over the tile.
    """
    piece = tl.program_id(0)
    bin = tl.load(owned + piece)
    if bin < num_bins:  # there are programs for the worst case
        begin = tl.load(bounds + bin)
        end = tl.load(bounds + bin + 1)
        begin += (piece - tl.load(ends + bin) + tl.cdiv(end - begin, PIECE)) * PIECE
        end = tl.minimum(begin + PIECE, end)
        channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
        pixel = tl.arange(0, SIDE)[:, None]
        total = tl.zeros((SIDE * SIDE, WIDTH), tl.float32)
        for step in range(begin, end, STEP):
            place = step + tl.arange(0, STEP)
            there = place < end
            sample = tl.load(order + place, mask=there, other=0)
            x = tl.load(placed + 3 * sample, mask=there, other=0.0)
            y = tl.load(placed + 3 * sample + 1, mask=there, other=0.0)
            weight = tl.load(placed + 3 * sample + 2, mask=there, other=0.0)
            near_x = tl.maximum(1 - tl.abs(x[None, :] - pixel), 0.0)  # (SIDE, STEP)
            near_y = tl.maximum(1 - tl.abs(y[None, :] - pixel), 0.0) * weight[None, :]
            share = (near_y[:, None, :] * near_x[None, :, :]).reshape(SIDE * SIDE, STEP)
            row = (sample.to(tl.int32) // K).to(tl.int64)
            mask = there[:, None] & (channel < D)
            grad = tl.load(grad_out + (row * D)[:, None] + channel, mask=mask, other=0.0)
            total = tl.dot(share.to(TYPE), grad.to(TYPE), total, input_precision=PRECISION)
        place = (piece.to(tl.int64) * (SIDE * SIDE) + tl.arange(0, SIDE * SIDE)) * D
        tl.store(tiles + place[:, None] + channel, total, mask=channel < D)


@triton.jit(do_not_specialize=["num_tokens"])
def _gather(
    tiles, ends, padding, grad_value, num_tokens, sizes,
    L: tl.constexpr, M: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Writes each pixel once. A program owns those of one tile, but for the last row and column, which open the next.

    To the first column the tile on the left has contributed too, to the first row the one above.
    """
    bin = tl.program_id(0)
    number = bin % _bins_of_head(sizes, L)
    slab = bin // _bins_of_head(sizes, L)
    # The level to which the bin belongs is the last one that begins before it.
    height, width = _size(sizes, 0)
    lines, columns = _bins(sizes, 0)
    bins_before, tokens_before = 0, 0
    bins, tokens = lines * columns, height * width
    for level in tl.static_range(1, L):
        next_height, next_width = _size(sizes, level)
        next_lines, next_columns = _bins(sizes, level)
        reached = number >= bins
        bins_before = tl.where(reached, bins, bins_before)
        tokens_before = tl.where(reached, tokens, tokens_before)
        height = tl.where(reached, next_height, height)
        width = tl.where(reached, next_width, width)
        columns = tl.where(reached, next_columns, columns)
        bins += next_lines * next_columns
        tokens += next_height * next_width
    line = (number - bins_before) // columns
    column = (number - bins_before) % columns

    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    pixel_x = tl.arange(0, SIDE * SIDE)[:, None] % SIDE
    pixel_y = tl.arange(0, SIDE * SIDE)[:, None] // SIDE
    total = tl.zeros((SIDE * SIDE, WIDTH), tl.float32)
    for above in tl.static_range(2):
        for left in tl.static_range(2):
            exists = (column >= left) & (line >= above)
            touched = ((pixel_x == 0) | (left == 0)) & ((pixel_y == 0) | (above == 0))
            place = ((pixel_y + above * CELLS) * SIDE + pixel_x + left * CELLS) * D + channel
            other = bin - left - above * columns
            begin = tl.load(ends + other - 1, mask=exists & (other > 0), other=0)
            end = tl.load(ends + other, mask=exists, other=0)
            for piece in range(begin, end):
                tile = tiles + tl.cast(piece, tl.int64) * (SIDE * SIDE * D)
                total += tl.load(tile + place, mask=touched & (channel < D), other=0.0)
    x = column * CELLS - 1 + pixel_x
    y = line * CELLS - 1 + pixel_y
    mask = (pixel_x < CELLS) & (pixel_y < CELLS) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    token = (slab // M).to(tl.int64) * num_tokens + tokens_before + y * width + x
    if padding is not None:
        total = tl.where(tl.load(padding + token, mask=mask, other=0) == 0, total, 0.0)
    place = (token * M + slab % M) * D + channel
    tl.store(grad_value + place, total.to(grad_value.dtype.element_ty), mask=mask & (channel < D))


# ---------------------------------------------------------------------------------------------------------------------
# From tensors to kernels. Nothing here waits for the GPU: whatever depends on data is allocated for the worst case.


class Given(NamedTuple):
    """Input as the kernels read it."""

    value: Tensor
    locations: Tensor
    weights: Tensor
    reference: Tensor | None
    padding: Tensor | None
    sizes: tuple[float, ...]
    """Heights and widths. Triton would compile anew for integers in a tuple that are 1 or divisible by 16."""
    points: tuple[int, ...]

    @property
    def constants(self) -> dict[str, Any]:
        """A kernel is compiled for each of these, and for the type of ``value``; not for numbers and sizes."""
        size = 0 if self.reference is None else self.reference.shape[3]
        return {"points": self.points, "K": self.weights.shape[3], "M": self.weights.shape[2], "R": size, **COMPILE}

    def programs(self, tile: int) -> tuple[int]:
        batch, queries, heads, _ = self.weights.shape
        return (triton.cdiv(queries, tile) * batch * heads,)

    def launch(self, kernel: Any, value: Tensor, *others: Tensor | None) -> None:
        """A kernel of queries; ``value`` is what it samples, or adds samples to."""
        _, tokens, _, channels = value.shape
        tile = tiling(channels, value.element_size())
        kernel[self.programs(tile["TILE"])](
            value, *self[1:5], *others, *value.stride()[:3], self.weights.shape[1], tokens, self.sizes,
            **self.constants, **tile,
        )  # fmt: skip


def tiling(channels: int, element_size: int) -> dict[str, int]:
    """How one warp of a kernel of queries holds (queries, channels) in its registers.

    The usual layout gives each query as many lanes as its channels need, and each of them repeats the arithmetic of
    positions. Here a query gets few lanes (two for 32 channels of float32), and each holds several parts of the row.
    """
    padded = triton.next_power_of_2(channels)
    width = max(min(padded, 2 * LANE_BYTES // element_size), padded // 8)
    lanes = max(1, width * element_size // LANE_BYTES)
    room = max(1, LANES * 32 // padded)  # registers, where there are very many channels
    tile = min(max(1, LANES // lanes), room)
    return {"D": channels, "TILE": tile, "PARTS": padded // width, "WIDTH": width, "num_warps": 1}


def owners_pay(tokens: int, queries: int, points: int) -> bool:
    """Whether the gradient of ``value`` is computed by owners of pixels, rather than by adding sample after sample.

    Owners have to sort samples and to write every pixel; additions to memory cost time by sample. What decides is the
    number of samples per row: 16 where each pixel of an encoder looks at 16 points, below 1 in a usual decoder.
    """
    return queries * points >= OWNERS_FROM * tokens


def _given(
    value: Tensor,
    shapes: tuple[int, ...],
    points: tuple[int, ...],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    padding: Tensor | None,
) -> Given:
    if value.stride(3) != 1:
        value = value.contiguous()
    if value.shape[1] * value.stride(1) >= 2**31:  # inside a head, elements are counted in 32 bits
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
    reference = None if reference is None else reference.contiguous()
    padding = None if padding is None else padding.contiguous().view(torch.uint8)
    sizes = tuple(map(float, shapes))
    return Given(value, locations.contiguous(), weights.contiguous(), reference, padding, sizes, points)


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
    out = value.new_empty(*weights.shape[:2], value.shape[2] * value.shape[3])
    if not out.numel() or not weights.numel():
        return out.zero_()
    given = _given(value, shapes, points, locations, weights, reference, padding)
    with torch.cuda.device_of(value):
        given.launch(_forward, given.value, out)
    return out


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
    inputs = (value, locations, weights, reference)
    found: list[Tensor | None] = [None] * 4
    if not grad_out.numel() or not weights.numel():
        found = [torch.zeros_like(x) if need and x is not None else None for x, need in zip(inputs, needs, strict=True)]
    elif any(needs):
        grad_out = grad_out.contiguous()
        given = _given(value, shapes, points, locations, weights, reference, padding)
        with torch.cuda.device_of(value):
            if needs[0]:
                pay = owners_pay(value.shape[1], weights.shape[1], weights.shape[3])
                by = _by_owners if pay or torch.are_deterministic_algorithms_enabled() else _by_additions
                found[0] = by(grad_out, given)
            if needs[1]:
                found[1] = torch.empty_like(given.locations)
            if needs[2]:
                found[2] = torch.empty_like(given.weights)
            if needs[3] and given.reference is not None:
                found[3] = given.reference.new_empty(*weights.shape[:3], *given.reference.shape[2:])
            if any(needs[1:]):
                given.launch(_backward, given.value, grad_out, *found[1:])
        if found[3] is not None:
            found[3] = found[3].sum(dim=2)  # over heads
    gradients = [value.new_empty(0) if gradient is None else gradient for gradient in found]
    return gradients[0], gradients[1], gradients[2], gradients[3]


def _by_additions(grad_out: Tensor, given: Given) -> Tensor:
    """Gradient of ``value`` in its type, where there are few samples."""
    batch, tokens, heads, channels = given.value.shape
    grad_value = torch.zeros(batch, tokens, heads, channels, dtype=torch.float32, device=grad_out.device)
    if tokens * heads * channels >= 2**31:  # as in ``_given``
        grad_value = grad_value.view(batch, heads, tokens, channels).transpose(1, 2)
    given.launch(_add, grad_value, grad_out.float())  # of half precision a lane loads more than it can add at once
    return grad_value.to(given.value.dtype).contiguous()


def _by_owners(grad_out: Tensor, given: Given) -> Tensor:
    """Gradient of ``value`` in its type, with the same bits each time."""
    value, sizes = given.value, given.sizes
    batch, tokens, heads, channels = value.shape
    samples = given.weights.numel()
    assert samples < 2**31 - PIECE.value, f"{samples} samples are more than 32 bits can count"
    cells = CELLS.value
    lines = [(int(size) + cells) // cells for size in sizes]  # of bins, and columns, of each level
    bins = batch * heads * sum(map(math.prod, zip(lines[::2], lines[1::2], strict=True)))

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=value.device)

    def numbers(end: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.arange(end, dtype=dtype, device=value.device)

    # Which samples are in which bin: order[bounds[bin] : bounds[bin + 1]].
    keys = empty(samples, dtype=torch.int16 if bins < 2**15 else torch.int32)  # short keys are sorted faster
    placed = empty(samples, 3)
    _bin[given.programs(64)](
        *given[1:4], keys, placed, given.weights.shape[1], bins, sizes, **given.constants, TILE=64, num_warps=2
    )
    keys, order = keys.sort(stable=True)
    bounds = torch.searchsorted(keys, numbers(bins + 1, keys.dtype), out_int32=True)
    # Which pieces make up which bin: those before ends[bin] that are not before ends[bin - 1].
    ends = ((bounds.diff() + (PIECE.value - 1)) // PIECE.value).cumsum(0, dtype=torch.int32)
    pieces = min(bins, samples) + samples // PIECE.value  # at most
    owned = torch.searchsorted(ends, numbers(pieces), right=True, out_int32=True)

    tiles = empty(pieces, SIDE.value**2, channels)
    width = max(16, min(64, triton.next_power_of_2(channels)))  # tensor cores want 16 at least
    parts = triton.cdiv(channels, width)
    launch = {"D": channels, "WIDTH": width, "num_warps": 4, **COMPILE}
    _own[(pieces, parts)](
        grad_out, order, placed, bounds, ends, owned, tiles, bins,
        K=given.weights.shape[3], STEP=STEPS[value.dtype],
        TYPE=DOT_TYPES[value.dtype], PRECISION=DOT_PRECISION, **launch,
    )  # fmt: skip
    grad_value = empty(*value.shape, dtype=value.dtype)
    _gather[(bins, parts)](
        tiles, ends, given.padding, grad_value, tokens, sizes, L=len(given.points), M=heads, **launch
    )  # fmt: skip
    return grad_value
