"""oneDNN's convolutions with the residual addition and the activation in the same pass, on CPUs.

PyTorch's compiler calls the same operators.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from detrs.ops.convolution.reference import CLAMPS

ACTIVATIONS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
"""The name and parameters in oneDNN."""


@cache
def dtypes() -> frozenset[torch.dtype]:
    """Those in which this build of PyTorch and this processor have the operators."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return frozenset()
    found = {torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        found.add(torch.bfloat16)
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        found.add(torch.float16)
    return frozenset(found)


def supports(x: Tensor) -> bool:
    """Whether oneDNN convolves ``x``."""
    return x.device.type == "cpu" and x.dtype in dtypes() and x.numel() > 0 and torch._C._get_mkldnn_enabled()


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
) -> Tensor:
    """``activation(convolution(x) + residual)``."""
    geometry = (padding, stride, dilation, groups)
    operator: Any = torch.ops.mkldnn._convolution_pointwise
    if residual is None:
        y: Tensor = operator.default(x, weight, bias, *geometry, *ACTIVATIONS[activation], "")
        return y
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    if activation == "relu" and is_channels_last and groups == 1:  # otherwise PyTorch does not fuse the addition
        y = operator.binary(x, residual, weight, bias, *geometry, "add", 1.0, "relu", [], "")
        return y
    y = operator.default(x, weight, bias, *geometry, "none", [], "")
    return CLAMPS[activation](y.add_(residual))
