"""Which implementation runs: a decision anyone can predict, force and read.

``reference`` is plain PyTorch and runs anywhere; ``numba`` is compiled for the CPU. Without a wish, tensors on the CPU
use numba where it is installed and everything else the reference. A wish comes from :class:`use` or from the environment
variable ``DETRS_OPS`` as it was when the library was imported.
"""

import functools
import importlib
import os
from types import TracebackType

import torch

from detrs.errors import UserError, did_you_mean

BACKENDS = ("reference", "numba")

_NUMBA_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def choose(device_type: str, dtype: torch.dtype, installed: frozenset[str], forced: str | None) -> str:
    """The backend for tensors of this kind. Depends on nothing but its arguments.

    Args:
        device_type: ``"cpu"``, ``"cuda"``, ...
        dtype: Type of the values.
        installed: Packages that can be imported.
        forced: A name out of ``BACKENDS``, or ``None`` for the best one.

    Raises:
        UserError: The forced backend cannot run here.
    """
    obstacle = None
    if device_type != "cpu":
        obstacle = f"it computes on the CPU and the tensors are on {device_type}"
    elif "numba" not in installed:
        obstacle = "the package numba cannot be imported (pip install numba)"
    elif dtype not in _NUMBA_DTYPES:
        obstacle = f"it has no kernel for {dtype}"
    if forced is None:
        return "numba" if obstacle is None else "reference"
    if forced not in BACKENDS:
        raise UserError(
            f"Unknown backend '{forced}': expected one of {', '.join(BACKENDS)}.{did_you_mean(forced, BACKENDS)}"
        )
    if forced == "numba" and obstacle is not None:
        raise UserError(f"The backend 'numba' was asked for, but {obstacle}; use 'reference' instead.")
    return forced


_forced: str | None = os.environ.get("DETRS_OPS") or None


class use:
    """Forces a backend in the whole process: for good, or for the length of a ``with`` block.

    >>> with use("reference"):
    ...     describe().splitlines()[0]
    'forced: reference'
    """

    def __init__(self, name: str | None) -> None:
        global _forced
        if name is not None:
            choose("cpu", torch.float32, frozenset(), "reference" if name in BACKENDS else name)
        self._before = _forced
        _forced = name

    def __enter__(self) -> "use":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _forced
        _forced = self._before


@functools.cache
def _why_not(package: str) -> str | None:
    """Why a package cannot be imported; ``None`` where it can."""
    try:
        importlib.import_module(package)
    except ImportError as error:  # numba also raises it for a numpy that is too new
        return str(error)
    return None


@torch.compiler.assume_constant_result
def _has(package: str) -> bool:
    return _why_not(package) is None


def current(device_type: str, dtype: torch.dtype) -> str:
    """The backend for tensors of this kind, here and now."""
    # What is exported has to run where this library is not installed.
    if torch.compiler.is_exporting():
        return "reference"
    installed = frozenset(("numba",)) if device_type == "cpu" and _has("numba") else frozenset[str]()
    return choose(device_type, dtype, installed, _forced)


def describe() -> str:
    """What runs where and why, for people and for bug reports."""
    why = _why_not("numba")
    installed = frozenset(("numba",)) if why is None else frozenset[str]()
    lines = [f"forced: {_forced or 'nothing'}", f"numba: {'importable' if why is None else why}"]
    for device_type in ("cpu", "cuda"):
        try:
            chosen = choose(device_type, torch.float32, installed, _forced)
        except UserError as error:
            chosen = str(error)
        lines.append(f"{device_type}: {chosen}")
    return "\n".join(lines)
