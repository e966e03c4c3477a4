"""DAT: Vision Transformer with Deformable Attention (Xia et al. 2022, arXiv 2201.00520), and DAT++ (arXiv 2309.01430).

Idea: in the deformable attention of DETRs, each query has its own few sampling points. Here all queries share the
points, whose number is that of a small map, so that features of a backbone can attend to each other with query, key and
value as usual, at the places that matter in this image.

Models for timm: ``timm.create_model("dat_tiny")`` classifies, and with ``features_only=True`` it returns the maps of
strides 4 to 32, for images of any size. Parameters have the names of the authors' code. There are no pretrained weights
in safetensors format; ``checkpoint_filter_fn`` accepts the authors' state dicts.

Deviation: feature maps are normalized, as in the authors' detection code, but without scale and bias, which the linear
projection of a neck contains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.drop import DropPath
from timm.models import FeatureInfo, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from detrs.backbones.dat_attention import DeformableAttention, NeighborhoodAttention, Sampling, WindowAttention
from detrs.backbones.windows import ChannelNorm, pad, parts

STRIDES = (4, 8, 16, 32)
KERNELS = (9, 7, 5, 3)
"""Of the convolution that predicts offsets, in each stage."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What distinguishes the models: four numbers are those of the four stages."""

    plus: bool = False
    """False: CVPR 2022, Swin's stem and feed-forward networks. True: DAT++, with more convolutions."""
    dims: tuple[int, int, int, int]
    """Channels."""
    blocks: tuple[str, str, str, str]
    """One letter per block. L: local windows, S: shifted windows, N: neighborhoods, D: deformable attention."""
    heads: tuple[int, int, int, int]
    groups: tuple[int, int, int, int]
    """Groups of heads with offsets of their own (D only)."""
    strides: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Cells of the map per key, along each axis (D only)."""
    offset_range: float = 2.0
    """Largest offset, in keys; 0 or less: no limit (D only)."""
    window: int = 7
    """Side of a window (L and S only)."""
    drop_path: float
    """Rate of stochastic depth of the last block; it rises linearly from 0."""
    image_size: int = 224
    """The bias of deformable attention has an entry for each displacement in images of this size."""


class Perceptron(nn.Module):
    """Feed-forward network of the CVPR version."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.chunk = nn.ModuleDict({"linear1": nn.Linear(dim, 4 * dim), "linear2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        hidden = F.gelu(self.chunk["linear1"](x.permute(0, 2, 3, 1)))
        return self.chunk["linear2"](hidden).permute(0, 3, 1, 2)


class ConvolutionalPerceptron(nn.Module):
    """Feed-forward network of DAT++: with a depth-wise convolution of the hidden channels, added to them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear1 = nn.Sequential(nn.Conv2d(dim, 4 * dim, 1))
        self.dwc = nn.Conv2d(4 * dim, 4 * dim, 3, padding=1, groups=4 * dim)
        self.linear2 = nn.Sequential(nn.Conv2d(4 * dim, dim, 1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        hidden = self.linear1(x)
        return self.linear2(F.gelu(hidden + self.dwc(hidden)))


def attention(layout: Layout, stage: int, letter: str) -> nn.Module:
    dim, heads = layout.dims[stage], layout.heads[stage]
    if letter == "D":
        side = layout.image_size // STRIDES[stage]
        sampling = Sampling(
            plus=layout.plus,
            stride=layout.strides[stage],
            kernel=KERNELS[stage],
            offset_range=layout.offset_range,
        )
        return DeformableAttention(dim, heads, layout.groups[stage], sampling, (side, side))
    if letter == "N":
        return NeighborhoodAttention(dim, heads)
    return WindowAttention(dim, heads, layout.window, shift=(layout.window + 1) // 2 if letter == "S" else 0)


class Stage(nn.Module):
    """Blocks of attention and feed-forward network, pre-norm.

    Args:
        layout: of the model.
        stage: 0 to 3.
        drop_path: rate of each block.
    """

    def __init__(self, layout: Layout, stage: int, drop_path: Sequence[float]) -> None:
        super().__init__()
        dim, letters = layout.dims[stage], layout.blocks[stage]
        perceptron = ConvolutionalPerceptron if layout.plus else Perceptron
        self.layer_norms = nn.ModuleList(ChannelNorm(dim) for _ in range(2 * len(letters)))
        self.attns = nn.ModuleList(attention(layout, stage, letter) for letter in letters)
        self.mlps = nn.ModuleList(perceptron(dim) for _ in letters)
        self.drop_path = nn.ModuleList(DropPath(rate) for rate in drop_path)
        self.local_perception_units = nn.ModuleList(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in letters if layout.plus
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        for i, (attend, perceptron, drop) in enumerate(zip(self.attns, self.mlps, self.drop_path, strict=True)):
            if self.local_perception_units:
                x = x + self.local_perception_units[i](x)
            x = x + drop(attend(self.layer_norms[2 * i](x)))
            x = x + drop(perceptron(self.layer_norms[2 * i + 1](x)))
        return x


class PatchConv(nn.Conv2d):
    """A convolution of disjoint patches; maps are padded right and bottom with zeros to whole patches."""

    def __init__(self, inputs: int, outputs: int, side: int, bias: bool = True) -> None:
        super().__init__(inputs, outputs, side, side, bias=bias)

    def forward(self, x: Float[Tensor, "B _ H W"]) -> Float[Tensor, "B _ h w"]:
        side = self.kernel_size[0]
        height, width = (side * parts(size, side) for size in x.shape[2:])
        return super().forward(pad(x, (height, width)))


def stem(layout: Layout, in_chans: int) -> nn.Sequential:
    """Stride 4."""
    dim = layout.dims[0]
    if not layout.plus:
        return nn.Sequential(PatchConv(in_chans, dim, 4), ChannelNorm(dim))
    first, second = nn.Conv2d(in_chans, dim // 2, 3, 2, 1), nn.Conv2d(dim // 2, dim, 3, 2, 1)
    return nn.Sequential(first, ChannelNorm(dim // 2), nn.GELU(), second, ChannelNorm(dim))


def downsample(layout: Layout, stage: int) -> nn.Sequential:
    """Stride 2, between ``stage`` and the next."""
    inputs, outputs = layout.dims[stage : stage + 2]
    if not layout.plus:
        return nn.Sequential(PatchConv(inputs, outputs, 2, bias=False), ChannelNorm(outputs))
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), ChannelNorm(outputs))


class DAT(nn.Module):
    """The classification model.

    Args:
        layout: which model.
        num_classes: 0: returns the pooled features.
        in_chans: channels of the images.
        drop_path_rate: replaces that of the layout.
    """

    def __init__(
        self, layout: Layout, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float | None = None
    ) -> None:
        super().__init__()
        depths = [len(letters) for letters in layout.blocks]
        last = layout.drop_path if drop_path_rate is None else drop_path_rate
        rates = torch.linspace(0, last, sum(depths), device="cpu").split(depths)
        self.num_classes, self.num_features = num_classes, layout.dims[-1]
        self.patch_proj = stem(layout, in_chans)
        self.stages = nn.ModuleList(Stage(layout, i, rates[i].tolist()) for i in range(4))
        self.down_projs = nn.ModuleList(downsample(layout, i) for i in range(3))
        self.cls_norm = ChannelNorm(layout.dims[-1])
        self.cls_head = nn.Linear(layout.dims[-1], num_classes) if num_classes else nn.Identity()
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": stride, "module": f"stages.{i}"}
            for i, (dim, stride) in enumerate(zip(layout.dims, STRIDES, strict=True))
        ]

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        x = self.patch_proj(images)
        for i, stage in enumerate(self.stages):
            x = stage(x if i == 0 else self.down_projs[i - 1](x))
        return self.cls_head(self.cls_norm(x).mean((2, 3)))


class DATFeatures(nn.Module):
    """The feature maps of ``out_indices``, each normalized: what timm returns with ``features_only=True``."""

    def __init__(self, model: DAT, out_indices: Sequence[int] = (0, 1, 2, 3), **options: Any) -> None:
        super().__init__()
        self.indices = [index % 4 for index in out_indices]
        self.feature_info = FeatureInfo(model.feature_info, tuple(self.indices))
        depth = max(self.indices) + 1
        self.patch_proj = model.patch_proj
        self.stages = model.stages[:depth]
        self.down_projs = model.down_projs[: depth - 1]
        self.norms = nn.ModuleList(ChannelNorm(info["num_chs"], affine=False) for info in model.feature_info[:depth])

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        x, maps = self.patch_proj(images), []
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            x = stage(x if i == 0 else self.down_projs[i - 1](x))
            maps.append(norm(x))
        return [maps[index] for index in self.indices]


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights of the authors for ``model``: without constants, with tables of another size interpolated (bicubic)."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    weights: dict[str, Tensor] = {}
    for name, value in state_dict.get("model", state_dict).items():
        if name.endswith(("relative_position_index", "attn_mask")):
            continue  # computed here, for any size
        shape = shapes.get(name, value.shape)
        if name.endswith("rpe_table") and value.shape != shape:
            value = F.interpolate(value[None].float(), shape[1:], mode="bicubic")[0]
        elif name.endswith("relative_position_bias_table") and value.shape != shape:
            old, new = (round(entries**0.5) for entries in (value.shape[0], shape[0]))
            square = value.mT.unflatten(1, (old, old))[None].float()
            value = F.interpolate(square, (new, new), mode="bicubic")[0].flatten(1).mT
        weights[name] = value
    return weights


SWIN = ("LS", "LS", "LDLDLD", "LD")
"""Blocks of DAT-T; DAT-S and DAT-B have 18 in the third stage."""
DEEP = (*SWIN[:2], "LD" * 9, SWIN[3])
PLUS: dict[str, Any] = {
    "plus": True,
    "blocks": ("ND", "NDND", "ND" * 9, "DD"),
    "strides": (8, 4, 2, 1),
    "offset_range": -1.0,
}
LAYOUTS = {
    "dat_tiny": Layout(dims=(96, 192, 384, 768), blocks=SWIN, heads=(3, 6, 12, 24), groups=(1, 2, 3, 6), drop_path=0.2),
    "dat_small": Layout(
        dims=(96, 192, 384, 768), blocks=DEEP, heads=(3, 6, 12, 24), groups=(1, 2, 3, 6), drop_path=0.3
    ),
    "dat_base": Layout(
        dims=(128, 256, 512, 1024), blocks=DEEP, heads=(4, 8, 16, 32), groups=(1, 2, 4, 8), drop_path=0.5
    ),
    "dat_base_384": Layout(
        dims=(128, 256, 512, 1024),
        blocks=DEEP,
        heads=(4, 8, 16, 32),
        groups=(1, 2, 4, 8),
        drop_path=0.5,
        window=12,
        image_size=384,
    ),
    "dat_plus_tiny": Layout(dims=(64, 128, 256, 512), heads=(2, 4, 8, 16), groups=(1, 2, 4, 8), drop_path=0.2, **PLUS),
    "dat_plus_small": Layout(
        dims=(96, 192, 384, 768), heads=(3, 6, 12, 24), groups=(1, 2, 3, 6), drop_path=0.4, **PLUS
    ),
    "dat_plus_base": Layout(
        dims=(128, 256, 512, 1024), heads=(4, 8, 16, 32), groups=(2, 4, 8, 16), drop_path=0.7, **PLUS
    ),
    "test_dat": Layout(  # our own design, to train from scratch on small images
        dims=(24, 48, 96, 192),
        blocks=("LS", "LS", "LD", "LD"),
        heads=(1, 2, 4, 8),
        groups=(1, 1, 2, 4),
        drop_path=0.0,
        window=4,
        image_size=128,
    ),
}


def description(layout: Layout) -> dict[str, Any]:
    """timm's description of a model without pretrained weights."""
    side = layout.image_size
    return {
        "num_classes": 1000,
        "input_size": (3, side, side),
        "pool_size": (side // 32, side // 32),
        "crop_pct": 0.875 if side == 224 else 1.0,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_proj.0",
        "classifier": "cls_head",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({name: description(layout) for name, layout in LAYOUTS.items()})


def create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    model: nn.Module = build_model_with_cfg(
        DAT,
        name,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": DATFeatures},
        kwargs_filter=("global_pool",),
        layout=LAYOUTS[name],
        **options,
    )
    return model


@register_model
def dat_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """DAT-T: 28.3 M parameters, 4.6 GFLOPs, top-1 82.0 (paper)."""
    return create("dat_tiny", pretrained, options)


@register_model
def dat_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """DAT-S: 49.7 M parameters, 9.0 GFLOPs, top-1 83.7 (paper)."""
    return create("dat_small", pretrained, options)


@register_model
def dat_base(pretrained: bool = False, **options: Any) -> nn.Module:
    """DAT-B: 87.9 M parameters, 15.8 GFLOPs, top-1 84.0 (paper)."""
    return create("dat_base", pretrained, options)


@register_model
def dat_base_384(pretrained: bool = False, **options: Any) -> nn.Module:
    """DAT-B for images of 384 pixels: 88.2 M parameters, 49.8 GFLOPs, top-1 84.8 (paper)."""
    return create("dat_base_384", pretrained, options)


@register_model
def dat_plus_tiny(pretrained: bool = False, **options: Any) -> nn.Module:
    """DAT-T++: 24.0 M parameters, top-1 83.9 (authors)."""
    return create("dat_plus_tiny", pretrained, options)


@register_model
def dat_plus_small(pretrained: bool = False, **options: Any) -> nn.Module:
    """DAT-S++: 53.1 M parameters, top-1 84.6 (authors)."""
    return create("dat_plus_small", pretrained, options)


@register_model
def dat_plus_base(pretrained: bool = False, **options: Any) -> nn.Module:
    """DAT-B++: 93.7 M parameters, top-1 84.9 (authors)."""
    return create("dat_plus_base", pretrained, options)


@register_model
def test_dat(pretrained: bool = False, **options: Any) -> nn.Module:
    """A small DAT to train from scratch, our own design."""
    return create("test_dat", pretrained, options)
