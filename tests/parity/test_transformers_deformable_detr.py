"""Every variant of Deformable DETR against ``transformers``, with random weights in all of its parameters."""

from typing import Any

import pytest
import torch
import transformers
from theirs import (
    CLASSES,
    LAYERS,
    OUR_WIDTHS,
    QUERIES,
    TARGETS,
    WIDTHS,
    TheirBackbone,
    channels,
    close,
    padded_images,
    randomize,
    resnet,
    their_labels,
    their_weights,
)
from torch import nn

from detrs import postprocess
from detrs.backbones.timm import BackboneConfig
from detrs.classification import Focal
from detrs.criterion.set_criterion import CriterionConfig, SetCriterion
from detrs.layers.neck import ChannelMapper, normalized_projection
from detrs.models import build
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.models.detector import Detector
from detrs.structures import Classes, Totals

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "refine": {"reference": "refine"},
    "two-stage": {"reference": "refine", "queries": "proposals"},
    "single-scale": {"num_levels": 1},
    "five-levels": {"num_levels": 5, "reference": "refine"},
    "three-points": {"num_points": 3, "reference": "refine", "queries": "proposals"},
}


def pair(variant: dict[str, Any], seed: int = 0) -> tuple[Detector, Any]:
    """Our detector and theirs with the same random weights, in evaluation mode."""
    torch.manual_seed(seed)
    stages = (5,) if variant.get("num_levels") == 1 else (3, 4, 5)
    ours = DeformableDETRConfig(backbone=BackboneConfig(name="test_resnet", stages=stages), **OUR_WIDTHS, **variant)
    theirs = transformers.DeformableDetrForObjectDetection(
        transformers.DeformableDetrConfig(
            backbone_config=resnet(stages),
            use_timm_backbone=False,
            encoder_n_points=ours.num_points,
            decoder_n_points=ours.num_points,
            num_feature_levels=ours.num_levels,
            two_stage_num_proposals=QUERIES,
            two_stage=ours.queries == "proposals",
            with_box_refine=ours.reference == "refine",
            class_cost=2,
            auxiliary_loss=True,
            tie_word_embeddings=False,
            **WIDTHS,
        )
    ).eval()
    randomize(theirs)
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
    detector.neck.mapper = ChannelMapper(channels(stages), ours.dim, ours.num_levels, normalized_projection)
    missing, unexpected = detector.load_state_dict(their_weights(ours, detector, theirs), strict=False)
    assert not unexpected
    assert all(name.startswith("backbone.") for name in missing)
    return detector, theirs


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
        close("Deformable DETR, logits", layer.logits, logits, atol=1e-5, rtol=1e-4)
    close("Deformable DETR, boxes", predictions.last.boxes, expected.pred_boxes, atol=3e-6)
    if VARIANTS[name].get("reference") == "refine":
        for k, layer in enumerate(predictions.layers):
            close("Deformable DETR, boxes", layer.boxes, expected.intermediate_reference_points[:, k], atol=3e-6)
    if predictions.proposals is not None:
        logits = expected.enc_outputs_class
        close("Deformable DETR, logits of proposals", predictions.proposals.logits, logits, atol=1e-5, rtol=1e-4)
        boxes = expected.enc_outputs_coord_logits.sigmoid()
        close("Deformable DETR, boxes of proposals", predictions.proposals.boxes, boxes, atol=3e-6)


@torch.no_grad()
def test_proposals_agree_where_padding_leaves_fifty_columns() -> None:
    """The center of the first of 50 cells lies exactly where proposals end; 50 of 80 must round as 50 of 50 does."""
    ours, theirs = pair(VARIANTS["two-stage"])
    torch.manual_seed(1)
    images, padding = torch.randn(2, 3, 61, 640), torch.zeros(2, 61, 640, dtype=torch.bool)
    padding[0, :, 400:] = True
    images = images.masked_fill(padding[:, None], 0.0)
    expected, predictions = theirs(images, (~padding).long()), ours(images, padding)
    proposals = expected.enc_outputs_coord_logits.sigmoid()
    close("Deformable DETR, boxes of proposals", predictions.proposals.boxes, proposals, atol=3e-6)
    logits = expected.enc_outputs_class
    close("Deformable DETR, logits of proposals", predictions.proposals.logits, logits, atol=1e-5, rtol=1e-4)
    close("Deformable DETR, boxes", predictions.last.boxes, expected.pred_boxes, atol=3e-6)


@pytest.mark.parametrize("name", ["base", "refine", "two-stage"])
@torch.no_grad()
def test_encoder_memory_agrees_on_valid_tokens(name: str) -> None:
    ours, theirs = pair(VARIANTS[name])
    images, padding = padded_images()
    pyramid = ours.neck(ours.backbone(images), padding)
    memory = ours.encoder(pyramid).tokens
    expected = theirs(images, (~padding).long()).encoder_last_hidden_state
    valid = ~pyramid.padding
    close("Deformable DETR, memory", memory[valid], expected[valid], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["base", "refine", "two-stage"])
def test_loss_terms_agree(name: str) -> None:
    ours, theirs = pair(VARIANTS[name])
    images, padding = torch.randn(2, 3, 97, 131), torch.zeros(2, 97, 131, dtype=torch.bool)
    expected = theirs(images, (~padding).long(), labels=their_labels()).loss_dict
    terms = SetCriterion(CriterionConfig(), Focal())(ours(images, padding), TARGETS, Totals.of(TARGETS)).terms
    for theirs_name, name in (("loss_ce", "class"), ("loss_bbox", "box"), ("loss_giou", "giou")):
        for suffix in ("", *(f"_{k}" for k in range(LAYERS - 1))):
            their_term = expected[theirs_name + suffix].detach()
            close("Deformable DETR, loss terms", terms[name + suffix], their_term, atol=1e-5, rtol=1e-4)


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
    found = postprocess.detections(ours.detect(images, padding, max_detections=20), sizes, classes)
    for mine, other in zip(found, expected, strict=True):
        assert mine.labels.tolist() == other["labels"].tolist()
        torch.testing.assert_close(mine.scores, other["scores"])
        torch.testing.assert_close(mine.boxes_xyxy, other["boxes"], atol=1e-3, rtol=0)
