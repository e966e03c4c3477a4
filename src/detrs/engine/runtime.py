"""Where training runs: devices, processes, precision. The only importer of accelerate and ``torch.distributed``.

One process is started with ``detrs train``, several with ``torchrun -m detrs train`` or ``accelerate launch -m detrs
train``: the code above this file is the same, and so are its results.
"""

import atexit
import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import psutil  # type: ignore[import-untyped,unused-ignore]
import torch
import torch.distributed
from accelerate import Accelerator  # type: ignore[import-untyped,unused-ignore]
from accelerate.state import AcceleratorState  # type: ignore[import-untyped,unused-ignore]
from accelerate.utils import (  # type: ignore[import-untyped,unused-ignore]
    DistributedDataParallelKwargs,
    broadcast_object_list,
    gather_object,
)
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from detrs.config import RuntimeConfig
from detrs.errors import UserError

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
"""Our name of a precision, and accelerate's."""
SMALLEST_SCALE = 1.0
"""fp16 overflows while its loss scale is too high; below this the numbers themselves are at fault."""


def pick_device(name: str) -> torch.device:
    """The device that ``name`` means.

    Args:
        name: ``auto`` (the first accelerator, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...

    Raises:
        UserError: the name is no device, or this machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"'{name}' is no device: choose auto, cpu, cuda, cuda:1 or mps.") from error
    count = 1 if device.type == "cpu" else torch.accelerator.device_count()
    present = device.type == "cpu" or (accelerator is not None and accelerator.type == device.type)
    if not present or (device.index or 0) >= count:
        found = f"{count} x {accelerator.type}" if accelerator else "only the CPU"
        raise UserError(f"The device '{name}' is not here (found: {found}): choose another, or 'auto'.")
    return device


def is_main_process() -> bool:
    """Whether this process speaks and writes for all; valid before a ``Runtime`` exists."""
    return int(os.environ.get("RANK", "0")) == 0


def seed_everything(*path: int) -> None:
    """Start all random streams (Python, NumPy, PyTorch on every device) from a function of ``path`` alone."""
    seed = int(np.random.SeedSequence(path).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class Runtime:
    """One process among ``world_size``, its device and its precision.

    Args:
        config: where and how fast to run.
        unused_parameters: some parameters take no part in the loss (no auxiliary losses).

    Raises:
        UserError: the device is not here, or cannot do the precision.
    """

    def __init__(self, config: RuntimeConfig, *, unused_parameters: bool = False) -> None:
        device = pick_device(config.device)
        if config.precision == "fp16" and device.type == "cpu":
            raise UserError("runtime.precision is 'fp16', which a CPU cannot train in: choose 'fp32' or 'bf16'.")
        # accelerate keeps its state for the whole process; a second run may want another device or precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        self._accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=PRECISIONS[config.precision],
            device_placement=False,
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=unused_parameters, gradient_as_bucket_view=True)
            ],
        )
        if self._accelerator.num_processes > 1:
            atexit.register(_leave_process_group)
        self.rank = self._accelerator.process_index
        self.world_size = self._accelerator.num_processes
        self.is_main = self._accelerator.is_main_process
        if self.world_size > 1 and device.index is not None:
            raise UserError(
                f"runtime.device is '{config.device}', but each of the {self.world_size} processes takes a device of "
                f"its own: choose '{device.type}', and CUDA_VISIBLE_DEVICES to choose among them."
            )
        self.device = self._accelerator.device if self.world_size > 1 else device

    def synchronize_batch_norm(self, detector: Module) -> Module:
        """On several GPUs: BatchNorm over the pictures of all of them. (``torch`` has none for the CPU.)"""
        if self.world_size > 1 and self.device.type == "cuda":
            detector = convert_sync_batchnorm(detector)  # timm's: torch's would lose the activation in timm's layers
        return detector

    def prepare(self, detector: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The model to call in training (autocast, distributed) and the optimizer to step; both wrap the given ones."""
        model, prepared = self._accelerator.prepare(detector, optimizer)
        return model, prepared

    @contextmanager
    def micro_batch(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        """Forward and backward of one micro-batch; processes exchange gradients after the last one only."""
        if last:
            yield
        else:
            with self._accelerator.no_sync(model):
                yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, scaled under fp16."""
        self._accelerator.backward(loss)

    def clip(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        """Clip the gradient of all parameters together and return its L2 norm before; 0: only measure."""
        return self._accelerator.clip_grad_norm_(list(parameters), max_norm or float("inf"))

    def back_off(self) -> bool:
        """After a gradient that is not finite: lower fp16's loss scale. Returns whether that may be the cure."""
        scaler = self._accelerator.scaler
        if scaler is None or not scaler.is_enabled():
            return False
        scaler.update(scaler.get_scale() / 2)
        # Else the good steps before count towards the next doubling, which may come with the very next step.
        scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": 0})
        return scaler.get_scale() >= SMALLEST_SCALE

    def scaler_state(self) -> dict[str, Any]:
        """State of fp16's loss scale, plain numbers; empty in other precisions."""
        return {} if self._accelerator.scaler is None else self._accelerator.scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``scaler_state``; a run resumed in another precision starts a new scale."""
        if state and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)

    def mean(self, values: Tensor) -> Tensor:
        """The element-wise mean over all processes."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
        return values / self.world_size

    def total(self, value: int) -> int:
        """The sum of the ``value`` of all processes."""
        return self._reduced(value, torch.distributed.ReduceOp.SUM)

    def largest(self, value: int) -> int:
        """The largest ``value`` of all processes."""
        return self._reduced(value, torch.distributed.ReduceOp.MAX)

    def _reduced(self, value: int, operation: Any) -> int:
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(tensor, op=operation)
        return int(tensor)

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, in the order of their ranks, on every process."""
        return gather_object(items) if self.world_size > 1 else items

    def from_main(self, value: T) -> T:
        """The main process's ``value``, on every process."""
        return broadcast_object_list([value])[0] if self.world_size > 1 else value

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Give ``tensors`` the values that they have in the main process."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def wait_for_all(self) -> None:
        """Go on when every process is here."""
        self._accelerator.wait_for_everyone()

    def main_first(self) -> Any:
        """A context in which the others wait for the main process (downloads, caches)."""
        return self._accelerator.main_process_first()

    def memory_bytes(self) -> int:
        """Peak of the accelerator's memory, or what this process holds of the main memory now."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return int(psutil.Process().memory_info().rss)


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
