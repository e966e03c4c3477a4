"""Every variant of Deformable DETR against ``transformers``, with random weights in all of its parameters."""

import re
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from detrs import postprocess
from detrs.backbones.timm import BackboneConfig
from detrs.classification import Focal
from detrs.criterion.set_criterion import CriterionConfig, SetCriterion, Totals
from detrs.layers.neck import ChannelMapper, normalized_projection
from detrs.models import build
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.models.detector import Detector
from detrs.structures import Classes, Target

LAYERS = 3
QUERIES = 7
CLASSES = 5
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "refine": {"reference": "refine"},
    "two-stage": {"reference": "refine", "queries": "proposals"},
    "single-scale": {"num_levels": 1},
    "five-levels": {"num_levels": 5, "reference": "refine"},
    "three-points": {"num_points": 3, "reference": "refine", "queries": "proposals"},
}

RENAMED = [  # transformers' name -> ours
    (r"^model\.level_embed$", "neck.level_embedding.weight"),
    (r"^model\.input_proj\.(\d+)\.", r"neck.mapper.levels.\1."),
    (r"^model\.encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention.attention."),
    (r"^model\.decoder\.layers\.(\d+)\.self_attn\.q_proj", r"decoder.layers.\1.self_attention.attention.query_proj"),
    (r"^model\.decoder\.layers\.(\d+)\.self_attn\.k_proj", r"decoder.layers.\1.self_attention.attention.key_proj"),
    (r"^model\.decoder\.layers\.(\d+)\.self_attn\.v_proj", r"decoder.layers.\1.self_attention.attention.value_proj"),
    (r"^model\.decoder\.layers\.(\d+)\.self_attn\.o_proj", r"decoder.layers.\1.self_attention.attention.output_proj"),
    (r"^model\.encoder\.layers\.(\d+)\.self_attn_layer_norm", r"encoder.layers.\1.attention_norm.norm"),
    (r"^model\.decoder\.layers\.(\d+)\.self_attn_layer_norm", r"decoder.layers.\1.self_attention_norm.norm"),
    (r"^model\.decoder\.layers\.(\d+)\.encoder_attn_layer_norm", r"decoder.layers.\1.look_norm.norm"),
    (r"^model\.decoder\.layers\.(\d+)\.encoder_attn", r"decoder.layers.\1.look.attention"),
    (r"^model\.(en|de)coder\.layers\.(\d+)\.mlp\.fc1", r"\1coder.layers.\2.feedforward.expand"),
    (r"^model\.(en|de)coder\.layers\.(\d+)\.mlp\.fc2", r"\1coder.layers.\2.feedforward.contract"),
    (r"^model\.(en|de)coder\.layers\.(\d+)\.final_layer_norm", r"\1coder.layers.\2.feedforward_norm.norm"),
    (r"^model\.query_position_embeddings", "queries.embedding"),
    (r"^model\.reference_points", "queries.reference_points"),
    (r"^model\.enc_output_norm", "queries.token_norm"),
    (r"^model\.enc_output", "queries.token_proj"),
    (r"^model\.pos_trans_norm", "queries.box_norm"),
    (r"^model\.pos_trans", "queries.box_proj"),
    (rf"^class_embed\.{LAYERS}\.", "queries.head.classes."),
    (rf"^bbox_embed\.{LAYERS}\.layers", "queries.head.box.layers"),
    (r"^class_embed\.(\d+)\.", r"decoder.heads.\1.classes."),
    (r"^bbox_embed\.(\d+)\.layers", r"decoder.heads.\1.box.layers"),
]


class TheirBackbone(nn.Module):
    """The ResNet of ``transformers`` behind our interface, so that both detectors see the same feature maps."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images).feature_maps)


def renamed(name: str, stages: tuple[int, ...]) -> str | None:
    """Our name of one of their tensors; None for the backbone and for their copies of the heads."""
    if "backbone" in name or name.startswith(("model.decoder.class_embed", "model.decoder.bbox_embed")):
        return None
    for pattern, replacement in RENAMED:
        new, count = re.subn(pattern, replacement, name)
        if count:
            break
    else:
        raise AssertionError(f"no name for {name}")
    # our box head is a sequence whose linear layers stand at 0, 2 and 4; further levels are a list of their own
    new = re.sub(r"\.box\.layers\.(\d)", lambda found: f".box.{2 * int(found[1])}", new)
    part = (
        "projections"
        if new.startswith("neck") and (level := re.search(r"levels\.(\d+)", new)) and int(level[1]) < len(stages)
        else "downsamples"
    )
    shift = 0 if part == "projections" else len(stages)
    return re.sub(r"mapper\.levels\.(\d+)", lambda found: f"mapper.{part}.{int(found[1]) - shift}", new)


def pair(variant: dict[str, Any], seed: int = 0) -> tuple[Detector, Any]:
    """Our detector and theirs with the same random weights, in evaluation mode."""
    torch.manual_seed(seed)
    stages = (5,) if variant.get("num_levels") == 1 else (3, 4, 5)
    ours = DeformableDETRConfig(
        num_classes=CLASSES, backbone=BackboneConfig(name="test_resnet", stages=stages), dim=64, num_heads=4,
        encoder_layers=2, decoder_layers=LAYERS, ffn_dim=96, dropout=0.0, num_queries=QUERIES, **variant,
    )  # fmt: skip
    resnet = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 2], layer_type="bottleneck",
        hidden_act="relu", out_features=[f"stage{stage - 1}" for stage in stages],
    )  # fmt: skip
    theirs = transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(
            backbone_config=resnet,
            use_timm_backbone=False,
            d_model=64,
            encoder_layers=2,
            decoder_layers=LAYERS,
            encoder_ffn_dim=96,
            decoder_ffn_dim=96,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_n_points=ours.num_points,
            decoder_n_points=ours.num_points,
            num_feature_levels=ours.num_levels,
            num_queries=QUERIES,
            two_stage_num_proposals=QUERIES,
            two_stage=ours.queries == "proposals",
            with_box_refine=ours.reference == "refine",
            num_labels=CLASSES,
            class_cost=2,
            auxiliary_loss=True,
            dropout=0.0,
            tie_word_embeddings=False,
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if ours.reference == "keep":  # one head for all layers
        for head in (*theirs.class_embed[1:], *theirs.bbox_embed[1:]):
            head.load_state_dict(
                (theirs.class_embed if isinstance(head, nn.Linear) else theirs.bbox_embed)[0].state_dict()
            )
    decoder = theirs.model.decoder
    if decoder.bbox_embed is not None:  # untied, their decoder refines and proposes with heads of its own
        decoder.bbox_embed = theirs.bbox_embed
    if decoder.class_embed is not None:
        decoder.class_embed = theirs.class_embed
    detector = build(ours).eval()
    detector.backbone = TheirBackbone(theirs.model.backbone.model)
    detector.neck.mapper = ChannelMapper(resnet_channels(stages), ours.dim, ours.num_levels, normalized_projection)
    weights = {our_name: tensor for name, tensor in theirs.state_dict().items() if (our_name := renamed(name, stages))}
    missing, unexpected = detector.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(name.startswith("backbone.") for name in missing)
    return detector, theirs


def resnet_channels(stages: tuple[int, ...]) -> tuple[int, ...]:
    return (40,) if stages == (5,) else (24, 32, 40)


def padded_images() -> tuple[Tensor, Tensor]:
    """Two images of different sizes, padded on both axes."""
    torch.manual_seed(1)
    images, padding = torch.randn(2, 3, 193, 229), torch.zeros(2, 193, 229, dtype=torch.bool)
    padding[0, 163:] = True
    padding[1, :, 149:] = True
    return images.masked_fill(padding[:, None], 0.0), padding


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_every_layer_agrees(name: str) -> None:
    ours, theirs = pair(VARIANTS[name])
    images, padding = padded_images()
    expected = theirs(images, (~padding).long())
    predictions = ours(images, padding)
    assert len(predictions.layers) == LAYERS
    for k, layer in enumerate(predictions.layers):
        logits = theirs.class_embed[k](expected.intermediate_hidden_states[:, k])
        torch.testing.assert_close(layer.logits, logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(predictions.last.boxes, expected.pred_boxes, atol=3e-6, rtol=0)
    if VARIANTS[name].get("reference") == "refine":
        for k, layer in enumerate(predictions.layers):
            torch.testing.assert_close(layer.boxes, expected.intermediate_reference_points[:, k], atol=3e-6, rtol=0)
    if predictions.proposals is not None:
        torch.testing.assert_close(predictions.proposals.logits, expected.enc_outputs_class, atol=1e-5, rtol=1e-4)
        boxes = expected.enc_outputs_coord_logits.sigmoid()
        torch.testing.assert_close(predictions.proposals.boxes, boxes, atol=3e-6, rtol=0)


@torch.no_grad()
def test_proposals_agree_where_padding_leaves_fifty_columns() -> None:
    """The centre of the first of 50 cells lies exactly where proposals end; 50 of 80 must round as 50 of 50 does."""
    ours, theirs = pair(VARIANTS["two-stage"])
    torch.manual_seed(1)
    images, padding = torch.randn(2, 3, 61, 640), torch.zeros(2, 61, 640, dtype=torch.bool)
    padding[0, :, 400:] = True
    images = images.masked_fill(padding[:, None], 0.0)
    expected, predictions = theirs(images, (~padding).long()), ours(images, padding)
    proposals = expected.enc_outputs_coord_logits.sigmoid()
    torch.testing.assert_close(predictions.proposals.boxes, proposals, atol=3e-6, rtol=0)
    torch.testing.assert_close(predictions.proposals.logits, expected.enc_outputs_class, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(predictions.last.boxes, expected.pred_boxes, atol=3e-6, rtol=0)


@pytest.mark.parametrize("name", ["base", "refine", "two-stage"])
@torch.no_grad()
def test_encoder_memory_agrees_on_valid_tokens(name: str) -> None:
    ours, theirs = pair(VARIANTS[name])
    images, padding = padded_images()
    pyramid = ours.neck(ours.backbone(images), padding)
    memory = ours.encoder(pyramid).tokens
    expected = theirs(images, (~padding).long()).encoder_last_hidden_state
    torch.testing.assert_close(memory[~pyramid.padding], expected[~pyramid.padding], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["base", "refine", "two-stage"])
def test_loss_terms_agree(name: str) -> None:
    ours, theirs = pair(VARIANTS[name])
    images, padding = torch.randn(2, 3, 97, 131), torch.zeros(2, 97, 131, dtype=torch.bool)
    boxes = [
        torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.5, 0.2], [0.5, 0.5, 0.1, 0.1]]),
        torch.tensor([[0.7, 0.2, 0.2, 0.3]]),
    ]
    labels = [torch.tensor([1, 4, 0]), torch.tensor([2])]
    expected = theirs(images, (~padding).long(), labels=[
        {"class_labels": label, "boxes": box} for label, box in zip(labels, boxes, strict=True)
    ]).loss_dict  # fmt: skip
    targets = tuple(Target(box, label, 0, (97, 131)) for label, box in zip(labels, boxes, strict=True))
    terms = SetCriterion(CriterionConfig(), "focal")(ours(images, padding), targets, Totals.of(targets)).terms
    for theirs_name, name in (("loss_ce", "class"), ("loss_bbox", "box"), ("loss_giou", "giou")):
        for suffix in ("", *(f"_{k}" for k in range(LAYERS - 1))):
            torch.testing.assert_close(
                terms[name + suffix], expected[theirs_name + suffix].detach(), atol=1e-5, rtol=1e-4
            )


@torch.no_grad()
def test_postprocessing_agrees() -> None:
    ours, theirs = pair(VARIANTS["two-stage"])
    images, padding = padded_images()
    sizes = [(326, 458), (386, 298)]
    processor = transformers.DeformableDetrImageProcessor()
    expected = processor.post_process_object_detection(
        theirs(images, (~padding).long()), threshold=-1, target_sizes=torch.tensor(sizes), top_k=20
    )
    classes = Classes(tuple("abcde"), tuple(range(1, CLASSES + 1)))
    found = postprocess.detections(ours(images, padding).last, sizes, classes, Focal(), max_detections=20)
    for mine, other in zip(found, expected, strict=True):
        assert mine.labels.tolist() == other["labels"].tolist()
        torch.testing.assert_close(mine.scores, other["scores"])
        torch.testing.assert_close(mine.boxes_xyxy, other["boxes"], atol=1e-3, rtol=0)
