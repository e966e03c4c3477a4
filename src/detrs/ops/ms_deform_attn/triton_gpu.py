"""Multi-scale deformable attention on the GPU, written in Triton. The README of this folder explains the method.

Axes: B images, S tokens of all levels, M heads, D channels per head, Q queries, L levels, P points on a level, K points
on all levels. A *row* is the channels of one head of a token or a query.

The position of a sample, in pixels of its level, is ``origin + raw * scale``:

    ======================  ===========================  ===========================
    raw                     origin                       scale
    ======================  ===========================  ===========================
    location                -0.5                         width
    offset around a point   reference_x * width - 0.5    1
    offset around a box     reference_x * width - 0.5    reference_w * width / 2P
    ======================  ===========================  ===========================

and likewise for y. Positions and sums are float32 for every dtype of ``value``.
"""
# Triton infers the types of what it compiles, and its decorators have none:
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, disable-error-code="import-untyped"

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detrs.ops.ms_deform_attn.inputs import Gradients, Inputs, Needs
from detrs.structures import Shapes

WARP_SIZE = 64 if torch.version.hip else 32
"""Lanes (threads) of a warp."""

ACCESS_BYTES = 16
"""Widest memory access of one lane."""

BIN_SIDE = tl.constexpr(7)
"""Side of a bin in cells, the squares between four neighboring pixels. Its samples touch a tile of 8 x 8 pixels."""

TILE_SIDE = tl.constexpr(8)
"""Side of a tile in pixels."""

CHUNK = tl.constexpr(1024)
"""Samples per program. A longer bin is divided among several programs, so that it does not delay the others."""

QUERIES_TO_BIN = 64
"""Queries per program that assigns samples to bins."""

LOG2_E = tl.constexpr(math.log2(math.e))

BINNED_FROM = 8
"""Samples per row of a 16-bit ``value`` from which sorting them is at least as fast as atomic additions."""

DOT_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
"""Dtype of the products on tensor cores, by that of ``value``. Sums are float32."""

STEPS = {torch.float16: 128, torch.bfloat16: 128, torch.float32: 64}
"""Samples per product."""

DOT_PRECISION = "ieee" if torch.version.hip else "tf32x3"
"""Of float32 products: three TensorFloat-32 products, which together are as precise, or IEEE arithmetic on AMD."""

# The default of Triton is about to change. Without fused multiply-add, kernels run at half the speed.
COMPILE: dict[str, Any] = {"enable_fp_fusion": True}


# ---------------------------------------------------------------------------------------------------------------------
# Parts of kernels


@triton.jit
def _tile(num_queries, M: tl.constexpr, TILE: tl.constexpr):
    """The queries of this program: a tile of one head of one image.

    Returns:
        Image and head; of each query its index and that of its row in the batch, and whether it exists (those beyond
        the last query repeat it). Indices that become addresses in the batch have 64 bits.
    """
    tiles = tl.cdiv(num_queries, TILE)
    image = (tl.program_id(0) // tiles // M).to(tl.int64)
    head = (tl.program_id(0) // tiles % M).to(tl.int64)
    query = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    valid = query < num_queries
    query = image * num_queries + tl.minimum(query, num_queries - 1)
    return image, head, query, query * M + head, valid


@triton.jit
def _exp(x):
    """Without the handling of results below 1e-38 in ``tl.exp``, which takes several instructions per sample."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def _softmax(logits, K: tl.constexpr):
    """Maximum and reciprocal of the sum of exponentials of the K logits at each pointer.

    The logits are not loaded as a matrix, because its row reductions would have to be exchanged between lanes.
    """
    max_logit = tl.load(logits)
    for k in tl.static_range(1, K):
        max_logit = tl.maximum(max_logit, tl.load(logits + k))
    total = _exp(tl.load(logits) - max_logit)
    for k in tl.static_range(1, K):
        total += _exp(tl.load(logits + k) - max_logit)
    return max_logit, 1 / total


@triton.jit
def _size(sizes, level: tl.constexpr):
    """Height and width of a level."""
    height = sizes[2 * level]
    width = sizes[2 * level + 1]
    return height.to(tl.int32), width.to(tl.int32)


@triton.constexpr_function
def _half(P):
    """Scale of offsets around a box, relative to its size: 1 / (2P)."""
    return 0.5 / P if P else 0.0


@triton.jit
def _transform(reference_points, sizes, level: tl.constexpr, P: tl.constexpr, R: tl.constexpr):
    """Origin of x and y, scale of x and y; see above. ``reference_points`` are pointers, one per query."""
    height = sizes[2 * level]
    width = sizes[2 * level + 1]
    origin_x, origin_y, scale_x, scale_y = -0.5, -0.5, width, height
    if reference_points is not None:
        origin_x = tl.load(reference_points + level * R) * width - 0.5
        origin_y = tl.load(reference_points + level * R + 1) * height - 0.5
        scale_x = 1.0
        scale_y = 1.0
        if R == 4:
            scale_x = tl.load(reference_points + level * R + 2) * (width * _half(P))
            scale_y = tl.load(reference_points + level * R + 3) * (height * _half(P))
    return origin_x, origin_y, scale_x, scale_y


@triton.jit
def _cell(position, size):
    """Lower pixel of a position along one axis (-2 if it touches none), and the fraction of a pixel from there.

    A position out of bounds never becomes an address.
    """
    position = tl.where((position > -1) & (position < size), position, -2.0)  # NaN compares false: out of bounds
    lower = tl.floor(position)
    return lower.to(tl.int32), position - lower


@triton.jit
def _sample(location, weight, softmax, transform, sizes, level: tl.constexpr, mask=None):
    """Attention weight, raw location (x, y) and cell (left, top, fraction in x, fraction in y) of a sample."""
    origin_x, origin_y, scale_x, scale_y = transform
    attention = tl.load(weight, mask=mask)
    if softmax is not None:
        attention = _exp(attention - softmax[0]) * softmax[1]
    raw_x = tl.load(location, mask=mask)
    raw_y = tl.load(location + 1, mask=mask)
    left, fraction_x = _cell(origin_x + raw_x * scale_x, sizes[2 * level + 1])
    top, fraction_y = _cell(origin_y + raw_y * scale_y, sizes[2 * level])
    return attention, raw_x, raw_y, (left, top, fraction_x, fraction_y)


@triton.jit
def _corner(right: tl.constexpr, below: tl.constexpr, cell, height, width, padding):
    """One of the four pixels around a sample: whether it has a value, and its bilinear weights in x and y."""
    left, top, fraction_x, fraction_y = cell
    in_bounds = (left + right).to(tl.uint32, bitcast=True) < width.to(tl.uint32, bitcast=True)  # 0 <= x < width
    in_bounds &= (top + below).to(tl.uint32, bitcast=True) < height.to(tl.uint32, bitcast=True)
    if padding is not None:
        in_bounds &= tl.load(padding + (top + below) * width + left + right, mask=in_bounds, other=1) == 0
    weight_x = fraction_x if right else 1 - fraction_x
    weight_y = fraction_y if below else 1 - fraction_y
    return in_bounds, weight_x, weight_y


@triton.jit
def _channels(PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """(PARTS, 1, WIDTH). Few lanes share a row and repeat its position arithmetic; each holds a bit of every part."""
    return tl.arange(0, PARTS)[:, None, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def _row_mask(valid, channel, D: tl.constexpr, PADDED_D: tl.constexpr):
    """Mask of the elements of rows. PADDED_D is the power of two from D on."""
    mask = valid[None, :, None]
    return mask if PADDED_D == D else mask & (channel < D)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels by queries. Offsets within a level have 32 bits; pointers advance from level to level.


@triton.jit(do_not_specialize=["num_queries", "num_tokens"])
def _forward(
    value, locations, weights, reference_points, padding, out,
    stride_b, stride_s, stride_m, num_queries, num_tokens, sizes,
    points: tl.constexpr, K: tl.constexpr, M: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sums of samples, (B, Q, M, D)."""
    image, head, query, row, valid = _tile(num_queries, M, TILE)
    locations += row * (2 * K)
    weights += row * K
    if reference_points is not None:
        reference_points += query * (len(points) * R)
    softmax = None if reference_points is None else _softmax(weights, K)
    channel = _channels(PARTS, WIDTH)
    value += image * stride_b + head * stride_m
    if padding is not None:
        padding += image * num_tokens
    total = tl.zeros((PARTS, TILE, WIDTH), tl.float32)
    first = 0
    for level in tl.static_range(len(points)):
        height, width = _size(sizes, level)
        transform = _transform(reference_points, sizes, level, points[level], R)
        for k in tl.range(first, first + points[level]):
            weight, _, _, cell = _sample(locations + 2 * k, weights + k, softmax, transform, sizes, level)
            pixel = value + channel + ((cell[1] * width + cell[0]) * stride_s)[None, :, None]
            for right in tl.static_range(2):  # with the loops swapped, a register is spilled on sm_80
                for below in tl.static_range(2):
                    in_bounds, weight_x, weight_y = _corner(right, below, cell, height, width, padding)
                    mask = _row_mask(in_bounds, channel, D, PARTS * WIDTH)
                    sample = tl.load(pixel + (below * width + right) * stride_s, mask=mask, other=0.0)
                    total += sample.to(tl.float32) * (weight * weight_y * weight_x)[None, :, None]
        first += points[level]
        value += height * width * stride_s
        if padding is not None:
            padding += height * width
    mask = _row_mask(valid, channel, D, PARTS * WIDTH)
    tl.store(out + (row * D)[None, :, None] + channel, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_queries", "num_tokens"])
def _backward(
    value, locations, weights, reference_points, padding, grad_out, grad_locations, grad_weights, grad_reference_points,
    stride_b, stride_s, stride_m, num_queries, num_tokens, sizes,
    points: tl.constexpr, K: tl.constexpr, M: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of locations, weights and reference points; ``None`` if not needed.

    ``grad_reference_points`` is (B, Q, M, L, R), before the sum over heads.
    """
    image, head, query, row, valid = _tile(num_queries, M, TILE)
    locations += row * (2 * K)
    weights += row * K
    if reference_points is not None:
        reference_points += query * (len(points) * R)
    softmax = None if reference_points is None else _softmax(weights, K)
    channel = _channels(PARTS, WIDTH)
    value += image * stride_b + head * stride_m
    if padding is not None:
        padding += image * num_tokens
    if grad_locations is not None:
        grad_locations += row * (2 * K)
    if grad_weights is not None:
        grad_weights += row * K
    if grad_reference_points is not None:
        grad_reference_points += row * (len(points) * R)
    mask = _row_mask(valid, channel, D, PARTS * WIDTH)
    grad = tl.load(grad_out + (row * D)[None, :, None] + channel, mask=mask, other=0.0).to(tl.float32)
    first = 0
    for level in tl.static_range(len(points)):
        height, width = _size(sizes, level)
        transform = _transform(reference_points, sizes, level, points[level], R)
        grad_center_x = tl.zeros((TILE,), tl.float32)  # of the reference point, in pixels
        grad_center_y = tl.zeros((TILE,), tl.float32)
        grad_size_x = tl.zeros((TILE,), tl.float32)
        grad_size_y = tl.zeros((TILE,), tl.float32)
        for k in tl.range(first, first + points[level]):
            weight, raw_x, raw_y, cell = _sample(locations + 2 * k, weights + k, softmax, transform, sizes, level)
            pixel = value + channel + ((cell[1] * width + cell[0]) * stride_s)[None, :, None]
            grad_x = tl.zeros((TILE,), tl.float32)  # of the position
            grad_y = tl.zeros((TILE,), tl.float32)
            grad_weight = tl.zeros((TILE,), tl.float32)
            for below in tl.static_range(2):
                for right in tl.static_range(2):
                    in_bounds, weight_x, weight_y = _corner(right, below, cell, height, width, padding)
                    mask = _row_mask(in_bounds, channel, D, PARTS * WIDTH)
                    sample = tl.load(pixel + (below * width + right) * stride_s, mask=mask, other=0.0)
                    dot = tl.sum(tl.sum(grad * sample.to(tl.float32), axis=0), axis=1)
                    grad_x += dot * weight_y if right else -dot * weight_y
                    grad_y += dot * weight_x if below else -dot * weight_x
                    grad_weight += dot * weight_y * weight_x
            inside = (cell[0] > -2) & (cell[1] > -2)  # elsewhere raw and scale may be infinite or NaN
            grad_x = tl.where(inside, grad_x * weight, 0.0)
            grad_y = tl.where(inside, grad_y * weight, 0.0)
            if grad_locations is not None:
                tl.store(grad_locations + 2 * k, tl.where(inside, grad_x * transform[2], 0.0), mask=valid)
                tl.store(grad_locations + 2 * k + 1, tl.where(inside, grad_y * transform[3], 0.0), mask=valid)
            if grad_weights is not None:
                tl.store(grad_weights + k, grad_weight, mask=valid)
            grad_center_x += grad_x
            grad_center_y += grad_y
            grad_size_x += tl.where(inside, grad_x * raw_x, 0.0)
            grad_size_y += tl.where(inside, grad_y * raw_y, 0.0)
        if grad_reference_points is not None:
            of_level = grad_reference_points + level * R
            tl.store(of_level, grad_center_x * width, mask=valid)
            tl.store(of_level + 1, grad_center_y * height, mask=valid)
            if R == 4:
                tl.store(of_level + 2, grad_size_x * (width * _half(points[level])), mask=valid)
                tl.store(of_level + 3, grad_size_y * (height * _half(points[level])), mask=valid)
        first += points[level]
        value += height * width * stride_s
        if padding is not None:
            padding += height * width

    if softmax is not None and grad_weights is not None:  # the derivative of softmax
        tl.debug_barrier()  # lanes read what other lanes have written
        k = tl.arange(0, triton.next_power_of_2(K))[None, :]
        mask = valid[:, None] & (k < K)
        weight = tl.load(weights[:, None] + k, mask=mask, other=float("-inf"))
        weight = _exp(weight - softmax[0][:, None]) * softmax[1][:, None]
        grad_weight = tl.load(grad_weights[:, None] + k, mask=mask, other=0.0)
        mean = tl.sum(weight * grad_weight, axis=1)[:, None]
        tl.store(grad_weights[:, None] + k, weight * (grad_weight - mean), mask=mask)


@triton.jit(do_not_specialize=["num_queries", "num_tokens"])
def _add(
    grad_value, locations, weights, reference_points, padding, grad_out,
    stride_b, stride_s: tl.constexpr, stride_m, num_queries, num_tokens, sizes,
    points: tl.constexpr, K: tl.constexpr, M: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of ``value``: adds each sample atomically to memory that holds zeros, in no particular order."""
    image, head, query, row, valid = _tile(num_queries, M, TILE)
    locations += row * (2 * K)
    weights += row * K
    if reference_points is not None:
        reference_points += query * (len(points) * R)
    softmax = None if reference_points is None else _softmax(weights, K)
    channel = _channels(PARTS, WIDTH)
    grad_value += image * stride_b + head * stride_m
    if padding is not None:
        padding += image * num_tokens
    mask = _row_mask(valid, channel, D, PARTS * WIDTH)
    grad = tl.load(grad_out + (row * D)[None, :, None] + channel, mask=mask, other=0.0)
    first = 0
    for level in tl.static_range(len(points)):
        height, width = _size(sizes, level)
        transform = _transform(reference_points, sizes, level, points[level], R)
        for k in tl.range(first, first + points[level]):
            weight, _, _, cell = _sample(locations + 2 * k, weights + k, softmax, transform, sizes, level)
            pixel = grad_value + channel + ((cell[1] * width + cell[0]) * stride_s)[None, :, None]
            for below in tl.static_range(2):
                for right in tl.static_range(2):
                    in_bounds, weight_x, weight_y = _corner(right, below, cell, height, width, padding)
                    mask = _row_mask(in_bounds & valid, channel, D, PARTS * WIDTH)
                    product = grad * (weight * weight_y * weight_x)[None, :, None]
                    tl.atomic_add(pixel + (below * width + right) * stride_s, product, mask=mask, sem="relaxed")
        first += points[level]
        grad_value += height * width * stride_s
        if padding is not None:
            padding += height * width


# ---------------------------------------------------------------------------------------------------------------------
# Gradient of value by bins: samples are sorted into bins; one program sums and writes the pixels that a bin touches.


@triton.jit
def _bins(sizes, level: tl.constexpr):
    """Rows and columns of bins of a level. The first cell is before the first pixel, the last one behind the last."""
    height, width = _size(sizes, level)
    return (height + BIN_SIDE) // BIN_SIDE, (width + BIN_SIDE) // BIN_SIDE


@triton.jit
def _bins_of_head(sizes, L: tl.constexpr):
    total = 0
    for level in tl.static_range(L):
        bin_rows, bin_columns = _bins(sizes, level)
        total += bin_rows * bin_columns
    return total


@triton.jit(do_not_specialize=["num_queries", "num_bins"])
def _bin(
    locations, weights, reference_points, keys, positions, num_queries, num_bins, sizes,
    points: tl.constexpr, K: tl.constexpr, M: tl.constexpr, R: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Bin of each sample (``num_bins`` if it touches no pixel), its position in the tile and its weight.

    ``keys`` is (B, Q, M, K), ``positions`` (B, Q, M, K, 3).
    """
    image, head, query, row, valid = _tile(num_queries, M, TILE)
    row = row[:, None]
    locations += row * (2 * K)
    weights += row * K
    keys += row * K
    positions += row * (3 * K)
    if reference_points is not None:
        reference_points += query[:, None] * (len(points) * R)
    softmax = None if reference_points is None else _softmax(weights, K)
    first_bin = (image * M + head).to(tl.int32) * _bins_of_head(sizes, len(points))
    first = 0
    for level in tl.static_range(len(points)):
        bin_rows, bin_columns = _bins(sizes, level)
        if points[level]:
            point = tl.arange(0, triton.next_power_of_2(points[level]))[None, :]
            k = first + point
            mask = valid[:, None] & (point < points[level])
            transform = _transform(reference_points, sizes, level, points[level], R)
            weight, _, _, cell = _sample(locations + 2 * k, weights + k, softmax, transform, sizes, level, mask)
            left, top, fraction_x, fraction_y = cell
            bin_column = (left + 1) // BIN_SIDE
            bin_row = (top + 1) // BIN_SIDE
            key = tl.where((left > -2) & (top > -2), first_bin + bin_row * bin_columns + bin_column, num_bins)
            tl.store(keys + k, key.to(keys.dtype.element_ty), mask=mask)
            tl.store(positions + 3 * k, left + 1 - bin_column * BIN_SIDE + fraction_x, mask=mask)
            tl.store(positions + 3 * k + 1, top + 1 - bin_row * BIN_SIDE + fraction_y, mask=mask)
            tl.store(positions + 3 * k + 2, weight, mask=mask)
        first += points[level]
        first_bin += bin_rows * bin_columns


@triton.jit(do_not_specialize=["num_bins"])
def _accumulate_tile(
    grad_out, order, positions, bin_bounds, chunk_ends, chunk_bins, tiles, num_bins,
    K: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr,
    TYPE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of the pixels of a tile from the samples of one chunk of its bin: (chunks, TILE_SIDE**2, D).

    It is a matrix product of the bilinear weights (pixels, samples) and ``grad_out`` (samples, channels). The weight is
    1 for a sample on the pixel and 0 for one that is a pixel away. NaN spreads over the tile.
    """
    chunk = tl.program_id(0)
    bin = tl.load(chunk_bins + chunk)
    if bin < num_bins:  # programs are launched for the worst case
        begin = tl.load(bin_bounds + bin)
        end = tl.load(bin_bounds + bin + 1)
        begin += (chunk - tl.load(chunk_ends + bin) + tl.cdiv(end - begin, CHUNK)) * CHUNK
        end = tl.minimum(begin + CHUNK, end)
        channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
        pixel = tl.arange(0, TILE_SIDE)[:, None]
        total = tl.zeros((TILE_SIDE * TILE_SIDE, WIDTH), tl.float32)
        for step in range(begin, end, STEP):
            index = step + tl.arange(0, STEP)
            valid = index < end
            sample = tl.load(order + index, mask=valid, other=0)
            x = tl.load(positions + 3 * sample, mask=valid, other=0.0)
            y = tl.load(positions + 3 * sample + 1, mask=valid, other=0.0)
            weight = tl.load(positions + 3 * sample + 2, mask=valid, other=0.0)
            weight_x = tl.maximum(1 - tl.abs(x[None, :] - pixel), 0.0)  # (TILE_SIDE, STEP)
            weight_y = tl.maximum(1 - tl.abs(y[None, :] - pixel), 0.0) * weight[None, :]
            weights = (weight_y[:, None, :] * weight_x[None, :, :]).reshape(TILE_SIDE * TILE_SIDE, STEP)
            row = (sample.to(tl.int32) // K).to(tl.int64)
            mask = valid[:, None] & (channel < D)
            grad = tl.load(grad_out + (row * D)[:, None] + channel, mask=mask, other=0.0)
            total = tl.dot(weights.to(TYPE), grad.to(TYPE), total, input_precision=PRECISION)
        offset = (chunk.to(tl.int64) * (TILE_SIDE * TILE_SIDE) + tl.arange(0, TILE_SIDE * TILE_SIDE)) * D
        tl.store(tiles + offset[:, None] + channel, total, mask=channel < D)


@triton.jit(do_not_specialize=["num_tokens"])
def _gather(
    tiles, chunk_ends, padding, grad_value, num_tokens, sizes,
    L: tl.constexpr, M: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Writes each pixel once. A program writes the pixels of one tile except its last row and column.

    Neighboring tiles overlap by one row or column: the first column also sums the tile on the left, the first row the
    one above.
    """
    bin = tl.program_id(0)
    number = bin % _bins_of_head(sizes, L)
    image_head = bin // _bins_of_head(sizes, L)
    # The level of the bin is the last one whose bins begin before it.
    height, width = _size(sizes, 0)
    bin_rows, bin_columns = _bins(sizes, 0)
    bins_before, tokens_before = 0, 0
    bins, tokens = bin_rows * bin_columns, height * width
    for level in tl.static_range(1, L):
        next_height, next_width = _size(sizes, level)
        next_rows, next_columns = _bins(sizes, level)
        reached = number >= bins
        bins_before = tl.where(reached, bins, bins_before)
        tokens_before = tl.where(reached, tokens, tokens_before)
        height = tl.where(reached, next_height, height)
        width = tl.where(reached, next_width, width)
        bin_columns = tl.where(reached, next_columns, bin_columns)
        bins += next_rows * next_columns
        tokens += next_height * next_width
    bin_row = (number - bins_before) // bin_columns
    bin_column = (number - bins_before) % bin_columns

    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)[None, :]
    tile_x = tl.arange(0, TILE_SIDE * TILE_SIDE)[:, None] % TILE_SIDE
    tile_y = tl.arange(0, TILE_SIDE * TILE_SIDE)[:, None] // TILE_SIDE
    total = tl.zeros((TILE_SIDE * TILE_SIDE, WIDTH), tl.float32)
    for above in tl.static_range(2):
        for left in tl.static_range(2):
            valid = (bin_column >= left) & (bin_row >= above)
            touched = ((tile_x == 0) | (left == 0)) & ((tile_y == 0) | (above == 0))
            offset = ((tile_y + above * BIN_SIDE) * TILE_SIDE + tile_x + left * BIN_SIDE) * D + channel
            neighbor = bin - left - above * bin_columns
            begin = tl.load(chunk_ends + neighbor - 1, mask=valid & (neighbor > 0), other=0)
            end = tl.load(chunk_ends + neighbor, mask=valid, other=0)
            for chunk in range(begin, end):
                tile = tiles + tl.cast(chunk, tl.int64) * (TILE_SIDE * TILE_SIDE * D)
                total += tl.load(tile + offset, mask=touched & (channel < D), other=0.0)
    x = bin_column * BIN_SIDE - 1 + tile_x
    y = bin_row * BIN_SIDE - 1 + tile_y
    mask = (tile_x < BIN_SIDE) & (tile_y < BIN_SIDE) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    token = (image_head // M).to(tl.int64) * num_tokens + tokens_before + y * width + x
    if padding is not None:
        total = tl.where(tl.load(padding + token, mask=mask, other=0) == 0, total, 0.0)
    offset = (token * M + image_head % M) * D + channel
    tl.store(grad_value + offset, total.to(grad_value.dtype.element_ty), mask=mask & (channel < D))


# ---------------------------------------------------------------------------------------------------------------------
# From tensors to kernels. Nothing here waits for the GPU: whatever depends on data is allocated for the worst case.


def tiling(channels: int, element_size: int) -> dict[str, int]:
    """How one warp of a kernel by queries holds (queries, channels) in its registers.

    A lane holds one memory access of a row, and a row has as many lanes as that needs: 8 for 32 channels of float32.
    Each lane repeats the arithmetic of positions. Fewer lanes with several accesses each would repeat it less, but
    take so many registers that too few warps run at a time: with 4 accesses, the forward pass takes 1.2 to 1.6 times
    and the backward pass 1.6 to 1.8 times as long on an H100 (experiment E2).
    """
    padded = triton.next_power_of_2(channels)
    width = min(padded, WARP_SIZE * ACCESS_BYTES // element_size)
    lanes = max(1, width * element_size // ACCESS_BYTES)
    fitting = max(1, WARP_SIZE * 32 // padded)  # limited by registers for very many channels
    tile = min(WARP_SIZE // lanes, fitting)
    return {"D": channels, "TILE": tile, "PARTS": padded // width, "WIDTH": width, "num_warps": 1}


def use_binned_backward(element_size: int, tokens: int, queries: int, points: int) -> bool:
    """Whether bins compute the gradient of ``value`` faster than atomic additions.

    The binned method sorts the samples and writes every pixel; the time of atomic additions grows with the samples: 16
    per row of ``value`` in an encoder in which each pixel samples 16 points, below 1 in a usual decoder. On an H100,
    bins need 0.9 to 1.0 of the time in an encoder in 16 bits, 1.6 in float32, and more with fewer samples (experiment
    E1).
    """
    return element_size == 2 and queries * points >= BINNED_FROM * tokens


def _prepared(inputs: Inputs) -> Inputs:
    """In the layout that kernels read."""
    value, shapes, points, locations, weights, reference_points, padding = inputs
    if value.stride(3) != 1:
        value = value.contiguous()
    if value.shape[1] * value.stride(1) >= 2**31:  # offsets within a head have 32 bits
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
    reference_points = None if reference_points is None else reference_points.contiguous()
    padding = None if padding is None else padding.contiguous().view(torch.uint8)
    return Inputs(value, shapes, points, locations.contiguous(), weights.contiguous(), reference_points, padding)


def _sizes(shapes: Shapes) -> tuple[float, ...]:
    """Heights and widths, as floats: Triton would compile again for integers that are 1 or divisible by 16."""
    return tuple(float(size) for shape in shapes for size in shape)


def _constants(inputs: Inputs) -> dict[str, Any]:
    """A kernel is compiled for each of these and each dtype of ``value``, not for numbers of queries and sizes."""
    _, _, heads, samples = inputs.weights.shape
    return {"points": inputs.points, "K": samples, "M": heads, "R": inputs.reference_dim, **COMPILE}


def _programs(inputs: Inputs, tile: int) -> tuple[int]:
    batch, queries, heads, _ = inputs.weights.shape
    return (triton.cdiv(queries, tile) * batch * heads,)


def _launch(kernel: Any, inputs: Inputs, value: Tensor, *others: Tensor | None) -> None:
    """Launches a kernel by queries. ``value`` is the tensor that it samples or adds samples to."""
    _, tokens, _, channels = value.shape
    tile = tiling(channels, value.element_size())
    kernel[_programs(inputs, tile["TILE"])](
        value, *inputs[3:], *others, *value.stride()[:3], inputs.weights.shape[1], tokens, _sizes(inputs.shapes),
        **_constants(inputs), **tile,
    )  # fmt: skip


def forward(inputs: Inputs) -> Tensor:
    """See ``operator.ms_deform_attn``."""
    value, weights = inputs.value, inputs.weights
    out = value.new_empty(*weights.shape[:2], value.shape[2] * value.shape[3])
    if not out.numel() or not weights.numel():
        return out.zero_()
    inputs = _prepared(inputs)
    with torch.cuda.device_of(value):
        _launch(_forward, inputs, inputs.value, out)
    return out


def backward(grad_out: Tensor, inputs: Inputs, needs: Needs) -> Gradients:
    """See ``operator.ms_deform_attn_backward``."""
    value, weights = inputs.value, inputs.weights
    differentiable = (value, inputs.locations, weights, inputs.reference_points)
    grads: list[Tensor | None] = [None] * 4
    if not grad_out.numel() or not weights.numel():
        grads = [
            torch.zeros_like(tensor) if need and tensor is not None else None
            for tensor, need in zip(differentiable, needs, strict=True)
        ]
    elif any(needs):
        grad_out = grad_out.contiguous()
        inputs = _prepared(inputs)
        reference_points = inputs.reference_points
        with torch.cuda.device_of(value):
            if needs[0]:
                binned = use_binned_backward(value.element_size(), value.shape[1], weights.shape[1], weights.shape[3])
                binned = binned or torch.are_deterministic_algorithms_enabled()
                grads[0] = (_by_bins if binned else _by_atomics)(grad_out, inputs)
            if needs[1]:
                grads[1] = torch.empty_like(inputs.locations)
            if needs[2]:
                grads[2] = torch.empty_like(inputs.weights)
            if needs[3] and reference_points is not None:
                grads[3] = reference_points.new_empty(*weights.shape[:3], *reference_points.shape[2:])
            if any(needs[1:]):
                _launch(_backward, inputs, inputs.value, grad_out, *grads[1:])
        if grads[3] is not None:
            grads[3] = grads[3].sum(dim=2)  # over heads
    gradients = [value.new_empty(0) if gradient is None else gradient for gradient in grads]
    return gradients[0], gradients[1], gradients[2], gradients[3]


def _by_atomics(grad_out: Tensor, inputs: Inputs) -> Tensor:
    """Gradient of ``value`` in its dtype, for few samples."""
    value = inputs.value
    batch, tokens, heads, channels = value.shape
    grad_value = torch.zeros(batch, tokens, heads, channels, dtype=torch.float32, device=grad_out.device)
    if tokens * heads * channels >= 2**31:  # see ``_prepared``
        grad_value = grad_value.view(batch, heads, tokens, channels).transpose(1, 2)
    _launch(_add, inputs, grad_value, grad_out.float())  # in half precision a lane loads more than it adds at once
    return grad_value.to(value.dtype).contiguous()


def _by_bins(grad_out: Tensor, inputs: Inputs) -> Tensor:
    """Gradient of ``value`` in its dtype; deterministic."""
    value, sizes, weights = inputs.value, _sizes(inputs.shapes), inputs.weights
    batch, tokens, heads, channels = value.shape
    samples = weights.numel()
    assert samples < 2**31 - CHUNK.value, f"{samples} samples are too many to index in 32 bits"
    side = BIN_SIDE.value
    bins = batch * heads * sum(((h + side) // side) * ((w + side) // side) for h, w in inputs.shapes)

    def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(size, dtype=dtype, device=value.device)

    def arange(end: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.arange(end, dtype=dtype, device=value.device)

    # The samples of a bin are order[bin_bounds[bin] : bin_bounds[bin + 1]].
    keys = empty(samples, dtype=torch.int16 if bins < 2**15 else torch.int32)  # short keys are sorted faster
    positions = empty(samples, 3)
    _bin[_programs(inputs, QUERIES_TO_BIN)](
        inputs.locations, weights, inputs.reference_points, keys, positions, weights.shape[1], bins, sizes,
        **_constants(inputs), TILE=QUERIES_TO_BIN, num_warps=max(1, QUERIES_TO_BIN // WARP_SIZE),
    )  # fmt: skip
    keys, order = keys.sort(stable=True)
    bin_bounds = torch.searchsorted(keys, arange(bins + 1, keys.dtype), out_int32=True)
    # The chunks of a bin are those from chunk_ends[bin - 1] to chunk_ends[bin].
    chunk_ends = ((bin_bounds.diff() + (CHUNK.value - 1)) // CHUNK.value).cumsum(0, dtype=torch.int32)
    chunks = min(bins, samples) + samples // CHUNK.value  # at most
    chunk_bins = torch.searchsorted(chunk_ends, arange(chunks), right=True, out_int32=True)

    tiles = empty(chunks, TILE_SIDE.value**2, channels)
    width = max(16, min(64, triton.next_power_of_2(channels)))  # tensor cores require at least 16
    parts = triton.cdiv(channels, width)
    launch = {"D": channels, "WIDTH": width, "num_warps": 4, **COMPILE}
    _accumulate_tile[(chunks, parts)](
        grad_out, order, positions, bin_bounds, chunk_ends, chunk_bins, tiles, bins,
        K=weights.shape[3], STEP=STEPS[value.dtype],
        TYPE=DOT_TYPES[value.dtype], PRECISION=DOT_PRECISION, **launch,
    )  # fmt: skip
    grad_value = empty(*value.shape, dtype=value.dtype)
    _gather[(bins, parts)](
        tiles, chunk_ends, inputs.padding, grad_value, tokens, sizes, L=len(inputs.points), M=heads, **launch
    )  # fmt: skip
    return grad_value
