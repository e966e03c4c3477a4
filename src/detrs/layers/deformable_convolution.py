"""Modulated deformable convolution (DCNv2, Zhu et al. 2019, Eq. 1) by the operator of deformable attention.

A deformable convolution samples the map once per weight of its kernel, multiplies the samples by their modulation, and
applies a linear layer to all samples of a cell. The first two steps are deformable attention with one head and one
point, so its kernels serve both: nothing is compiled, and an exported program needs no operator of its own.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from detrs.ops import ms_deform_attn


def deform_conv2d(
    x: Float[Tensor, "B C H W"],
    offsets: Float[Tensor, "B _ _ _"],
    modulation: Float[Tensor, "B K _ _"],
    weight: Float[Tensor, "D C kh kw"],
    bias: Float[Tensor, " D"],
    stride: int = 1,
    padding: int = 0,
) -> Float[Tensor, "B D h w"]:
    """``torchvision.ops.deform_conv2d`` without groups and dilation; the output has the cells of ``offsets``.

    Args:
        x: The map; it is zero outside.
        offsets: (y, x) of each of the K = kh * kw weights, in pixels of ``x``, for each cell of the output:
            (B, 2K, h, w).
        modulation: Factor of each sample: (B, K, h, w).
        weight: As of ``torch.nn.Conv2d``.
        bias: Added to each cell.
        stride: Pixels of ``x`` between neighboring cells of the output.
        padding: Pixels outside ``x`` that the first cell's kernel begins at.

    Raises:
        ValueError: ``offsets`` or ``modulation`` do not fit the kernel or each other.
    """
    height, width = x.shape[2:]
    rows, columns = weight.shape[2:]
    h, w = modulation.shape[2:]
    k = rows * columns
    if modulation.shape[1] != k or offsets.shape != (x.shape[0], 2 * k, h, w):
        given = f"{tuple(offsets.shape)} and {tuple(modulation.shape)}"
        raise ValueError(f"offsets and modulation: expected (B, {2 * k}, h, w) and (B, {k}, h, w), got {given}")
    locations = sampling_locations(offsets, (height, width), (rows, columns), stride, padding)
    samples = ms_deform_attn(
        x.flatten(2).transpose(1, 2)[:, :, None],
        ((height, width),),
        locations.flatten(1, 4)[:, :, None, None, None],
        modulation.permute(0, 2, 3, 1).flatten(1)[:, :, None, None, None],
    )  # (B, h * w * K, C)
    cells = samples.reshape(x.shape[0], h, w, -1)
    return F.linear(cells, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


def sampling_locations(
    offsets: Float[Tensor, "B _ h w"], size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int
) -> Float[Tensor, "B h w kh kw 2"]:
    """Where each weight of a kernel samples, (x, y) in [0, 1] of a map of ``size``, for each cell of the output.

    Args:
        offsets: As of ``deform_conv2d``.
        size: (height, width) of the map that is sampled.
        kernel: Rows and columns.
        stride: As of ``deform_conv2d``.
        padding: As of ``deform_conv2d``.
    """
    down = regular_samples(offsets.shape[2], kernel[0], stride, padding, offsets.device)  # (kh, h)
    across = regular_samples(offsets.shape[3], kernel[1], stride, padding, offsets.device)  # (kw, w)
    shifts = offsets.unflatten(1, (*kernel, 2))
    locations = torch.stack(
        ((shifts[:, :, :, 1] + across[:, None]) / size[1], (shifts[:, :, :, 0] + down[:, None, :, None]) / size[0]),
        dim=-1,
    )  # (B, kh, kw, h, w, 2)
    return locations.permute(0, 3, 4, 1, 2, 5)


def regular_samples(cells: int, kernel: int, stride: int, padding: int, device: torch.device) -> Float[Tensor, "k s"]:
    """Where each weight of a kernel is without offset, for all cells along an axis; pixel i is at i + 0.5."""
    first = torch.arange(cells, device=device) * stride
    return first + torch.arange(kernel, device=device)[:, None] - padding + 0.5
