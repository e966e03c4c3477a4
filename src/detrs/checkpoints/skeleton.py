"""Models without initial values, to compare names and shapes with a file first and to load it without random draws."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

UNINITIALIZED = frozenset({torch.empty, torch.rand, torch.randn})
"""Functions that create parameters; other factories compute buffers, which must be right."""
RANDOM = frozenset(
    getattr(owner, name)
    for owner, names in (
        (Tensor, ("uniform_", "normal_", "random_", "bernoulli_", "exponential_")),
        (nn.init, ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_")),
        (nn.init, ("xavier_uniform_", "xavier_normal_", "sparse_")),
    )
    for name in names
)
"""In-place functions that draw random numbers."""


class Skeleton(TorchFunctionMode):
    """While active, modules created in this thread have parameters without values, and draw no random numbers.

    Buffers are computed as usual, so code that reads a tensor during construction works, unlike in
    ``torch.device("meta")``.

    Args:
        device: ``meta``: parameters have no memory. ``cpu``: they have, for ``load_state_dict`` to fill.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in RANDOM:
            return args[0] if args else kwargs["tensor"]
        if func in UNINITIALIZED and kwargs.get("device") is None:
            kwargs.pop("generator", None)
            return torch.empty(*args, **{**kwargs, "device": self.device})
        return func(*args, **kwargs)
