"""Small random models of ``transformers`` with deformable attention, one of each kind."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn

DIM, HEADS, QUERIES, FFN = 32, 8, 7, 24  # 4 channels per head, as in tests of the operator
IMAGES = (2, 3, 64, 96)
STAGES = ["stage2", "stage3", "stage4"]
Inputs = dict[str, Any]


def resnet(*, all_stages: bool = False) -> Any:
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4,
        out_features=["stage1", *STAGES] if all_stages else STAGES,
    )  # fmt: skip


ENCODER_DECODER = {
    "d_model": DIM, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN,
    "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "num_queries": QUERIES,
}  # fmt: skip
RT_DETR = {
    **ENCODER_DECODER, "encoder_layers": 1, "encoder_hidden_dim": DIM, "encoder_in_channels": [8, 16, 16],
    "decoder_in_channels": [DIM] * 3, "num_denoising": 0, "hidden_expansion": 0.5, "num_labels": 5,
}  # fmt: skip
BERT = {
    "hidden_size": DIM, "num_hidden_layers": 1, "num_attention_heads": HEADS, "intermediate_size": FFN,
    "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip


def images() -> Inputs:
    return {"pixel_values": torch.randn(IMAGES)}


def padded_images() -> Inputs:
    mask = torch.ones(IMAGES[0], *IMAGES[2:], dtype=torch.long)
    mask[1, 40:], mask[1, :, 60:] = 0, 0
    return {**images(), "pixel_mask": mask}


def text() -> Inputs:
    """Two phrases that end with a full stop, the token 4."""
    ids = torch.tensor([[1, 10, 4, 11, 12, 4, 2]] * IMAGES[0])
    return {**padded_images(), "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def deformable_detr(**more: Any) -> tuple[nn.Module, Inputs]:
    settings = {**ENCODER_DECODER, "num_labels": 5, "num_feature_levels": 4, **more}
    config = transformers.DeformableDetrConfig(backbone_config=resnet(), use_timm_backbone=False, **settings)
    return transformers.DeformableDetrForObjectDetection(config), padded_images()


def deformable_detr_two_stage() -> tuple[nn.Module, Inputs]:
    return deformable_detr(with_box_refine=True, two_stage=True, two_stage_num_proposals=QUERIES)


def rt_detr() -> tuple[nn.Module, Inputs]:
    config = transformers.RTDetrConfig(backbone_config=resnet(), **RT_DETR)
    return transformers.RTDetrForObjectDetection(config), images()


def rt_detr_v2(**more: Any) -> tuple[nn.Module, Inputs]:
    config = transformers.RTDetrV2Config(backbone_config=resnet(), decoder_offset_scale=0.75, **RT_DETR, **more)
    return transformers.RTDetrV2ForObjectDetection(config), images()


def d_fine(**more: Any) -> tuple[nn.Module, Inputs]:
    settings = {**RT_DETR, "decoder_n_points": [3, 6, 3], "decoder_offset_scale": 0.75, **more}
    config = transformers.DFineConfig(backbone_config=resnet(), **settings)
    return transformers.DFineForObjectDetection(config), images()


def deimv2() -> tuple[nn.Module, Inputs]:
    config = transformers.Deimv2Config(backbone_config=resnet(), **RT_DETR, decoder_n_points=[3, 6, 3])
    return transformers.Deimv2ForObjectDetection(config), images()


def pp_doclayout_v2() -> tuple[nn.Module, Inputs]:
    order = {
        "hidden_size": DIM, "num_attention_heads": HEADS, "intermediate_size": FFN, "num_hidden_layers": 1,
        "coordinate_size": 11, "shape_size": 10, "num_classes": 5, "max_position_embeddings": 32,
        "max_2d_position_embeddings": 1024,
    }  # fmt: skip
    config = transformers.PPDocLayoutV2Config(
        backbone_config=resnet(), reading_order_config=order, class_thresholds=[0.1] * 5, class_order=[0, 1, 2, 3, 4],
        **RT_DETR,
    )  # fmt: skip
    return transformers.PPDocLayoutV2ForObjectDetection(config), images()


def pp_doclayout_v3() -> tuple[nn.Module, Inputs]:
    config = transformers.PPDocLayoutV3Config(backbone_config=resnet(all_stages=True), x4_feat_dim=8, **RT_DETR)
    return transformers.PPDocLayoutV3ForObjectDetection(config), images()


def pp_doclayout_v4() -> tuple[nn.Module, Inputs]:
    config = transformers.PPDocLayoutV4Config(backbone_config=resnet(), **RT_DETR, hidden_size=DIM)
    return transformers.PPDocLayoutV4ForObjectDetection(config), images()


def grounding_dino() -> tuple[nn.Module, Inputs]:
    config = transformers.GroundingDinoConfig(
        backbone_config=resnet(), text_config=transformers.BertConfig(**BERT), **ENCODER_DECODER
    )
    return transformers.GroundingDinoForObjectDetection(config), text()


def mm_grounding_dino() -> tuple[nn.Module, Inputs]:
    config = transformers.MMGroundingDinoConfig(
        backbone_config=resnet(), text_config=transformers.BertConfig(**BERT), **ENCODER_DECODER
    )
    return transformers.MMGroundingDinoForObjectDetection(config), text()


MASKS = {
    "hidden_dim": DIM, "mask_feature_size": DIM, "feature_size": DIM, "encoder_layers": 2, "decoder_layers": 2,
    "num_attention_heads": HEADS, "dim_feedforward": FFN, "encoder_feedforward_dim": FFN, "num_queries": QUERIES,
}  # fmt: skip


def mask2former() -> tuple[nn.Module, Inputs]:
    config = transformers.Mask2FormerConfig(backbone_config=resnet(all_stages=True), **MASKS)
    return transformers.Mask2FormerForUniversalSegmentation(config), images()


def oneformer() -> tuple[nn.Module, Inputs]:
    settings = {**MASKS, "conv_dim": DIM, "mask_dim": DIM, "text_encoder_width": DIM, "text_encoder_num_layers": 1}
    config = transformers.OneFormerConfig(backbone_config=resnet(all_stages=True), **settings)
    inputs = {**images(), "task_inputs": torch.randint(9, (IMAGES[0], config.task_seq_len))}
    return transformers.OneFormerForUniversalSegmentation(config), inputs


def omdet_turbo() -> tuple[nn.Module, Inputs]:
    clip = transformers.CLIPTextConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=HEADS, intermediate_size=FFN, vocab_size=64,
        projection_dim=16, max_position_embeddings=8, eos_token_id=2, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    config = transformers.OmDetTurboConfig(
        text_config=clip, backbone_config=resnet(), use_timm_backbone=False, encoder_in_channels=[8, 16, 16],
        text_projection_in_dim=16, text_projection_out_dim=16, class_embed_dim=16, task_encoder_hidden_dim=FFN,
        encoder_hidden_dim=DIM, decoder_hidden_dim=DIM, vision_features_channels=[DIM] * 3,
        encoder_attention_heads=HEADS, decoder_num_heads=HEADS, encoder_dim_feedforward=FFN,
        decoder_dim_feedforward=FFN, decoder_num_layers=2, num_queries=QUERIES,
        apply_layernorm_after_vision_backbone=False,
    )  # fmt: skip
    classes = torch.tensor([[1, 10, 2], [1, 11, 2], [1, 12, 2], [1, 13, 2]])
    tasks = torch.tensor([[1, 20, 21, 2]] * IMAGES[0])
    inputs = {
        **images(), "classes_input_ids": classes, "classes_attention_mask": torch.ones_like(classes),
        "tasks_input_ids": tasks, "tasks_attention_mask": torch.ones_like(tasks),
        "classes_structure": torch.tensor([2, 2]),
    }  # fmt: skip
    return transformers.OmDetTurboForObjectDetection(config), inputs


VIT = {"hidden_size": DIM, "num_hidden_layers": 2, "num_attention_heads": HEADS, "image_size": 64, "patch_size": 16}
GROUP_DETR = {
    "d_model": DIM, "decoder_layers": 2, "decoder_ffn_dim": FFN, "decoder_self_attention_heads": HEADS,
    "decoder_cross_attention_heads": HEADS, "num_queries": QUERIES, "group_detr": 2, "c2f_num_blocks": 1,
    "num_labels": 5,
}  # fmt: skip


def lw_detr() -> tuple[nn.Module, Inputs]:
    vit = transformers.LwDetrViTConfig(**VIT, window_block_indices=[0], out_indices=[1, 2], num_windows=4)
    config = transformers.LwDetrConfig(backbone_config=vit, **GROUP_DETR, projector_scale_factors=[2.0, 0.5])
    return transformers.LwDetrForObjectDetection(config), {"pixel_values": torch.randn(2, 3, 64, 64)}


def rf_detr() -> tuple[nn.Module, Inputs]:
    vit = transformers.RfDetrDinov2Config(**VIT, out_indices=[1, 2], num_windows=2)
    config = transformers.RfDetrConfig(backbone_config=vit, **GROUP_DETR)
    return transformers.RfDetrForObjectDetection(config), {"pixel_values": torch.randn(2, 3, 64, 64)}


KINDS: dict[str, Callable[..., tuple[nn.Module, Inputs]]] = {
    each.__name__: each
    for each in (
        deformable_detr, deformable_detr_two_stage, rt_detr, rt_detr_v2, d_fine, deimv2, pp_doclayout_v2,
        pp_doclayout_v3, pp_doclayout_v4, grounding_dino, mm_grounding_dino, mask2former, oneformer, omdet_turbo,
        lw_detr, rf_detr,
    )
}  # fmt: skip


def build(kind: str, **more: Any) -> tuple[nn.Module, Inputs]:
    """A model and its inputs. All parameters are random, since those of a new model have too many zeros."""
    torch.manual_seed(0)
    model, inputs = KINDS[kind](**more)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "backbone" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval(), inputs
