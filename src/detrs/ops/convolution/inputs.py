"""The arguments of the operator."""

from typing import NamedTuple

from torch import Tensor


class Geometry(NamedTuple):
    """Of ``torch.nn.functional.conv2d``: (rows, columns) each, and groups."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Inputs(NamedTuple):
    """What the operator computes with."""

    x: Tensor
    """(B, C, H, W); its dtype is that of the products and of the result."""
    weight: Tensor
    """(C', C / groups, rows, columns)."""
    scale: Tensor
    """(C'), factor of each output channel."""
    shift: Tensor
    """(C'), added to each output channel."""
    residual: Tensor | None
    """(B, C', H', W') in the dtype of ``x``, added before the activation."""
    geometry: Geometry
    activation: str
    """``none``, ``relu`` or ``relu6``."""
