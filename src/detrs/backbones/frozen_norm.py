"""BatchNorm with constant statistics."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class FrozenBatchNorm(nn.Module):
    """BatchNorm whose statistics and affine parameters are constant buffers, the same in training and evaluation.

    ``y = weight * (x - mean) / sqrt(var + eps) + bias``, then the activation that timm fused into the layer, if any.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())
        self.activation = getattr(norm, "act", nn.Identity())

    def affine(self) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """``scale`` and ``shift`` of ``y = scale * x + shift``."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        scale, shift = (tensor.to(x.dtype)[:, None, None] for tensor in self.affine())  # half precision stays so
        return self.activation(torch.addcmul(shift, x, scale))


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every BatchNorm inside ``module`` by ``FrozenBatchNorm``."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm(child))
        else:
            freeze_batch_norm(child)
