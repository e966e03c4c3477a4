"""Defers the import of torch._dynamo, the front end of ``torch.compile``, until something uses it.

torchvision, timm and the operators import it for three functions: ``is_compile_supported``, which ``roi_align`` calls
in deterministic mode on a GPU, and two that mark functions for the compiler, ``disable`` and
``assume_constant_result``.
The import takes about as long as that of PyTorch itself, since it includes sympy and a compiler.

In a process of the command line, both modules are empty until an attribute other than these functions is read, or a
function of them is called that has a result. Then they are executed, as if they had been imported at this time.
Programs that import detrs are not changed.
"""

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PACKAGE = "torch._dynamo"
UTILS = "torch._dynamo.utils"
KEPT = "__dynamo_disable"
"""Attribute in which PyTorch keeps what ``disable`` returned for one of its own functions."""

_lock = threading.RLock()
_constant: list[Callable[..., Any]] = []
"""Functions to be marked by ``assume_constant_result``."""
_disabled: list[tuple[Any, Callable[..., Any]]] = []
"""Functions, and what ``disable`` returned for them."""


class DeferredModule(ModuleType):
    """A module that is executed when one of its attributes is read."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system reads optional attributes, such as __all__
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        return getattr(executed(self.__name__), name)


class DeferringLoader(Loader):
    """Creates a module as ``loader`` does, and leaves it empty but for some functions."""

    def __init__(self, loader: Loader, functions: dict[str, Callable[..., Any]]) -> None:
        self.loader = loader
        self.functions = functions

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self.functions)
        module.__class__ = DeferredModule


class DeferringFinder(MetaPathFinder):
    """Finds the two modules, unless the package was executed already."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in FUNCTIONS or type(sys.modules.get(PACKAGE)) is ModuleType:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = DeferringLoader(spec.loader, FUNCTIONS[fullname])
        return spec


def executed(name: str) -> Any:
    """One of the modules, executed after its package unless the package did so."""
    with _lock:
        for each in (PACKAGE, name):
            module = sys.modules[each]
            if isinstance(module, DeferredModule):
                execute(module)
    return module


def execute(module: ModuleType) -> None:
    """Execute a deferred module in place."""
    spec = module.__spec__
    assert spec is not None and isinstance(spec.loader, DeferringLoader)
    module.__class__ = ModuleType
    for name in spec.loader.functions:
        delattr(module, name)
    spec.loader = module.__loader__ = spec.loader.loader
    spec.loader.exec_module(module)
    if module.__name__ == PACKAGE:
        for function in _constant:
            module.assume_constant_result(function)
        for function, call in _disabled:
            if getattr(function, KEPT, None) is call:
                delattr(function, KEPT)
        _constant.clear()
        _disabled.clear()


def disable(function: Callable[..., Any] | None = None, recursive: bool = True, **options: Any) -> Callable[..., Any]:
    """``torch._dynamo.disable``, which excludes a function from compilation.

    Until the module is executed, nothing is compiled, and the function itself is called.
    """
    if not callable(function):
        made: Callable[..., Any] = executed(PACKAGE).disable(function, recursive, **options)
        return made
    excluded: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if isinstance(sys.modules[PACKAGE], DeferredModule):
            return function(*arguments, **named)
        if not excluded:
            excluded.append(sys.modules[PACKAGE].disable(function, recursive, **options))
        return excluded[0](*arguments, **named)

    _disabled.append((function, call))
    return call


def assume_constant_result(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch._dynamo.assume_constant_result``, which marks a function in place, when the module is executed."""
    _constant.append(function)
    return function


def is_compile_supported(device_type: str) -> bool:
    """``torch._dynamo.utils.is_compile_supported``."""
    supported: bool = executed(UTILS).is_compile_supported(device_type)
    return supported


FUNCTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    PACKAGE: {"assume_constant_result": assume_constant_result, "disable": disable},
    UTILS: {"is_compile_supported": is_compile_supported},
}
"""Module -> functions that do not execute it when it is read."""


def defer_compiler() -> None:
    """Defer the import of torch._dynamo in this process, unless PyTorch was imported already."""
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, DeferringFinder())
