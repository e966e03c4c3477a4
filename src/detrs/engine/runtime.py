"""Devices, processes and precision of training. The only importer of accelerate and ``torch.distributed``.

One process is started with ``detrs train``, several with ``torchrun -m detrs train`` or ``accelerate launch -m detrs
train``: the code above this file is the same, and so are the results.
"""

import atexit
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped,unused-ignore]
import torch
import torch.distributed
from accelerate import Accelerator  # type: ignore[import-untyped,unused-ignore]
from accelerate.state import (  # type: ignore[import-untyped,unused-ignore]
    AcceleratorState,
    GradientState,
    PartialState,
)
from accelerate.utils import (  # type: ignore[import-untyped,unused-ignore]
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    broadcast_object_list,
    gather_object,
)
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from detrs.config import RuntimeConfig
from detrs.criterion.objective import Objective
from detrs.devices import pick_device
from detrs.errors import UserError
from detrs.precision import autocast, resolve

T = TypeVar("T")
Module = TypeVar("Module", bound=nn.Module)

SINGLETONS = (PartialState, AcceleratorState, GradientState)
"""Classes of accelerate whose instances share one state for the whole process."""
SMALLEST_SCALE = 1.0
"""fp16 overflows while its loss scale is too high; below this the loss itself is not finite."""


_swap = threading.RLock()


class _OwnState:
    """accelerate's global state, kept apart from that of the program, which may use accelerate, too.

    Inside a ``with`` block, new instances of ``SINGLETONS`` share this state. One thread at a time is inside.
    """

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = [{} for _ in SINGLETONS]
        self.replaced: list[list[dict[str, Any]]] = []

    def __enter__(self) -> None:
        _swap.acquire()
        self.replaced.append([cls._shared_state for cls in SINGLETONS])
        for cls, state in zip(SINGLETONS, self.states, strict=True):
            cls._shared_state = state

    def __exit__(self, *_: object) -> None:
        for cls, state in zip(SINGLETONS, self.replaced.pop(), strict=True):
            cls._shared_state = state
        _swap.release()


def is_main_process() -> bool:
    """Whether this is the process that logs and writes; valid before a ``Runtime`` exists."""
    return int(os.environ.get("RANK", "0")) == 0


class Runtime:
    """One process among ``world_size``, its device and its precision.

    Args:
        config: device, precision, accumulation.

    Raises:
        UserError: the device is not available, or does not support the precision.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        device = pick_device(config.device)
        own_precision = resolve(config.precision, device)
        self._state = _OwnState()
        with self._state:
            self._accelerator = Accelerator(
                cpu=device.type == "cpu",
                mixed_precision="fp16" if own_precision == "fp16" else "no",  # for its loss scale
                device_placement=False,
                # as a plugin, since ACCELERATE_GRADIENT_ACCUMULATION_STEPS would replace a number
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
                kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
            )
            self.rank = self._accelerator.process_index
            self.world_size = self._accelerator.num_processes
            self.is_main = self._accelerator.is_main_process
            own_device = self._accelerator.device
        if self.world_size > 1:
            atexit.register(_leave_process_group)
        if self.world_size > 1 and device.index is not None:
            raise UserError(
                f"runtime.device is '{config.device}', but each of {self.world_size} processes needs its own device: "
                f"use '{device.type}', and CUDA_VISIBLE_DEVICES to select devices."
            )
        self.device = own_device if self.world_size > 1 else device
        self.precision = self.from_main(own_precision)
        """``auto`` is resolved, by the main process."""

    def synchronize_batch_norm(self, detector: Module) -> Module:
        """On several GPUs: BatchNorm statistics over the images of all of them. (PyTorch has none for the CPU.)"""
        if self.world_size > 1 and self.device.type == "cuda":
            detector = convert_sync_batchnorm(detector)  # torch's would drop the activation in timm's layers
        return detector

    def prepare(self, objective: Objective, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Wrap the objective (distributed) and the optimizer for training.

        With fp16, accelerate also adds its own autocast, of the same dtype as that of ``autocast``.
        """
        self._accelerator.ddp_handler.find_unused_parameters = objective.has_unused_parameters
        with self._state:
            wrapped, prepared = self._accelerator.prepare(objective, optimizer)
        return wrapped, prepared

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass in training."""
        return autocast(self.precision, self.device.type)

    @contextmanager
    def micro_batch(self, objective: nn.Module, *, last: bool) -> Iterator[None]:
        """Context of one micro-batch; gradients are reduced across processes after the last one only."""
        if last:
            yield
        else:
            with self._state, self._accelerator.no_sync(objective):
                yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``, scaled under fp16."""
        with self._state:
            self._accelerator.backward(loss)

    def clip(self, parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
        """Clip the gradient of all parameters together; returns its L2 norm before. ``None``: no clipping."""
        with self._state:
            return self._accelerator.clip_grad_norm_(list(parameters), float("inf") if max_norm is None else max_norm)

    def back_off(self) -> bool:
        """Lower fp16's loss scale after a gradient that is not finite. Returns whether overflow may be the cause."""
        scaler = self._accelerator.scaler
        if scaler is None or not scaler.is_enabled():
            return False
        scaler.update(scaler.get_scale() / 2)
        # Otherwise earlier finite steps count towards the next doubling, which may be the next step.
        scaler.load_state_dict({**scaler.state_dict(), "_growth_tracker": 0})
        return scaler.get_scale() >= SMALLEST_SCALE

    def scaler_state(self) -> dict[str, Any]:
        """State of fp16's loss scale as plain numbers; empty in other precisions."""
        return {} if self._accelerator.scaler is None else self._accelerator.scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """The inverse of ``scaler_state``; a run resumed in another precision starts with a new scale."""
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
        with self._state:
            return gather_object(items) if self.world_size > 1 else items

    def from_main(self, value: T) -> T:
        """The main process's ``value``, on every process."""
        with self._state:
            return broadcast_object_list([value])[0] if self.world_size > 1 else value

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Broadcast ``tensors`` from the main process."""
        if self.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def wait_for_all(self) -> None:
        """Barrier."""
        with self._state:
            self._accelerator.wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """A context that the main process enters first (downloads, caches)."""
        with self._state, self._accelerator.main_process_first():
            yield

    def start_tracker(self, name: str, project: str, folder: Path, options: Mapping[str, Any]) -> Any:
        """One of accelerate's experiment trackers, started. Its methods must be called in ``own_state()``.

        Args:
            name: such as ``tensorboard``; its package is installed.
            project: the project or experiment in the tracker.
            folder: for the files of trackers that write some.
            options: arguments of the class of the tracker.
        """
        with self._state:
            self._accelerator.project_configuration.logging_dir = str(folder)
            # not through filter_trackers, which has a list of the packages that were installed when it was imported
            self._accelerator.log_with, self._accelerator.trackers = [name], []
            self._accelerator.init_trackers(project, init_kwargs={name: dict(options)})
            (tracker,) = self._accelerator.trackers
        return tracker

    def own_state(self) -> AbstractContextManager[None]:
        """A context with accelerate's state of this process, for its trackers."""
        return self._state

    def memory_bytes(self) -> int:
        """Peak memory of the GPU, or current resident memory of this process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return int(psutil.Process().memory_info().rss)


def _leave_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
