"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030) of timm, as the authors' detection code computes it.

timm's model for classification rolls a map before padding it to whole windows, so that cells of opposite borders attend
to each other at sizes that are not multiples of the window, and its last stage, one window at the image size of the
pretraining, is not shifted. Here every second block of each stage is shifted, and maps are padded first. Sizes are
computed so that programs for images of any size can be exported. Weights and their names are those of timm.
"""

from typing import Any

import timm
from jaxtyping import Float
from timm.layers.patch_embed import PatchEmbed
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn

from detrs.backbones.windows import attend_in_windows, pad, parts

OPTIONS = {"strict_img_size": False, "always_partition": True}
"""Arguments of timm for images of any size: the window of every stage is that of the weights."""


def is_swin(name: str) -> bool:
    """Whether a timm model is a Swin Transformer (the first version)."""
    return bool(timm.model_entrypoint(name).__module__ == SwinTransformerBlock.__module__)


class Patches(nn.Module):
    """The patch embedding, for images of any size."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.proj, self.norm = module.proj, module.norm

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B _ _ C"]:
        return self.norm(self.proj(padded_to(images, self.proj.kernel_size[0])).permute(0, 2, 3, 1))


class Merging(nn.Module):
    """Patch merging: the channels of two by two cells, column by column, become those of one."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.norm, self.reduction = module.norm, module.reduction

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B _ _ _"]:
        x = padded_to(x.permute(0, 3, 1, 2), 2)
        cells = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, C, rows, 2, columns, 2)
        return self.reduction(self.norm(cells.permute(0, 2, 4, 5, 3, 1).flatten(3)))


class SwinBlock(nn.Module):
    """Attention in windows, then the feed-forward network."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.window, self.shift = module.window_size[0], module.shift_size[0]
        self.norm1, self.attn, self.drop_path1 = module.norm1, module.attn, module.drop_path1
        self.norm2, self.mlp, self.drop_path2 = module.norm2, module.mlp, module.drop_path2

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        attention = self.attn
        bias = attention.relative_position_bias_table[attention.relative_position_index].permute(2, 0, 1)
        attended = attend_in_windows(
            self.norm1(x).permute(0, 3, 1, 2), attention.qkv, attention.proj, bias, self.window, self.shift
        )
        x = x + self.drop_path1(attended.permute(0, 2, 3, 1))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


def padded_to(x: Float[Tensor, "B C H W"], multiple: int) -> Float[Tensor, "B C _ _"]:
    """``x`` with zeros right and bottom, so that both sides are multiples."""
    return pad(x, (parts(x.shape[2], multiple) * multiple, parts(x.shape[3], multiple) * multiple))


OURS = {SwinTransformerBlock: SwinBlock, PatchMerging: Merging, PatchEmbed: Patches}


def adapt(body: nn.Module) -> None:
    """Replace the modules of timm's feature extractor by ours, which have the same weights."""
    for name, child in body.named_children():
        if type(child) in OURS:
            setattr(body, name, OURS[type(child)](child).train(child.training))
        else:
            adapt(child)
