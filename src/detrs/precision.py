"""The precision of a detector's arithmetic: resolved by ``resolve``, entered by ``autocast``.

Weights, boxes, reference points, softmax, scores, losses and the accumulation of matrix products and of the attention
operator are float32 in every precision. Autocast computes linear layers, convolutions and matrix products in bfloat16
or float16, and rounds their results: among them are the sampling offsets and logits of deformable attention, from which
locations and weights are computed in float32.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from detrs.choices import Precision, Resolved
from detrs.errors import UserError, did_you_mean

logger = logging.getLogger("detrs")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Type of the inputs of matrix products under autocast."""
VARIABLE = "DETRS_PRECISION"
"""Environment variable with the precision that ``auto`` means in this process."""
CPU_CAPABILITIES = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")
"""Processors with one of these multiply bfloat16 in hardware."""
MIN_SPEEDUP = 1.5
"""bfloat16 has to be this many times as fast as float32 in the probe: below, casts cost what products save."""
PROBE_SECONDS, MIN_ROUNDS, MAX_ROUNDS = 0.03, 3, 7
"""The probe ends after this time, but not before ``MIN_ROUNDS``."""
PROBE_SHAPES = {"cpu": (1024, 256, 256)}
"""(rows, inputs, outputs) of the linear layer of the probe: tokens of an encoder, 1 ms in float32 on one core."""
ACCELERATOR_SHAPE = (2048, 2048, 2048)
"""Likewise on other devices, which take longer to start a small product than to compute it."""

_lock = threading.Lock()
_chosen: dict[str, Resolved] = {}
_warned: set[str] = set()


def resolve(name: str, device: torch.device) -> Resolved:
    """The precision called ``name`` on a device.

    ``auto`` is ``bf16`` where the device multiplies bfloat16 in hardware and a probe of some 20 ms measures that it is
    faster, else ``fp32``; or the value of the environment variable ``DETRS_PRECISION``. It is decided once per process
    and device.

    Args:
        name: ``auto``, ``fp32``, ``bf16`` or ``fp16``.
        device: where the detector computes.

    Raises:
        UserError: there is no such precision, or the device does not support it.
    """
    given, where = name, "precision"
    if name == "auto" and os.environ.get(VARIABLE):
        name, where = os.environ[VARIABLE], f"the environment variable {VARIABLE}"
    if name not in get_args(Precision):
        known = get_args(Precision)
        raise UserError(f"{where}: expected one of {', '.join(known)}, got {name!r}.{did_you_mean(str(name), known)}")
    if name == "auto":
        return _automatic(device)
    if name == "fp16" and device.type == "cpu":
        raise UserError(f"{where} 'fp16' is not supported on the CPU: choose 'fp32' or 'bf16'.")
    if name != "fp32" and not torch.amp.is_autocast_available(device.type):
        raise UserError(f"{where} '{name}' is not supported on the device '{device}': choose 'fp32'.")
    if name == "bf16" and given != "auto" and not has_bf16(device) and device.type not in _warned:
        _warned.add(device.type)
        logger.warning(
            "the device '%s' does not multiply bfloat16 in hardware: bf16 is slower than fp32 there, and as accurate "
            "as on other devices",
            device,
        )
    return name  # type: ignore[return-value]


def autocast(precision: Resolved, device_type: str) -> AbstractContextManager[object]:
    """A context in which a detector computes in ``precision``, whatever autocast is active around it."""
    if precision == "fp32":
        return full_precision(device_type)
    return torch.autocast(device_type, DTYPES[precision])


def full_precision(device_type: str) -> AbstractContextManager[object]:
    """Disables autocast within the context; a null context where autocast is off, so that exported graphs contain no
    autocast node."""
    available = torch.amp.is_autocast_available(device_type)
    if available and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def has_bf16(device: torch.device) -> bool:
    """Whether the device reports that it multiplies bfloat16 in hardware."""
    match device.type:
        case "cpu":
            found = cpu_capabilities()
            return torch.backends.mkldnn.is_available() and any(found.get(name) for name in CPU_CAPABILITIES)
        case "cuda":  # Ampere is the first generation; PyTorch emulates it on older ones
            return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
        case "xpu":
            return torch.xpu.is_bf16_supported(including_emulation=False)
        case _:
            return False


def cpu_capabilities() -> Mapping[str, Any]:
    """The instructions of the processor that multiply bfloat16, among others."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    # of older versions of PyTorch
    return {"amx_bf16": torch.cpu._is_amx_tile_supported(), "avx512_bf16": torch.cpu._is_avx512_bf16_supported()}


def speedup(device: torch.device) -> float:
    """How many times as fast as in float32 a linear layer is in bfloat16, measured.

    The two alternate, and the fastest of each counts, so that other programs hardly change the ratio.
    """
    rows, inputs, outputs = PROBE_SHAPES.get(device.type, ACCELERATOR_SHAPE)
    operands = [
        (torch.full((rows, inputs), 0.5, dtype=dtype, device=device), torch.full((outputs, inputs), 0.5, dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    ]
    pairs = [(x, weight.to(device)) for x, weight in operands]
    fastest = [float("inf")] * len(pairs)
    with torch.no_grad(), full_precision(device.type):
        for pair in pairs:  # compiles kernels
            _seconds(*pair)
        began = time.perf_counter()
        for number in range(MAX_ROUNDS):
            if number >= MIN_ROUNDS and time.perf_counter() - began > PROBE_SECONDS:
                break
            fastest = [min(best, _seconds(*pair)) for best, pair in zip(fastest, pairs, strict=True)]
    return fastest[0] / fastest[1]


def _automatic(device: torch.device) -> Resolved:
    """``bf16`` or ``fp32``; the first answer of this process for the device."""
    with _lock:
        if str(device) not in _chosen:
            _chosen[str(device)] = "bf16" if has_bf16(device) and speedup(device) >= MIN_SPEEDUP else "fp32"
        return _chosen[str(device)]


def _seconds(x: Tensor, weight: Tensor) -> float:
    began = time.perf_counter()
    F.linear(x, weight)
    if x.device.type != "cpu":
        torch.accelerator.synchronize(x.device)
    return time.perf_counter() - began
