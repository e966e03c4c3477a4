"""AdamW with the parameter groups of the official repositories, and its state as named tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detrs.config import OptimizerConfig

BACKBONE = "backbone."
SAMPLING = ("reference_points", "sampling_offsets")


def lr_factor_of(name: str, config: OptimizerConfig) -> float:
    """Learning rate of the parameter ``name``, relative to ``config.lr``."""
    if name.startswith(BACKBONE):
        return config.backbone_lr_factor
    if any(word in name for word in SAMPLING):
        return config.sampling_lr_factor
    return 1.0


def build_optimizer(named_parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, one group per learning rate.

    Parameters with a factor of 0 are frozen: no gradient is computed for them.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named_parameters.items():
        factor = lr_factor_of(name, config)
        if factor == 0:
            parameter.requires_grad_(False)
        elif parameter.requires_grad:
            groups.setdefault(factor, []).append(parameter)
    # On CPU, fused is one vectorised pass per tensor instead of about ten.
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr_factor": factor, "lr": factor * config.lr}
            for factor, parameters in sorted(groups.items(), reverse=True)
        ],
        lr=config.lr,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=config.weight_decay,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate: ``lr`` for the transformer and the heads, relative to it for the other groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimizer's state as ``{"<parameter>/<quantity>": tensor}``."""
    state: dict[Any, dict[str, Tensor]] = optimizer.state
    return {
        f"{name}/{quantity}": tensor
        for name, parameter in named_parameters.items()
        for quantity, tensor in state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Mapping[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """The inverse of ``optimizer_tensors``."""
    optimizer.state.clear()
    for key, tensor in tensors.items():
        name, quantity = key.rsplit("/", 1)
        parameter = named_parameters[name]
        # A file has no strides, and fused AdamW assumes that those of the moments equal those of the parameter:
        # moments in another memory format than a channels-last weight would update the wrong elements.
        like = parameter if tensor.shape == parameter.shape else tensor
        kept = torch.empty_like(like, dtype=tensor.dtype, device=parameter.device, requires_grad=False)
        optimizer.state[parameter][quantity] = kept.copy_(tensor)
