"""The choice of the implementation of operators.

``reference`` is plain PyTorch and runs everywhere; ``gather`` is the same without GridSample, for runtimes in which
GridSample is wrong; ``numba`` is compiled for the CPU and ``triton`` for the GPU. By default, tensors use the compiled
backend of their device if it can be imported and has a kernel for their dtype, and the reference otherwise.
:class:`use` or the environment variable ``DETRS_OPS`` (read at import) forces a backend.
"""

import functools
import importlib
import os
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import forward_ad

from detrs.errors import UserError, did_you_mean


class Kernels(NamedTuple):
    """Requirements of a compiled backend. The package to import has the name of the backend."""

    device_type: str
    dtypes: tuple[torch.dtype, ...]
    """Supported dtypes of values."""


KERNELS = {
    "numba": Kernels("cpu", (torch.float16, torch.bfloat16, torch.float32, torch.float64)),
    "triton": Kernels("cuda", (torch.float16, torch.bfloat16, torch.float32)),
}
BACKENDS = ("reference", "gather", *KERNELS)

_forced: str | None = os.environ.get("DETRS_OPS") or None


def choose(device_type: str, dtype: torch.dtype, installed: frozenset[str], forced: str | None) -> str:
    """The backend for a device type and dtype: a pure function of its arguments.

    Args:
        device_type: ``"cpu"``, ``"cuda"``, ...
        dtype: Dtype of the values.
        installed: Packages that can be imported.
        forced: One of ``BACKENDS``, or ``None`` for the default.

    Raises:
        UserError: The forced backend does not exist or cannot run here.
    """
    if forced is None:
        runnable = (name for name in KERNELS if not _obstacle(name, device_type, dtype, installed))
        return next(runnable, "reference")
    _check(forced)
    if forced in KERNELS and (obstacle := _obstacle(forced, device_type, dtype, installed)):
        raise UserError(f"The backend '{forced}' is forced, but {obstacle}. Use 'reference' instead.")
    return forced


def _obstacle(name: str, device_type: str, dtype: torch.dtype, installed: frozenset[str]) -> str:
    """Why a compiled backend cannot run; empty if it can."""
    if device_type != KERNELS[name].device_type:
        return f"it only runs on '{KERNELS[name].device_type}' and the tensors are on '{device_type}'"
    if dtype not in KERNELS[name].dtypes:
        return f"it has no kernel for {dtype}"
    if name not in installed:
        return f"the package {name} cannot be imported (see detrs.ops.describe())"
    return ""


def _check(name: str) -> None:
    if name not in BACKENDS:
        raise UserError(
            f"Expected one of the backends {', '.join(BACKENDS)}, got '{name}' (from detrs.ops.use or DETRS_OPS)."
            f"{did_you_mean(name, BACKENDS)}"
        )


if _forced is not None:
    _check(_forced)  # now: detectors without deformable attention never ask for it


class use:
    """Forces a backend in the whole process, permanently or in a ``with`` block. ``None`` restores the default.

    >>> with use("reference"):
    ...     describe().splitlines()[0]
    'forced: reference'

    Raises:
        UserError: The backend does not exist. If it cannot run, the operator raises when it is called.
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
    """Why a package cannot be imported; ``None`` if it can."""
    try:
        importlib.import_module(package)
    except ImportError as error:  # numba also raises it for an unsupported version of numpy
        return str(error)
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _importable(package: str) -> bool:
    return _why_not(package) is None


def current(device_type: str, dtype: torch.dtype) -> str:
    """The backend for a device type and dtype in this process."""
    if torch.compiler.is_exporting():  # exported programs run without this library
        return "gather" if _forced == "gather" else "reference"
    on_device = (name for name, kernels in KERNELS.items() if kernels.device_type == device_type)
    installed = frozenset(name for name in on_device if _importable(name))
    return choose(device_type, dtype, installed, _forced)


def is_chosen(name: str, device_type: str, dtype: torch.dtype) -> bool:
    """Whether the backend is ``name``, for operators that have kernels of no other one: these use the reference if
    another one is forced."""
    return _forced in (None, name) and current(device_type, dtype) == name


def is_transformed(*, by_vmap: bool = True) -> bool:
    """Whether ``torch.func`` or forward-mode differentiation transform the program in eager mode.

    Args:
        by_vmap: whether ``torch.func.vmap`` alone counts; not for operators that have a rule for it.
    """
    if torch.compiler.is_compiling():
        return False
    if forward_ad._current_level >= 0:
        return True
    if torch._C._functorch.peek_interpreter_stack() is None:
        return False
    return by_vmap or any(each.key() != TransformType.Vmap for each in retrieve_all_functorch_interpreters())


def are_plain(*tensors: Tensor | None) -> bool:
    """Whether Python code can read the memory of all ``tensors``: in eager mode, none is transformed, of a subclass
    (such as one without memory) or ``None``."""
    if torch.compiler.is_compiling() or is_transformed():
        return False
    return all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)


def is_reference_forced() -> bool:
    """Whether plain PyTorch is forced."""
    return _forced in ("reference", "gather")


def describe() -> str:
    """A report of the backend on each device and the reason, for bug reports."""
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
