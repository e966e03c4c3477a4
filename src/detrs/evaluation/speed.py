"""Model size, multiply-adds and latency of a detector."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from detrs.choices import Resolved
from detrs.errors import UserError
from detrs.models.detector import Model
from detrs.ops.ms_deform_attn import operator as _operator  # noqa: F401 (registers the operator named below)
from detrs.precision import autocast


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))


def _no_flops(*_: object, **__: object) -> int:
    return 0


UNCOUNTED = {torch.ops.detrs.ms_deform_attn: _no_flops, torch.ops.detrs.ms_deform_attn_backward: _no_flops}
"""Sampling is not counted with any backend: the reference backend uses operators that PyTorch does not count."""

UNLISTED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_attention_math_for_mps: _attention_flops,
    torch.ops.aten._scaled_dot_product_fused_attention_overrideable: _attention_flops,
}
"""Attention operators that are missing in PyTorch's counter, which would silently count them as 0."""


@dataclass(frozen=True)
class SpeedReport:
    """Parameters, multiply-adds and latency of a forward pass."""

    parameters: int
    """All parameters. Frozen normalization layers have buffers, not parameters."""
    trainable_parameters: int
    """Parameters with ``requires_grad``."""
    gflops: float
    """Multiply-adds per image in 1e9, which papers call GFLOPs, of convolutions, linear layers and matrix products
    (including attention). Sampling, normalization and activations are not counted."""
    latency_ms: float
    """Median duration of a forward pass of the whole batch in milliseconds."""
    images_per_s: float
    peak_memory_mib: float | None
    """Peak memory of tensors on the GPU during a forward pass in MiB; ``None`` on other devices."""
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    batch_size: int
    device: str
    """Name of the GPU, or the number of CPU threads."""
    precision: Resolved
    """Of the forward passes that are timed."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable dictionary."""
        return dataclasses.asdict(self)

    def table(self) -> Table:
        """The report as a rich table."""
        height, width = self.image_size
        table = Table(show_header=False, box=SIMPLE_HEAD)
        table.add_column()
        table.add_column(justify="right")
        table.add_row("parameters", f"{self.parameters:,}")
        table.add_row("trainable parameters", f"{self.trainable_parameters:,}")
        table.add_row("multiply-adds per image", f"{self.gflops:,.2f} G")
        table.add_row(f"latency, {height} x {width}, batch {self.batch_size}", f"{self.latency_ms:,.1f} ms")
        table.add_row("images per second", f"{self.images_per_s:,.3g}")
        if self.peak_memory_mib is not None:
            table.add_row("peak GPU memory", f"{self.peak_memory_mib:,.0f} MiB")
        table.add_row("measured on", self.device)
        table.add_row("precision", self.precision)
        return table


def profile(
    detector: Model,
    image_size: tuple[int, int],
    batch_size: int = 1,
    repeats: int = 5,
    device: torch.device | str = "cpu",
    precision: Resolved = "fp32",
) -> SpeedReport:
    """Measures a detector in evaluation mode, with random images without padding.

    Args:
        detector: Called with images (B, 3, H, W) and padding (B, H, W); moved to ``device``, its mode is restored.
        image_size: (height, width) in pixels.
        batch_size: Images per forward pass.
        repeats: Timed forward passes, after one warm-up that counts the multiply-adds.
        device: Device to run on.
        precision: Of the arithmetic.

    Raises:
        UserError: A size or a count is less than 1.
    """
    if min(*image_size, batch_size, repeats) < 1:
        raise UserError(f"Sizes and counts must be at least 1, got {image_size=}, {batch_size=}, {repeats=}.")
    device = torch.device(device)
    images = torch.randn(batch_size, 3, *image_size, generator=torch.Generator().manual_seed(0)).to(device)
    padding = torch.zeros(batch_size, *image_size, dtype=torch.bool, device=device)
    was_training = detector.training
    detector.to(device).eval()

    def detect(images: Tensor, padding: Tensor) -> object:
        with autocast(precision, device.type):  # entered each time, as in prediction: leaving it drops cast weights
            return detector.detect(images, padding)

    try:
        flops = count_flops(detector, images, padding, run=detect)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = [_time(lambda: detect(images, padding), device) for _ in range(repeats)]
        peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    finally:
        detector.train(was_training)
    parameters = list(detector.parameters())
    return SpeedReport(
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable_parameters=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        gflops=flops / batch_size / 1e9,
        latency_ms=1e3 * statistics.median(seconds),
        images_per_s=batch_size / statistics.median(seconds),
        peak_memory_mib=peak,
        image_size=image_size,
        batch_size=batch_size,
        device=_device_name(device),
        precision=precision,
    )


def count_flops(module: nn.Module, *inputs: Tensor, run: Callable[..., object] | None = None) -> int:
    """Multiply-adds of the convolutions, linear layers and matrix products in ``module(*inputs)``."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused operator that is missing in the counter
    for parameter in trainable:  # under no_grad, the counter fails on views of parameters
        parameter.requires_grad_(False)
    try:
        with FlopCounterMode(display=False, custom_mapping=UNLISTED_ATTENTION | UNCOUNTED) as counter:
            (run or module)(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for parameter in trainable:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops()) // 2  # the counter counts a multiply-add as two operations


@torch.inference_mode()
def _time(run: Callable[[], object], device: torch.device) -> float:
    """Duration in seconds, including work that is queued on the device."""
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
