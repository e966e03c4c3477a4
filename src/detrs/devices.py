"""The device that a name stands for."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from detrs.errors import UserError

NAMES = {"cuda": "CUDA", "mps": "MPS", "xpu": "XPU"}
"""Device type -> its name in messages."""


def pick_device(name: str) -> torch.device:
    """The device called ``name``.

    Args:
        name: ``auto`` (the first accelerator, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...

    Raises:
        UserError: ``name`` is not a device, or is not available on this machine.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"'{name}' is not a device: choose auto, cpu, cuda, cuda:1 or mps.") from error
    count = 1 if device.type == "cpu" else torch.accelerator.device_count()
    if device.type != "cpu" and (accelerator is None or accelerator.type != device.type):
        found = f"{count} x {accelerator.type}" if accelerator else "only the CPU"
        raise UserError(
            f"Cannot use device '{name}': {NAMES.get(device.type, device.type)} is not available (this machine has "
            f"{found}). Choose another device, or 'auto'."
        )
    if (device.index or 0) >= count:
        raise UserError(f"Cannot use device '{name}': this machine has {count} x {device.type}, counted from 0.")
    return device


@contextmanager
def memory_errors(images: Tensor, remedy: str) -> Iterator[None]:
    """Converts the error of a device whose memory is exhausted.

    Args:
        images: (B, 3, H, W), the batch that is processed.
        remedy: what to do, as a sentence without a period.

    Raises:
        UserError: with the number and size of the images.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        count, _, height, width = images.shape
        message = str(error).splitlines()[0]
        raise UserError(
            f"The device '{images.device}' is out of memory with {count} images of {height} x {width} pixels "
            f"(padded): {message} {remedy}."
        ) from None  # the traceback would keep the tensors
