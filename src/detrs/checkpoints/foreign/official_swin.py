"""Names of Swin Transformers in the authors' code of DINO; the model itself is one of timm's."""

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from detrs.checkpoints.foreign.official_detr import count
from detrs.checkpoints.foreign.renaming import Rename, Rule
from detrs.config.backbone import BackboneConfig

SIGN = "backbone.0.patch_embed.proj.weight"
"""A name that only a Swin Transformer has."""
NAMES = {
    (96, 6, 7): "swin_tiny_patch4_window7_224.ms_in1k",
    (96, 18, 7): "swin_small_patch4_window7_224.ms_in1k",
    (128, 18, 7): "swin_base_patch4_window7_224.ms_in22k",
    (128, 18, 12): "swin_base_patch4_window12_384.ms_in22k",
    (192, 18, 7): "swin_large_patch4_window7_224.ms_in22k",
    (192, 18, 12): "swin_large_patch4_window12_384.ms_in22k",
}
"""Channels of the first stage, blocks of the third, and side of a window -> timm model."""
IGNORED = ("backbone.0.layers.{i}.blocks.{j}.attn.relative_position_index",)
"""Constants."""


def has_swin(keys: Collection[str]) -> bool:
    """Whether a state dict has the names of a Swin Transformer."""
    return SIGN in keys


def backbone(tensors: Mapping[str, Tensor], stages: tuple[int, ...]) -> BackboneConfig:
    """The backbone with these weights.

    Raises:
        ValueError: it is not one of ``NAMES``.
    """
    table = tensors["backbone.0.layers.0.blocks.0.attn.relative_position_bias_table"]  # (2 * window - 1)**2 rows
    shape = (tensors[SIGN].shape[0], count(tensors, "backbone.0.layers.2.blocks"), (round(len(table) ** 0.5) + 1) // 2)
    if shape not in NAMES:
        raise ValueError(f"no Swin Transformer has channels, blocks of the third stage and window {shape}")
    return BackboneConfig(name=NAMES[shape], stages=stages, map_norm="layer", freeze_stem=False)


def rules(config: BackboneConfig) -> Iterable[Rule]:
    """Timm reduces a map at the start of the next stage, the authors at the end of a stage."""
    yield Rename("backbone.0.patch_embed.{rest}", "backbone.body.patch_embed.{rest}")
    yield Rename("backbone.0.layers.{i}.blocks.{rest}", "backbone.body.layers_{i}.blocks.{rest}")
    for i in range(1, 4):
        yield Rename(f"backbone.0.layers.{i - 1}.downsample.{{rest}}", f"backbone.body.layers_{i}.downsample.{{rest}}")
    for k, stage in enumerate(config.stages):
        yield Rename(f"backbone.0.norm{stage - 2}.{{rest}}", f"backbone.norms.{k}.norm.{{rest}}")
