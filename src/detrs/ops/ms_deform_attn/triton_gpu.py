"""Multi-scale deformable attention on the GPU, written in Triton. The README of this folder tells how it works.

Axes: B images, S tokens of all levels, M heads, D channels per head, Q queries, L levels, P points of a level, K points
of all levels. A *row* is one head of one token or query, a *slab* one head of one image.

Whatever a query predicts for a sample becomes a position in pixels of the level in the same way, ``base + raw * scale``:

    ========================  ===========================  ==========================
    raw                       base                         scale
    ========================  ===========================  ==========================
    location                  -0.5                         width
    offset around a point     reference x * width - 0.5    1
    offset around a box       reference x * width - 0.5    reference w * width / 2P
    ========================  ===========================  ==========================

and likewise for y. Positions and sums are float32, whatever the type of ``value``.
"""
# Triton gives types to what it compiles, and launches a kernel through an index that its stubs do not know:
# mypy: allow-untyped-defs, allow-untyped-decorators, disable-error-code="index, type-arg"

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
"""Samples that one program adds up. Longer bins are shared by several, or one full bin would keep all others waiting."""

OWNERS_FROM = 4
"""Samples per row of ``value`` from which sorting them costs less than adding them to memory one by one."""

# What the owners multiply, and how: three products of half as many bits have the precision of float32.
DOT_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
DOT_PRECISION = tl.constexpr("tf32x3")


# ---------------------------------------------------------------------------------------------------------------------
# Parts of kernels


@triton.jit
def _tile(num_queries, M: tl.constexpr, TILE: tl.constexpr):
    """What this program works on: image, head, queries, and which of these exist (the others repeat the last one)."""
    tiles = tl.cdiv(num_queries, TILE)
    slab = tl.program_id(0) // tiles
    query = tl.program_id(0) % tiles * TILE + tl.arange(0, TILE)
    return slab // M, slab % M, tl.minimum(query, num_queries - 1), query < num_queries


@triton.jit
def _channels(PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """(PARTS, 1, WIDTH): a lane holds channels of every part, so that what belongs to a query is computed by few lanes."""
    return tl.arange(0, PARTS)[:, None, None] * WIDTH + tl.arange(0, WIDTH)[None, None, :]


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
def _placement(reference, sizes, level: tl.constexpr, P: tl.constexpr, BOX: tl.constexpr):
    """``base`` of x and y, ``scale`` of x and y (see above). ``reference`` points to that of each query and this level."""
    height = sizes[2 * level]
    width = sizes[2 * level + 1]
    if reference is None:
        base_x = -0.5
        base_y = -0.5
        scale_x = width
        scale_y = height
    else:
        base_x = tl.load(reference) * width - 0.5
        base_y = tl.load(reference + 1) * height - 0.5
        if BOX:
            scale_x = tl.load(reference + 2) * (width * _half(P))
            scale_y = tl.load(reference + 3) * (height * _half(P))
        else:
            scale_x = 1.0
            scale_y = 1.0
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
def _corner(right: tl.constexpr, below: tl.constexpr, left, top, across, down, height, width):
    """Of one of the four pixels around a position: does it exist, and its bilinear weight in x and in y."""
    exists_x = (left + right).to(tl.uint32, bitcast=True) < width.to(tl.uint32, bitcast=True)
    exists_y = (top + below).to(tl.uint32, bitcast=True) < height.to(tl.uint32, bitcast=True)
    near_x = across if right else 1 - across
    near_y = down if below else 1 - down
    return exists_x & exists_y, near_x, near_y


@triton.jit
def _with_channels(there, channel, D: tl.constexpr, WHOLE: tl.constexpr):
    """Mask of the elements of rows; ``WHOLE`` if there are as many channels as the kernel has room for."""
    mask = there[None, :, None]
    return mask if WHOLE else mask & (channel < D)


@triton.jit
def _softmax(logits, first, K: tl.constexpr):
    """Largest logit and one over the sum of exponentials, of the K logits that begin at each ``first``.

    Not as rows of a matrix: lanes that hold rows would have to hand their results to the lanes that need them.
    """
    largest = tl.load(logits + first)
    for k in tl.static_range(1, K):
        largest = tl.maximum(largest, tl.load(logits + first + k))
    total = tl.exp(tl.load(logits + first) - largest)
    for k in tl.static_range(1, K):
        total += tl.exp(tl.load(logits + first + k) - largest)
    return largest, 1 / total


# ---------------------------------------------------------------------------------------------------------------------
# Kernels of queries: a program owns some queries of one slab


@triton.jit(do_not_specialize=["num_queries", "num_tokens"])
def _forward(
    value, locations, weights, reference, padding, out,
    stride_b, stride_s, stride_m, num_queries, num_tokens, sizes,
    points: tl.constexpr, K: tl.constexpr, M: tl.constexpr, D: tl.constexpr, BOX: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Each sum of samples, (B, Q, M, D)."""
    L: tl.constexpr = len(points)
    R: tl.constexpr = 4 if BOX else 2
    WHOLE: tl.constexpr = D == PARTS * WIDTH
    image, head, query, exists = _tile(num_queries, M, TILE)
    channel = _channels(PARTS, WIDTH)
    row = query * M + head
    # Addresses are 64-bit numbers up to the image, and 32-bit from there on.
    image = image.to(tl.int64)
    value += image * stride_b + head * stride_m
    locations += image * num_queries * (M * K * 2)
    weights += image * num_queries * (M * K)
    out += image * num_queries * (M * D)
    if padding is not None:
        padding += image * num_tokens
    if reference is not None:
        reference += image * num_queries * (L * R)
        largest, inverse = _softmax(weights, row * K, K)

    total = tl.zeros((PARTS, TILE, WIDTH), tl.float32)
    k = row * K
    for level in tl.static_range(L):
        height, width = _size(sizes, level)
        here = reference + (query * L + level) * R if reference is not None else None
        base_x, base_y, scale_x, scale_y = _placement(here, sizes, level, points[level], BOX)
        for _ in tl.range(points[level]):
            weight = tl.load(weights + k)
            if reference is not None:
                weight = tl.exp(weight - largest) * inverse
            left, across = _cell(base_x + tl.load(locations + 2 * k) * scale_x, sizes[2 * level + 1])
            top, down = _cell(base_y + tl.load(locations + 2 * k + 1) * scale_y, sizes[2 * level])
            token = top * width + left
            pixel = value + channel + (token * stride_s)[None, :, None]
            for below in tl.static_range(2):
                for right in tl.static_range(2):
                    there, near_x, near_y = _corner(right, below, left, top, across, down, height, width)
                    if padding is not None:
                        there &= tl.load(padding + token + below * width + right, mask=there, other=1) == 0
                    mask = _with_channels(there, channel, D, WHOLE)
                    sample = tl.load(pixel + (below * width + right) * stride_s, mask=mask, other=0.0)
                    total += sample.to(tl.float32) * (weight * near_y * near_x)[None, :, None]
            k += 1
        value += height * width * stride_s
        if padding is not None:
            padding += height * width
    mask = _with_channels(exists, channel, D, WHOLE)
    tl.store(out + (row * D)[None, :, None] + channel, total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_queries", "num_tokens"])
def _backward(
    grad_out, value, locations, weights, reference, padding, grad_locations, grad_weights, grad_reference,
    stride_b, stride_s, stride_m, num_queries, num_tokens, sizes,
    points: tl.constexpr, K: tl.constexpr, M: tl.constexpr, D: tl.constexpr, BOX: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of what the queries predict; those that are ``None`` are not wanted.

    ``grad_reference`` is (B, Q, M, L, 2 or 4), that is, before the sum over heads.
    """
    L: tl.constexpr = len(points)
    R: tl.constexpr = 4 if BOX else 2
    WHOLE: tl.constexpr = D == PARTS * WIDTH
    image, head, query, exists = _tile(num_queries, M, TILE)
    channel = _channels(PARTS, WIDTH)
    row = query * M + head
    image = image.to(tl.int64)
    value += image * stride_b + head * stride_m
    grad_out += image * num_queries * (M * D)
    locations += image * num_queries * (M * K * 2)
    weights += image * num_queries * (M * K)
    if padding is not None:
        padding += image * num_tokens
    if grad_locations is not None:
        grad_locations += image * num_queries * (M * K * 2)
    if grad_weights is not None:
        grad_weights += image * num_queries * (M * K)
    if grad_reference is not None:
        grad_reference += image * num_queries * (M * L * R)
    if reference is not None:
        reference += image * num_queries * (L * R)
        largest, inverse = _softmax(weights, row * K, K)

    mask = _with_channels(exists, channel, D, WHOLE)
    grad = tl.load(grad_out + (row * D)[None, :, None] + channel, mask=mask, other=0.0).to(tl.float32)
    k = row * K
    for level in tl.static_range(L):
        height, width = _size(sizes, level)
        here = reference + (query * L + level) * R if reference is not None else None
        base_x, base_y, scale_x, scale_y = _placement(here, sizes, level, points[level], BOX)
        center_x = tl.zeros((TILE,), tl.float32)  # gradients of the reference, in pixels
        center_y = tl.zeros((TILE,), tl.float32)
        size_x = tl.zeros((TILE,), tl.float32)
        size_y = tl.zeros((TILE,), tl.float32)
        for _ in tl.range(points[level]):
            weight = tl.load(weights + k)
            if reference is not None:
                weight = tl.exp(weight - largest) * inverse
            raw_x = tl.load(locations + 2 * k)
            raw_y = tl.load(locations + 2 * k + 1)
            left, across = _cell(base_x + raw_x * scale_x, sizes[2 * level + 1])
            top, down = _cell(base_y + raw_y * scale_y, sizes[2 * level])
            token = top * width + left
            pixel = value + channel + (token * stride_s)[None, :, None]
            along_x = tl.zeros((TILE,), tl.float32)  # gradients of the position
            along_y = tl.zeros((TILE,), tl.float32)
            along_weight = tl.zeros((TILE,), tl.float32)
            for below in tl.static_range(2):
                for right in tl.static_range(2):
                    there, near_x, near_y = _corner(right, below, left, top, across, down, height, width)
                    if padding is not None:
                        there &= tl.load(padding + token + below * width + right, mask=there, other=1) == 0
                    mask = _with_channels(there, channel, D, WHOLE)
                    sample = tl.load(pixel + (below * width + right) * stride_s, mask=mask, other=0.0)
                    dot = tl.sum(tl.sum(grad * sample.to(tl.float32), axis=0), axis=1)
                    along_x += dot * near_y if right else -dot * near_y
                    along_y += dot * near_x if below else -dot * near_x
                    along_weight += dot * near_y * near_x
            inside = (left > -2) & (top > -2)
            along_x = tl.where(inside, along_x * weight, 0.0)
            along_y = tl.where(inside, along_y * weight, 0.0)
            if grad_locations is not None:
                tl.store(grad_locations + 2 * k, tl.where(inside, along_x * scale_x, 0.0), mask=exists)
                tl.store(grad_locations + 2 * k + 1, tl.where(inside, along_y * scale_y, 0.0), mask=exists)
            if grad_weights is not None:
                tl.store(grad_weights + k, along_weight, mask=exists)
            center_x += along_x
            center_y += along_y
            size_x += along_x * tl.where(inside, raw_x, 0.0)
            size_y += along_y * tl.where(inside, raw_y, 0.0)
            k += 1
        if grad_reference is not None:
            here = grad_reference + (row * L + level) * R
            tl.store(here, center_x * width, mask=exists)
            tl.store(here + 1, center_y * height, mask=exists)
            if BOX:
                tl.store(here + 2, size_x * (width * _half(points[level])), mask=exists)
                tl.store(here + 3, size_y * (height * _half(points[level])), mask=exists)
        value += height * width * stride_s
        if padding is not None:
            padding += height * width

    if reference is not None and grad_weights is not None:  # from weights to logits: the derivative of softmax
        tl.debug_barrier()  # other lanes read what was just written
        k = tl.arange(0, triton.next_power_of_2(K))
        place = (row * K)[:, None] + k[None, :]
        mask = exists[:, None] & (k < K)[None, :]
        weight = tl.exp(tl.load(weights + place, mask=mask, other=float("-inf")) - largest[:, None]) * inverse[:, None]
        sampled = tl.load(grad_weights + place, mask=mask, other=0.0)
        mean = tl.sum(weight * sampled, axis=1)
        tl.store(grad_weights + place, weight * (sampled - mean[:, None]), mask=mask)


@triton.jit(do_not_specialize=["num_queries", "num_tokens"])
def _add(
    grad_out, locations, weights, reference, padding, grad_value, num_queries, num_tokens, sizes,
    points: tl.constexpr, K: tl.constexpr, M: tl.constexpr, D: tl.constexpr, BOX: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of ``value``, sample by sample: added to memory that begins as zeros, in whatever order they come."""
    L: tl.constexpr = len(points)
    R: tl.constexpr = 4 if BOX else 2
    WHOLE: tl.constexpr = D == PARTS * WIDTH
    image, head, query, exists = _tile(num_queries, M, TILE)
    channel = _channels(PARTS, WIDTH)
    row = query * M + head
    image = image.to(tl.int64)
    grad_out += image * num_queries * (M * D)
    locations += image * num_queries * (M * K * 2)
    weights += image * num_queries * (M * K)
    grad_value += image * num_tokens * (M * D) + head * D
    if padding is not None:
        padding += image * num_tokens
    if reference is not None:
        reference += image * num_queries * (L * R)
        largest, inverse = _softmax(weights, row * K, K)

    mask = _with_channels(exists, channel, D, WHOLE)
    grad = tl.load(grad_out + (row * D)[None, :, None] + channel, mask=mask, other=0.0)
    k = row * K
    for level in tl.static_range(L):
        height, width = _size(sizes, level)
        here = reference + (query * L + level) * R if reference is not None else None
        base_x, base_y, scale_x, scale_y = _placement(here, sizes, level, points[level], BOX)
        for _ in tl.range(points[level]):
            weight = tl.load(weights + k)
            if reference is not None:
                weight = tl.exp(weight - largest) * inverse
            left, across = _cell(base_x + tl.load(locations + 2 * k) * scale_x, sizes[2 * level + 1])
            top, down = _cell(base_y + tl.load(locations + 2 * k + 1) * scale_y, sizes[2 * level])
            token = top * width + left
            pixel = grad_value + channel + (token * (M * D))[None, :, None]
            for below in tl.static_range(2):
                for right in tl.static_range(2):
                    there, near_x, near_y = _corner(right, below, left, top, across, down, height, width)
                    there &= exists
                    if padding is not None:
                        there &= tl.load(padding + token + below * width + right, mask=there, other=1) == 0
                    mask = _with_channels(there, channel, D, WHOLE)
                    share = grad * (weight * near_y * near_x)[None, :, None]
                    tl.atomic_add(pixel + (below * width + right) * (M * D), share, mask=mask, sem="relaxed")
            k += 1
        grad_value += height * width * (M * D)
        if padding is not None:
            padding += height * width


# ---------------------------------------------------------------------------------------------------------------------
# Gradient of value by owners: samples are sorted into bins, and a program owns what the samples of one bin touch.


@triton.jit
def _bins(height, width):
    """Rows and columns of bins of a level. The first cell lies before the first pixel, the last behind the last."""
    return (height + CELLS) // CELLS, (width + CELLS) // CELLS


@triton.jit(do_not_specialize=["num_queries", "num_slabs"])
def _bin(
    locations, weights, reference, keys, placed, num_queries, num_slabs, sizes,
    points: tl.constexpr, K: tl.constexpr, M: tl.constexpr, BOX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The bin of each sample (all other samples get the number of bins), its position in the tile, and its weight.

    ``keys`` is (B, Q, M, K), ``placed`` (B, Q, M, K, 3).
    """
    L: tl.constexpr = len(points)
    R: tl.constexpr = 4 if BOX else 2
    image, head, query, exists = _tile(num_queries, M, TILE)
    slab = image * M + head
    row = query * M + head
    image = image.to(tl.int64)
    locations += image * num_queries * (M * K * 2)
    weights += image * num_queries * (M * K)
    keys += image * num_queries * (M * K)
    placed += image * num_queries * (M * K * 3)
    if reference is not None:
        reference += image * num_queries * (L * R)
        largest, inverse = _softmax(weights, row * K, K)

    num_bins = 0  # of one slab
    for level in tl.static_range(L):
        height, width = _size(sizes, level)
        rows, columns = _bins(height, width)
        num_bins += rows * columns
    first = row * K
    before = slab * num_bins
    for level in tl.static_range(L):
        height, width = _size(sizes, level)
        rows, columns = _bins(height, width)
        if points[level]:
            point = tl.arange(0, triton.next_power_of_2(points[level]))
            k = first[:, None] + point[None, :]
            mask = exists[:, None] & (point < points[level])[None, :]
            here = reference + ((query * L + level) * R)[:, None] if reference is not None else None
            base_x, base_y, scale_x, scale_y = _placement(here, sizes, level, points[level], BOX)
            x = base_x + tl.load(locations + 2 * k, mask=mask, other=0.0) * scale_x
            y = base_y + tl.load(locations + 2 * k + 1, mask=mask, other=0.0) * scale_y
            weight = tl.load(weights + k, mask=mask, other=0.0)
            if reference is not None:
                weight = tl.exp(weight - largest[:, None]) * inverse[:, None]
            left, across = _cell(x, sizes[2 * level + 1])
            top, down = _cell(y, sizes[2 * level])
            column = (left + 1) // CELLS
            line = (top + 1) // CELLS
            key = tl.where((left > -2) & (top > -2), before + line * columns + column, num_slabs * num_bins)
            tl.store(keys + k, key.to(keys.dtype.element_ty), mask=mask)
            tl.store(placed + 3 * k, (left + 1 - column * CELLS) + across, mask=mask)
            tl.store(placed + 3 * k + 1, (top + 1 - line * CELLS) + down, mask=mask)
            tl.store(placed + 3 * k + 2, weight, mask=mask)
        first += points[level]
        before += rows * columns


@triton.jit(do_not_specialize=["num_bins"])
def _own(
    grad_out, order, placed, bounds, ends, owned, tiles, num_bins,
    K: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr, DOT_TYPE: tl.constexpr,
):  # fmt: skip
    """What the samples of one bin, or of a piece of a long bin, add to the pixels of its tile: (pieces, SIDE**2, D).

    That is a product of matrices: (pixels, samples) of weights times (samples, channels) of ``grad_out``.
    """
    piece = tl.program_id(0)
    bin = tl.load(owned + piece)
    if bin < num_bins:
        begin = tl.load(bounds + bin)
        end = tl.load(bounds + bin + 1)
        pieces = tl.cdiv(end - begin, PIECE)
        begin += (piece - (tl.load(ends + bin) - pieces)) * PIECE
        end = tl.minimum(begin + PIECE, end)
        channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        pixel = tl.arange(0, SIDE)
        total = tl.zeros((SIDE * SIDE, WIDTH), tl.float32)
        for step in range(begin, end, STEP):
            place = step + tl.arange(0, STEP)
            there = place < end
            sample = tl.load(order + place, mask=there, other=0).to(tl.int32)
            x = tl.load(placed + 3 * sample.to(tl.int64), mask=there, other=0.0)
            y = tl.load(placed + 3 * sample.to(tl.int64) + 1, mask=there, other=0.0)
            weight = tl.load(placed + 3 * sample.to(tl.int64) + 2, mask=there, other=0.0)
            near_x = tl.maximum(1 - tl.abs(x[None, :] - pixel[:, None]), 0.0)  # (SIDE, STEP)
            near_y = tl.maximum(1 - tl.abs(y[None, :] - pixel[:, None]), 0.0) * weight[None, :]
            shares = (near_y[:, None, :] * near_x[None, :, :]).reshape(SIDE * SIDE, STEP)
            row = (sample // K).to(tl.int64)
            mask = there[:, None] & (channel < D)[None, :]
            grad = tl.load(grad_out + (row * D)[:, None] + channel[None, :], mask=mask, other=0.0)
            total = tl.dot(shares.to(DOT_TYPE), grad.to(DOT_TYPE), total, input_precision=DOT_PRECISION)
        place = (piece.to(tl.int64) * (SIDE * SIDE) + tl.arange(0, SIDE * SIDE)) * D
        tl.store(tiles + place[:, None] + channel[None, :], total, mask=(channel < D)[None, :])


@triton.jit(do_not_specialize=["num_tokens"])
def _gather(
    tiles, ends, padding, grad_value, num_tokens, sizes,
    L: tl.constexpr, M: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Writes each pixel once. A program owns those of one tile, but for the last row and column, which open the next.

    To the first column the tile on the left has contributed too, to the first row the one above.
    """
    num_bins = 0  # of one slab
    for level in tl.static_range(L):
        height, width = _size(sizes, level)
        rows, columns = _bins(height, width)
        num_bins += rows * columns
    bin = tl.program_id(0)
    slab = bin // num_bins
    image = (slab // M).to(tl.int64)
    # The level to which the bin belongs: the last one that begins before it.
    height, width = _size(sizes, 0)
    rows, columns = _bins(height, width)
    before, start = 0, 0
    next_before, next_start = rows * columns, height * width
    for level in tl.static_range(1, L):
        next_height, next_width = _size(sizes, level)
        rows, next_columns = _bins(next_height, next_width)
        reached = bin % num_bins >= next_before
        before = tl.where(reached, next_before, before)
        start = tl.where(reached, next_start, start)
        height = tl.where(reached, next_height, height)
        width = tl.where(reached, next_width, width)
        columns = tl.where(reached, next_columns, columns)
        next_before += rows * next_columns
        next_start += next_height * next_width
    line = (bin % num_bins - before) // columns
    column = (bin % num_bins - before) % columns

    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    pixel = tl.arange(0, SIDE * SIDE)
    pixel_x = pixel % SIDE
    pixel_y = pixel // SIDE
    x = column * CELLS - 1 + pixel_x
    y = line * CELLS - 1 + pixel_y
    total = tl.zeros((SIDE * SIDE, WIDTH), tl.float32)
    for above in tl.static_range(2):
        for left in tl.static_range(2):
            exists = (column >= left) & (line >= above)
            touched = ((pixel_x == 0) | (left == 0)) & ((pixel_y == 0) | (above == 0))
            place = ((pixel_y + above * CELLS) * SIDE + pixel_x + left * CELLS) * D
            mask = touched[:, None] & (channel < D)[None, :]
            other = bin - left - above * columns
            begin = tl.load(ends + other - 1, mask=exists & (other > 0), other=0)
            end = tl.load(ends + other, mask=exists, other=0)
            for piece in range(begin, end):
                tile = tiles + tl.cast(piece, tl.int64) * (SIDE * SIDE * D)
                total += tl.load(tile + place[:, None] + channel[None, :], mask=mask, other=0.0)
    token = start + y * width + x
    mask = (pixel_x < CELLS) & (pixel_y < CELLS) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    if padding is not None:
        padded = tl.load(padding + image * num_tokens + token, mask=mask, other=0) != 0
        total = tl.where(padded[:, None], 0.0, total)
    grad_value += image * num_tokens * (M * D) + (slab % M) * D
    total = total.to(grad_value.dtype.element_ty)
    mask = mask[:, None] & (channel < D)[None, :]
    tl.store(grad_value + (token * (M * D))[:, None] + channel[None, :], total, mask=mask)


# ---------------------------------------------------------------------------------------------------------------------
# From tensors to kernels. Nothing here waits for the GPU: whatever depends on data is allocated for the worst case.


def tiling(channels: int, element_size: int) -> dict[str, int]:
    """How the kernels of queries hold (queries, channels) in the registers of a warp.

    The usual layout gives each query as many lanes as its channels need, and each of them repeats the arithmetic of
    positions. Here a query gets few lanes (two for 32 channels of float32), and each holds several parts of the row.
    """
    padded = triton.next_power_of_2(channels)
    width = max(min(padded, 2 * LANE_BYTES // element_size), padded // 8)
    lanes = max(1, width * element_size // LANE_BYTES)
    room = max(1, LANES * 32 // padded)  # registers, where there are very many channels
    return {"TILE": max(1, min(LANES // lanes, room)), "PARTS": padded // width, "WIDTH": width}


def owners_pay(tokens: int, queries: int, points: int) -> bool:
    """Whether the gradient of ``value`` is computed by owners of pixels, rather than by adding sample after sample.

    Owners have to sort samples and to write every pixel; additions to memory cost time by sample. What decides is the
    number of samples per row: 16 where each pixel of an encoder looks at 16 points, below 1 in a usual decoder.
    """
    return queries * points >= OWNERS_FROM * tokens


def _rows(value: Tensor) -> Tensor:
    """``value`` such that the channels of a row lie side by side, and 32 bits count the elements of a slab."""
    if value.stride(3) != 1:
        value = value.contiguous()
    if value.shape[1] * value.stride(1) >= 2**31:
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
    return value


def _bytes(padding: Tensor | None) -> Tensor | None:
    return None if padding is None else padding.contiguous().view(torch.uint8)


def _is_box(reference: Tensor | None) -> bool:
    return reference is not None and reference.shape[3] == 4


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _sizes(shapes: tuple[int, ...]) -> tuple[float, ...]:
    """Triton would compile kernels anew for integers that are 1 or divisible by 16; it leaves floats alone."""
    return tuple(float(size) for size in shapes)


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
    batch, queries, heads, samples = weights.shape
    channels = value.shape[3]
    out = value.new_empty(batch, queries, heads * channels)
    if not out.numel() or not samples:
        return out.zero_()
    value = _rows(value)
    tile = tiling(channels, value.element_size())
    with torch.cuda.device_of(value):
        _forward[(triton.cdiv(queries, tile["TILE"]) * batch * heads,)](
            value,
            locations.contiguous(),
            weights.contiguous(),
            _contiguous(reference),
            _bytes(padding),
            out,
            *value.stride()[:3],
            queries,
            value.shape[1],
            _sizes(shapes),
            points=points,
            K=samples,
            M=heads,
            D=channels,
            BOX=_is_box(reference),
            **tile,
            num_warps=1,
        )
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
    batch, queries, heads, samples = weights.shape
    tokens, _, channels = value.shape[1:]
    of_value, of_locations, of_weights, of_reference = needs
    nothing = locations.new_empty(0)
    if not grad_out.numel() or not samples:
        inputs = (value, locations, weights, reference)
        zeros = [torch.zeros_like(x) if x is not None and n else nothing for x, n in zip(inputs, needs, strict=True)]
        return zeros[0], zeros[1], zeros[2], zeros[3]

    grad_out, locations, weights = grad_out.contiguous(), locations.contiguous(), weights.contiguous()
    reference, padding = _contiguous(reference), _bytes(padding)
    with torch.cuda.device_of(value):
        if of_value:
            owners = torch.are_deterministic_algorithms_enabled() or owners_pay(tokens, queries, samples)
            by = _by_owners if owners else _by_additions
            grad_value = by(grad_out, value, shapes, points, locations, weights, reference, padding)
        else:
            grad_value = nothing
        grad_locations = torch.empty_like(locations) if of_locations else None
        grad_weights = torch.empty_like(weights) if of_weights else None
        grad_reference = None
        if of_reference and reference is not None:
            grad_reference = reference.new_empty(batch, queries, heads, *reference.shape[2:])
        if of_locations or of_weights or of_reference:
            value = _rows(value)
            tile = tiling(channels, value.element_size())
            _backward[(triton.cdiv(queries, tile["TILE"]) * batch * heads,)](
                grad_out,
                value,
                locations,
                weights,
                reference,
                padding,
                grad_locations,
                grad_weights,
                grad_reference,
                *value.stride()[:3],
                queries,
                tokens,
                _sizes(shapes),
                points=points,
                K=samples,
                M=heads,
                D=channels,
                BOX=_is_box(reference),
                **tile,
                num_warps=1,
            )
    return (
        grad_value,
        nothing if grad_locations is None else grad_locations,
        nothing if grad_weights is None else grad_weights,
        nothing if grad_reference is None else grad_reference.sum(dim=2),
    )


def _by_additions(
    grad_out: Tensor,
    value: Tensor,
    shapes: tuple[int, ...],
    points: tuple[int, ...],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    padding: Tensor | None,
) -> Tensor:
    """Gradient of ``value`` in its type, where there are few samples."""
    batch, queries, heads, samples = weights.shape
    channels = value.shape[3]
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    tile = tiling(channels, grad_value.element_size())
    _add[(triton.cdiv(queries, tile["TILE"]) * batch * heads,)](
        grad_out.float(),  # lanes would have to exchange the channels of half precision before each addition
        locations,
        weights,
        reference,
        padding,
        grad_value,
        queries,
        value.shape[1],
        _sizes(shapes),
        points=points,
        K=samples,
        M=heads,
        D=channels,
        BOX=_is_box(reference),
        **tile,
        num_warps=1,
    )
    return grad_value.to(value.dtype)


def _by_owners(
    grad_out: Tensor,
    value: Tensor,
    shapes: tuple[int, ...],
    points: tuple[int, ...],
    locations: Tensor,
    weights: Tensor,
    reference: Tensor | None,
    padding: Tensor | None,
) -> Tensor:
    """Gradient of ``value`` in its type, the same bits each time."""
    batch, queries, heads, samples = weights.shape
    tokens, _, channels = value.shape[1:]
    sizes = _sizes(shapes)
    cells, slabs, total = CELLS.value, batch * heads, weights.numel()
    assert total < 2**31, "more samples than 32 bits can count"
    bins = slabs * sum((h + cells) // cells * ((w + cells) // cells) for h, w in zip(*[iter(shapes)] * 2, strict=True))

    device, integer = value.device, torch.int32
    key_type = torch.int16 if bins < 2**15 else integer  # fewer bits are sorted faster
    keys = torch.empty(total, dtype=key_type, device=device)
    placed = torch.empty(total, 3, dtype=torch.float32, device=device)
    rows = 64 if LANES * 2 < queries else 16
    _bin[(triton.cdiv(queries, rows) * slabs,)](
        locations,
        weights,
        reference,
        keys,
        placed,
        queries,
        slabs,
        sizes,
        points=points,
        K=samples,
        M=heads,
        BOX=_is_box(reference),
        TILE=rows,
        num_warps=2,
    )
    keys, order = keys.sort(stable=True)
    bounds = torch.searchsorted(keys, torch.arange(bins + 1, dtype=key_type, device=device), out_int32=True)
    pieces = (bounds.diff() + (PIECE.value - 1)) // PIECE.value
    ends = pieces.cumsum(0, dtype=integer)
    most = min(bins, total) + total // PIECE.value
    owned = torch.searchsorted(ends, torch.arange(most, dtype=integer, device=device), right=True, out_int32=True)

    tiles = torch.empty(most, SIDE.value**2, channels, dtype=torch.float32, device=device)
    width = max(16, min(64, triton.next_power_of_2(channels)))
    _own[(most, triton.cdiv(channels, width))](
        grad_out,
        order,
        placed,
        bounds,
        ends,
        owned,
        tiles,
        bins,
        K=samples,
        D=channels,
        WIDTH=width,
        STEP=64 if value.dtype == torch.float32 else 128,
        DOT_TYPE=DOT_TYPES[value.dtype],
        num_warps=4,
    )
    grad_value = torch.empty(value.shape, dtype=value.dtype, device=device)
    _gather[(bins, triton.cdiv(channels, width))](
        tiles,
        ends,
        padding,
        grad_value,
        tokens,
        sizes,
        L=len(points),
        M=heads,
        D=channels,
        WIDTH=width,
        num_warps=4,
    )
    return grad_value
