"""Recording: the inputs and outputs of chosen modules during a forward pass, by temporary hooks.

A view is computed afterwards, from methods that the module's forward itself uses, called with the recorded inputs.
"""

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from detrs.explanation.views import View


class Call(NamedTuple):
    """One call of a module."""

    module: nn.Module
    name: str
    """Qualified name of the module in the detector; empty for the detector itself."""
    arguments: tuple[Any, ...]
    output: Any

    @property
    def stage(self) -> Any:
        """``backbone``, ``encoder`` or ``decoder``, of modules inside these."""
        return self.name.split(".")[0]

    @property
    def layer(self) -> int:
        """Index of the layer, of modules named ``encoder.layers.INDEX`` and so on."""
        return int(self.name.split(".")[2])


class Selection(NamedTuple):
    """What views contain."""

    queries: Tensor
    """(Q,) indices of queries of the decoder, ascending."""
    max_tokens: int
    """Largest number of tokens of each level of the encoder."""


Builder = Callable[[Call, Selection], View]
"""The view of one call, with a batch of one image."""


@contextmanager
def recording(model: nn.Module, classes: Collection[type[nn.Module]]) -> Iterator[list[Call]]:
    """Records the calls of all modules of exactly these classes, in the order in which they return.

    The hooks are removed at the end, also after an error. Calls in other threads are not recorded.
    """
    calls: list[Call] = []
    own = threading.get_ident()

    def hook(name: str) -> Any:
        def record(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            if threading.get_ident() == own:
                calls.append(Call(module, name, arguments, output))

        return record

    handles = [
        module.register_forward_hook(hook(name)) for name, module in model.named_modules() if type(module) in classes
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
