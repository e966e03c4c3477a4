"""Memory of row-column decoupled attention and of standard attention: ``python benchmarks/row_column_attention.py``.

One attention layer of Anchor DETR, forward and backward, on the map of an 800 x 1066 image. Reports the peak memory of
tensors in MiB, without inputs and parameters. Standard attention is measured twice: with its weights as a tensor, as in
the comparison of the paper, and with the fused kernel that PyTorch chooses. Prints JSON lines; takes 4 GiB and a
minute.
"""

import json
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detrs.layers.attention import GlobalCrossAttention, GlobalSelfAttention
from detrs.layers.initialization import XAVIER
from detrs.layers.row_column_attention import RowColumnCrossAttention, RowColumnSelfAttention, mean_of_all
from detrs.structures import Pyramid, Queries

MAPS = {"C5": (25, 34), "DC5": (50, 67)}
EVERY_KERNEL = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
QUERIES, DIM, HEADS = 900, 256, 8


class Memory(TorchDispatchMode):
    """Tracks the storages that operators return until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in {*before, *self.held}:
                self.held[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.held.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.held.values()))
        return result


def peak_mib(attention: nn.Module, size: tuple[int, int], kernels: list[SDPBackend]) -> float:
    """MiB of one forward and backward pass on a map of ``size`` (height, width)."""
    torch.manual_seed(0)
    cells, axes = size[0] * size[1], 2 if isinstance(attention, RowColumnCrossAttention | RowColumnSelfAttention) else 1
    tokens, position = torch.randn(1, cells, DIM, requires_grad=True), torch.randn(1, cells, axes * DIM)
    padding, reference = torch.zeros(1, cells, dtype=torch.bool), torch.rand(1, cells, 2)
    memory = Pyramid(tokens, position, reference, padding, (size,), torch.ones(1, 1, 2), torch.tensor([[800, 1066]]))
    content = torch.randn(1, QUERIES, DIM, requires_grad=True)
    queries = Queries(content, torch.randn(1, QUERIES, (2 * axes - 1) * DIM), torch.rand(1, QUERIES, 2))
    arguments = (memory,) if isinstance(attention, GlobalSelfAttention | RowColumnSelfAttention) else (queries, memory)
    with sdpa_kernel(kernels), Memory() as seen:
        attention(*arguments).sum().backward()
    return seen.peak / 2**20


def main() -> None:
    sizes = (DIM, HEADS, 0.0, XAVIER)
    for name, size in MAPS.items():
        for where, make, make_global in (
            ("encoder", RowColumnSelfAttention, GlobalSelfAttention),
            ("decoder", RowColumnCrossAttention, GlobalCrossAttention),
        ):
            mine = peak_mib(make(*sizes, mean_of_all), size, EVERY_KERNEL)
            weights = peak_mib(make_global(*sizes), size, [SDPBackend.MATH])
            fused = peak_mib(make_global(*sizes), size, EVERY_KERNEL)
            row = {"row_column_mib": mine, "standard_mib": weights, "standard_fused_mib": fused}
            row = {key: round(value, 1) for key, value in row.items()}
            print(json.dumps({"map": name, "attention": where, **row, "standard_ratio": round(weights / mine, 2)}))


if __name__ == "__main__":
    main()
