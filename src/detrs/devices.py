"""The device that a name stands for."""

import torch

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
