"""The device that a name stands for."""

import torch

from detrs.errors import UserError


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
    if device.type == "cpu" and not device.index:
        return device
    if accelerator is None or accelerator.type != device.type:
        label = device.type.upper() if device.type in ("cuda", "mps", "xpu") else device.type
        found = f"this machine has {accelerator.type}" if accelerator else "this machine has only the CPU"
        raise UserError(f"Cannot use device '{name}': {label} is not available ({found}). Choose another or 'auto'.")
    count = torch.accelerator.device_count()
    if (device.index or 0) >= count:
        raise UserError(f"Cannot use device '{name}': this machine has {count} x {device.type}, counted from 0.")
    return device
