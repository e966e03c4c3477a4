"""Random detectors of ``transformers``, for tests of their folders."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

SMALL = {
    "d_model": 64, "encoder_layers": 1, "decoder_layers": 3, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 7, "num_labels": 5,
}  # fmt: skip
NAMES = {"detr": "Detr", "conditional": "ConditionalDetr", "deformable": "DeformableDetr", "dab": "DabDetr"}
PROCESSORS = {**NAMES, "dab": "ConditionalDetr"}
TIMM18, TIMM26 = {"backbone": "resnet18"}, {"backbone": "resnet26"}
TINY = {"backbone": "test_resnet"}
REFINE = {"with_box_refine": True, "tie_word_embeddings": False}
TWO_STAGE = {**REFINE, "two_stage": True, "two_stage_num_proposals": 7}


def own_resnet(layer_type: str, stages: tuple[int, ...]) -> dict[str, Any]:
    """Their ResNet-18 or ResNet-26."""
    width = 1 if layer_type == "basic" else 4
    config = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64 * width, 128 * width, 256 * width, 512 * width], depths=[2, 2, 2, 2],
        layer_type=layer_type, out_features=[f"stage{stage - 1}" for stage in stages],
    )  # fmt: skip
    return {"backbone_config": config, "use_timm_backbone": False}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("detr", TIMM18),
    "detr-dc5": ("detr", {**TIMM26, "dilation": True}),
    "detr-own-resnet": ("detr", own_resnet("bottleneck", (5,))),
    "conditional": ("conditional", TINY),
    "conditional-dc5": ("conditional", {**TIMM18, "dilation": True}),
    "conditional-own-resnet": ("conditional", own_resnet("basic", (5,))),
    "deformable-single-scale": ("deformable", {**TINY, "num_feature_levels": 1}),
    "deformable-single-scale-dc5": ("deformable", {**TIMM18, "num_feature_levels": 1, "dilation": True}),
    "deformable": ("deformable", TINY),
    "deformable-own-resnet": ("deformable", own_resnet("basic", (3, 4, 5))),
    "deformable-refine": ("deformable", {**TINY, **REFINE}),
    "deformable-refine-tied": ("deformable", {**TINY, "with_box_refine": True}),
    "deformable-two-stage": ("deformable", {**TINY, **TWO_STAGE}),
    "deformable-two-stage-tied": ("deformable", {**TINY, **TWO_STAGE, "tie_word_embeddings": True}),
    "deformable-five-levels": (
        "deformable",
        {**TINY, **TWO_STAGE, "num_feature_levels": 5, "encoder_n_points": 3, "decoder_n_points": 3},
    ),
    "dab": ("dab", TINY),
    "dab-dc5": ("dab", {**TIMM18, "dilation": True}),
    "dab-own-resnet": ("dab", own_resnet("basic", (5,))),
    "dab-patterns": (
        "dab",
        {**TINY, "num_patterns": 3, "temperature_height": 30, "temperature_width": 30, "auxiliary_loss": True},
    ),
}


def build(name: str, **more: Any) -> Any:
    """Their detector, with other random values in all of its tensors."""
    kind, settings = VARIANTS[name]
    torch.manual_seed(0)
    sizes = {"hidden_size" if kind == "dab" and key == "d_model" else key: value for key, value in SMALL.items()}
    config = getattr(transformers, f"{NAMES[kind]}Config")(**{**sizes, **settings, **more})
    model = model_class(name)(config).eval()
    randomize(model)
    return model


def model_class(name: str) -> Any:
    return getattr(transformers, f"{NAMES[VARIANTS[name][0]]}ForObjectDetection")


def processor(name: str) -> Any:
    return getattr(transformers, f"{PROCESSORS[VARIANTS[name][0]]}ImageProcessor")()


@torch.no_grad()
def randomize(model: Any) -> None:
    """Zeros of an untrained detector hide errors."""
    for name, parameter in model.named_parameters():
        parameter.add_(torch.randn_like(parameter) * (0.005 if "backbone" in name else 0.1))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "bias")):
            buffer.copy_(torch.randn_like(buffer) * 0.1)
        elif name.endswith(("running_var", "weight")):
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    if hasattr(model, "bbox_embed"):
        decoder = model.model.decoder
        for kind in ("bbox_embed", "class_embed"):
            heads = getattr(model, kind)
            if not model.config.with_box_refine:
                for head in heads[1:]:
                    head.load_state_dict(heads[0].state_dict())
            if getattr(decoder, kind) is not None:
                getattr(decoder, kind).load_state_dict(heads.state_dict())


def saved(model: nn.Module, folder: Path) -> Path:
    """A folder written by their library."""
    model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def images() -> tuple[Tensor, Tensor]:
    """Two images of different sizes, padded on both axes, and the mask of the padding."""
    torch.manual_seed(1)
    pixels, padding = torch.randn(2, 3, 97, 131), torch.zeros(2, 97, 131, dtype=torch.bool)
    padding[0, 83:] = True
    padding[1, :, 101:] = True
    return pixels.masked_fill(padding[:, None], 0.0), padding
