"""Public names of a package that are imported on first use, so that importing the package is cheap."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def on_demand(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package (PEP 562), which imports a name on first use and stores it in the package.

    Args:
        package: ``__name__`` of the package.
        homes: public name -> its module, where it has the same name, or ``module:name``.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module, _, there = homes[name].partition(":")
        value = getattr(importlib.import_module(module), there or name)
        setattr(sys.modules[package], name, value)
        return value

    return get
