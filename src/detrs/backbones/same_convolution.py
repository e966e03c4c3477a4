"""Convolutions with TensorFlow's padding, for images of any size in exported programs."""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn


class SameConv2d(nn.Conv2d):
    """Convolution of timm's ``Conv2dSame``: zeros at the edges; output of size / stride cells, rounded up.

    The padding is computed with integers. ``torch.export`` cannot simplify timm's, by division and rounding up, and
    needs minutes for images of any size.
    """

    def forward(self, x: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        return F.conv2d(pad_same(x, self), self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


def pad_same(x: Float[Tensor, "B C _ _"], conv: nn.Conv2d) -> Float[Tensor, "B C _ _"]:
    """``x`` with the zeros at its edges that ``conv`` needs."""
    rows, columns = missing(x.shape[2], conv, 0), missing(x.shape[3], conv, 1)
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def missing(size: Any, conv: nn.Conv2d, axis: int) -> Any:
    """Cells to add to ``size`` cells, an integer; of a symbolic type within ``torch.export``."""
    stride = conv.stride[axis]
    return (size + stride - 1) // stride * stride - size + extents(conv)[axis] - stride


def extents(conv: nn.Conv2d) -> tuple[int, int]:
    """Rows and columns from the first to the last cell of the kernel."""
    rows, columns = (d * (k - 1) + 1 for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    return rows, columns


def replace_same(module: nn.Module) -> None:
    """Replace every ``Conv2dSame`` inside ``module`` by ``SameConv2d`` with the same weights; kernels smaller than
    their stride remain."""
    for name, child in module.named_children():
        if type(child) is not Conv2dSame or any(e < s for e, s in zip(extents(child), child.stride, strict=True)):
            replace_same(child)
            continue
        shape: Any = {each: getattr(child, each) for each in ("kernel_size", "stride", "dilation", "groups")}
        has_bias = child.bias is not None
        made = SameConv2d(child.in_channels, child.out_channels, **shape, bias=has_bias, device="meta")
        made.weight, made.bias = child.weight, child.bias
        setattr(module, name, made.train(child.training))
