"""Settings of the backbone; ``backbones/timm.py`` builds it."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The timm model, its initial weights, and which layers are trainable."""

    name: str = "resnet50.tv_in1k"
    """Name of a timm model that supports ``features_only``; ``.tv_in1k`` are torchvision's original weights."""
    weights: str = "timm"
    """Initial weights. ``timm``: the pretrained weights of ``name``, downloaded once; ``none``: random; otherwise the
    path of a ``.safetensors`` file of that model."""
    stages: tuple[int, ...] = (3, 4, 5)
    """Stages whose feature maps the neck receives, of C2 to C5: stage k has stride ``2**k``."""
    dilated: bool = False
    """DC5: C5 keeps stride 16, its later blocks are dilated by 2."""
    norm: Literal["frozen", "batch"] = "frozen"
    """``frozen``: statistics and affine parameters of BatchNorm never change (pretrained weights, small batches).
    ``batch``: ordinary BatchNorm (training from scratch)."""
    norm_eps: Annotated[float, Ge(0)] | None = None
    """Epsilon of BatchNorm; None: that of the timm model. torchvision's Faster R-CNN on COCO was trained with 0."""
    map_norm: Literal["none", "layer"] = "none"
    """``layer``: LayerNorm over the channels of each feature map, as detectors with Swin Transformers have."""
    freeze_stem: bool = True
    """Freeze everything before C3: the stem and the first stage."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per-channel mean used for pretraining, for pixel values in [0, 1]."""
    std: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.229, 0.224, 0.225)
    """Per-channel standard deviation used for pretraining, for pixel values in [0, 1]."""
    pad_type: str | None = None
    """Padding of convolutions, for timm models with this option (``same`` for TensorFlow's weights)."""
