"""The least time that the matrix products and convolutions of a forward pass take on this machine.

Each call of a matrix product, convolution or global attention is recorded with the shapes, strides and types of its
tensors, and then runs alone on random tensors. The floor is the sum over all calls; the rate of a call cannot be
exceeded by a detector that consists of these calls. The deformable attention operator is measured likewise and stated
apart: it samples, and multiplies few numbers.
"""

import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from model_peers import Work
from page import Line
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

PRODUCTS = (
    "aten::convolution",
    "aten::addmm",
    "aten::mm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_flash_attention",
)
"""Operators whose multiply-adds count."""
FOLDED = "detrs::convolution"
"""A convolution with constant scale and shift, residual and activation; the convolution with a bias is the product."""
LINEAR_RELU = "detrs::linear_relu"
"""A linear layer with a ReLU; the linear layer is the product."""
SAMPLING = ("detrs::ms_deform_attn", "detrs::ms_deform_attn_fused")
"""Deformable attention, stated apart."""


class Layout(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Call(NamedTuple):
    """One call of an operator; calls with equal arguments take the same time."""

    operator: Any
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]


class Recorder(TorchDispatchMode):
    """Counts the calls of operators within the context."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()
        self.values: dict[Call, list[Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name == LINEAR_RELU:
            (x, weight, bias), no_keywords = args, ()
            matrices = map(described, (bias, x.flatten(0, -2), weight.mT))
            self.calls[Call(torch.ops.aten.addmm.default, tuple(matrices), no_keywords)] += 1
        elif func._schema.name == FOLDED:
            self.calls[Call(torch.ops.aten.convolution.default, tuple(map(described, products_of(*args))), ())] += 1
        elif func._schema.name in PRODUCTS + SAMPLING:
            call = Call(func, tuple(map(described, args)), tuple((k, described(v)) for k, v in (kwargs or {}).items()))
            self.calls[call] += 1
            # Where deformable attention samples decides its time, so its tensors are kept; other values are arbitrary.
            if func._schema.name in SAMPLING and call not in self.values:
                self.values[call] = [x for x in args if isinstance(x, Tensor)]
        return func(*args, **(kwargs or {}))


def products_of(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
) -> tuple[Any, ...]:
    """The arguments of the plain convolution within a folded one."""
    weight, bias = weight.to(x.dtype), shift.to(x.dtype)
    return x, weight, bias, stride, padding, dilation, False, [0, 0], groups


def described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Layout(tuple(value.shape), value.stride(), value.dtype)
    return tuple(map(described, value)) if isinstance(value, (list, tuple)) else value


def made(value: Any) -> Any:
    """Random values in a described layout."""
    if isinstance(value, Layout):
        size = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride, strict=True)) if value.shape else 1
        flat = torch.zeros(size, dtype=torch.bool) if value.dtype == torch.bool else torch.randn(size).to(value.dtype)
        return flat.as_strided(value.shape, value.stride)
    return [made(each) for each in value] if isinstance(value, tuple) else value


class Floor:
    """The recorded calls of a forward pass, ready to run alone.

    Args:
        run: the forward pass on the CPU, without gradients.
    """

    def __init__(self, run: Work) -> None:
        with Recorder() as recorder:
            run()
        self.calls = recorder.calls
        self.multiply_adds = {call: multiply_adds(call) for call in recorder.calls}
        self.alone = {call: runs(call, recorder.values.get(call)) for call in recorder.calls}
        self.seconds: dict[Call, list[list[float]]] = {call: [[] for _ in self.alone[call]] for call in self.calls}

    def measure(self, seconds: Callable[[Work], float]) -> None:
        """One more run of each call."""
        with torch.no_grad():
            for call, variants in self.alone.items():
                for number, variant in enumerate(variants):
                    self.seconds[call][number].append(seconds(variant))

    def line(self) -> Line:
        """Sum of the medians in milliseconds, and rates in 1e9 multiply-adds per second."""
        medians = {call: min(map(statistics.median, lists)) for call, lists in self.seconds.items()}
        kinds: dict[str, list[float]] = {}
        for call, count in self.calls.items():
            name = call.operator._schema.name
            kind = "sampling" if name in SAMPLING else "convolutions" if "convolution" in name else "products"
            total = kinds.setdefault(kind, [0.0, 0.0])
            total[0] += count * medians[call]
            total[1] += count * self.multiply_adds[call]
        sampling = kinds.pop("sampling", [0.0, 0.0])
        return {
            "milliseconds": 1e3 * sum(seconds for seconds, _ in kinds.values()),
            "sampling_milliseconds": 1e3 * sampling[0],
            "giga_multiply_adds": sum(number for _, number in kinds.values()) / 1e9,
            "giga_multiply_adds_per_second": {
                kind: number / seconds / 1e9 for kind, (seconds, number) in kinds.items()
            },
        }


def runs(call: Call, values: list[Tensor] | None) -> list[Work]:
    """The call on tensors of its own; a convolution also in the other memory format."""
    arguments, keywords = [made(each) for each in call.arguments], {name: made(value) for name, value in call.keywords}
    if values is not None:
        tensors = iter(values)
        arguments = [next(tensors) if isinstance(each, Layout) else made(each) for each in call.arguments]
    variants = [arguments]
    if "convolution" in call.operator._schema.name:
        x, weight = arguments[:2]
        other = torch.contiguous_format if x.is_contiguous(memory_format=torch.channels_last) else torch.channels_last
        variants.append([x.contiguous(memory_format=other), weight.contiguous(memory_format=other), *arguments[2:]])
    return [lambda variant=variant: call.operator(*variant, **keywords) for variant in variants]  # type: ignore[misc]


def multiply_adds(call: Call) -> int:
    """Multiply-adds of one call; 0 for deformable attention."""
    count = flop_registry.get(call.operator._overloadpacket)
    if count is None or call.operator._schema.name in SAMPLING:
        return 0
    arguments, keywords = [meta(each) for each in call.arguments], {name: meta(value) for name, value in call.keywords}
    return int(count(*arguments, **keywords, out_val=call.operator(*arguments, **keywords))) // 2


def meta(value: Any) -> Any:
    """A described layout without memory."""
    if isinstance(value, Layout):
        return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")
    return [meta(each) for each in value] if isinstance(value, tuple) else value
