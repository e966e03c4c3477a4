"""Which implementation runs: a decision anyone can predict, force and read.

``reference`` is plain PyTorch and runs anywhere; ``gather`` is the same without GridSample, for runtimes that get it
wrong; ``numba`` is compiled for the CPU and ``triton`` for the GPU. Left alone, tensors use the compiled one of their
device where it can be imported, and everything else uses the reference. A wish comes from :class:`use` or from the
environment variable ``DETRS_OPS`` (read once, at import).
"""

import functools
import importlib
import os
from typing import NamedTuple

import torch

from detrs.errors import UserError, did_you_mean


class Kernels(NamedTuple):
    """What a compiled backend needs; the package to import has its name."""

    device_type: str
    dtypes: tuple[torch.dtype, ...]
    """Types of values."""


KERNELS = {
    "numba": Kernels("cpu", (torch.float16, torch.bfloat16, torch.float32, torch.float64)),
    "triton": Kernels("cuda", (torch.float16, torch.bfloat16, torch.float32)),
}
BACKENDS = ("reference", "gather", *KERNELS)

_forced: str | None = os.environ.get("DETRS_OPS") or None


def choose(device_type: str, dtype: torch.dtype, installed: frozenset[str], forced: str | None) -> str:
    """The backend for tensors of this kind. Depends on nothing but its arguments.

    Args:
        device_type: ``"cpu"``, ``"cuda"``, ...
        dtype: Type of the values.
        installed: Packages that can be imported.
        forced: One of ``BACKENDS``, or ``None`` for the best that can run.

    Raises:
        UserError: There is no such backend, or it cannot run here.
    """
    if forced is None:
        runnable = (name for name in KERNELS if not _obstacle(name, device_type, dtype, installed))
        return next(runnable, "reference")
    _check(forced)
    if forced in KERNELS and (obstacle := _obstacle(forced, device_type, dtype, installed)):
        raise UserError(f"The backend '{forced}' was asked for, but {obstacle}; ask for 'reference' instead.")
    return forced


def _obstacle(name: str, device_type: str, dtype: torch.dtype, installed: frozenset[str]) -> str:
    """Why a compiled backend cannot run, or nothing."""
    if device_type != KERNELS[name].device_type:
        return f"it runs on '{KERNELS[name].device_type}' only and the tensors are on '{device_type}'"
    if dtype not in KERNELS[name].dtypes:
        return f"it has no kernel for {dtype}"
    if name not in installed:
        return f"the package {name} cannot be imported here (detrs.ops.describe() tells why)"
    return ""


def _check(name: str) -> None:
    if name not in BACKENDS:
        raise UserError(
            f"Expected a backend out of {', '.join(BACKENDS)}, got '{name}' (from detrs.ops.use or DETRS_OPS)."
            f"{did_you_mean(name, BACKENDS)}"
        )


class use:
    """Forces a backend in the whole process: for good, or for the length of a ``with`` block. ``None`` forces nothing.

    >>> with use("reference"):
    ...     describe().splitlines()[0]
    'forced: reference'

    Raises:
        UserError: There is no such backend. (Whether it can run is known when tensors come.)
    """

    def __init__(self, name: str | None) -> None:
        global _forced
        if name is not None:
            _check(name)
        self._before = _forced
        _forced = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        global _forced
        _forced = self._before


@functools.cache
def _why_not(package: str) -> str | None:
    """Why a package cannot be imported; ``None`` where it can."""
    try:
        importlib.import_module(package)
    except ImportError as error:  # numba raises it also for a numpy that is too new for it
        return str(error)
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _importable(package: str) -> bool:
    return _why_not(package) is None


def current(device_type: str, dtype: torch.dtype) -> str:
    """The backend for tensors of this kind, here and now."""
    if torch.compiler.is_exporting():  # what is exported has to run where this library is not installed
        return "gather" if _forced == "gather" else "reference"
    on_device = (name for name, kernels in KERNELS.items() if kernels.device_type == device_type)
    installed = frozenset(name for name in on_device if _importable(name))
    return choose(device_type, dtype, installed, _forced)


def describe() -> str:
    """What runs where and why, for people and bug reports."""
    lines = [f"forced: {_forced or 'nothing'}"]
    for name in KERNELS:
        why_not = _why_not(name)
        lines.append(f"{name}: {'can be imported' if why_not is None else why_not}")
    for device_type in ("cpu", "cuda"):
        try:
            lines.append(f"{device_type}: {current(device_type, torch.float32)}")
        except UserError as error:
            lines.append(f"{device_type}: {error}")
    return "\n".join(lines)
