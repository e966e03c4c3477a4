"""Specific to Deformable DETR; for properties of the family see tests/family."""

from dataclasses import replace

import pytest
import torch

from detrs.backbones.timm import BackboneConfig
from detrs.criterion.set_criterion import CriterionConfig, SetCriterion
from detrs.layers.activation_checkpointing import checkpoint_activations
from detrs.models import build
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.models.detector import Detector
from detrs.presets import preset
from detrs.structures import Target, Totals

TINY = DeformableDETRConfig(
    num_classes=5,
    backbone=BackboneConfig(name="test_resnet", norm="frozen", freeze_stem=False),
    dim=64,
    num_heads=2,
    encoder_layers=2,
    decoder_layers=3,
    ffn_dim=96,
    dropout=0.0,
    num_queries=11,
)
VARIANTS = {
    "single-scale": replace(TINY, num_levels=1, backbone=replace(TINY.backbone, stages=(5,))),
    "single-scale-dc5": replace(TINY, num_levels=1, backbone=replace(TINY.backbone, stages=(5,), dilated=True)),
    "multi-scale": TINY,
    "refine": replace(TINY, reference="refine"),
    "two-stage": replace(TINY, reference="refine", queries="proposals"),
}
TARGETS = (
    Target(torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.5, 0.2]]), torch.tensor([4, 1]), 1, (97, 131)),
    Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 2, (67, 101)),
)


def randomized(config: DeformableDETRConfig) -> Detector:
    """A detector without the zeros of its initialization, which hide errors."""
    torch.manual_seed(0)
    detector = build(config)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for buffer in detector.buffers():  # timm initializes the last norm of a residual branch with zero
            buffer.copy_(torch.rand_like(buffer) + 0.5)
    return detector


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """An image of 97 x 131, and one of 67 x 101 padded to it."""
    generator = torch.Generator().manual_seed(1)
    images, padding = torch.randn(2, 3, 97, 131, generator=generator), torch.zeros(2, 97, 131, dtype=torch.bool)
    padding[1, 67:] = True
    padding[1, :, 101:] = True
    return images.masked_fill(padding[:, None], 0.0), padding


def test_refinement_stops_gradients_between_layers() -> None:
    detector = randomized(VARIANTS["refine"]).train()
    detector(*batch()).last.boxes.sum().backward()
    assert detector.decoder.heads[0].box[-1].weight.grad is None
    assert detector.decoder.heads[2].box[-1].weight.grad is not None


def test_proposals_become_references_without_gradient() -> None:
    detector = randomized(VARIANTS["two-stage"]).train()
    images, padding = batch()
    memory = detector.encoder(detector.neck(detector.backbone(images), padding))
    queries, proposals = detector.queries(memory)
    assert not queries.reference.requires_grad
    best = proposals.logits[..., 0].topk(11).indices
    torch.testing.assert_close(queries.reference, proposals.boxes.gather(1, best[..., None].expand(-1, -1, 4)))
    assert proposals.boxes.shape[1] == memory.tokens.shape[1]


@torch.no_grad()
def test_with_fewer_tokens_than_queries_every_token_becomes_a_query() -> None:
    detector = build(replace(VARIANTS["two-stage"], num_queries=500)).eval()
    boxes = detector(torch.randn(1, 3, 67, 41), torch.zeros(1, 67, 41, dtype=torch.bool)).last.boxes
    assert boxes.shape[1] == 9 * 6 + 5 * 3 + 3 * 2 + 2 * 1


def test_initialization_of_heads_is_that_of_the_authors_code() -> None:
    base, refine, two_stage = (build(VARIANTS[name]) for name in ("multi-scale", "refine", "two-stage"))
    assert base.decoder.heads[0] is base.decoder.heads[2]
    assert [head.box[-1].bias[2:].tolist() for head in refine.decoder.heads] == [[-2, -2], [0, 0], [0, 0]]
    assert [head.box[-1].bias[2:].tolist() for head in two_stage.decoder.heads] == [[0, 0]] * 3
    for head in (*refine.decoder.heads, *two_stage.decoder.heads, two_stage.queries.head):
        assert head.box[-1].weight.abs().max() == 0
        torch.testing.assert_close(head.classes.bias, torch.full((5,), -4.59512))


def test_initialization_of_layers_is_that_of_the_authors_code() -> None:
    """Standard deviations of the built R50 model; a uniform distribution has bound * 3 ** -0.5."""
    detector = build(preset("deformable-detr-r50-refine").model)
    layer = detector.decoder.layers[0]
    assert layer.self_attention.attention.query_proj.weight.std().item() == pytest.approx(0.0442, rel=0.05)
    assert layer.self_attention.attention.output_proj.weight.std().item() == pytest.approx(0.0625, rel=0.05)
    assert layer.cross_attention.attention.value_proj.weight.std().item() == pytest.approx(0.0625, rel=0.05)
    assert layer.feedforward.expand.weight.std().item() == pytest.approx((2 / (256 + 1024)) ** 0.5, rel=0.05)
    assert detector.neck.level_embedding.weight.std().item() == pytest.approx(1.0, rel=0.1)
    assert detector.queries.embedding.weight.std().item() == pytest.approx(1.0, rel=0.05)
    assert layer.self_attention.attention.query_proj.bias.abs().max() == 0


def test_recomputed_layers_give_the_same_gradients() -> None:
    def gradients(recompute: bool) -> list[torch.Tensor]:
        detector = randomized(VARIANTS["two-stage"]).train()
        if recompute:
            assert checkpoint_activations(detector) == 2 + 3  # encoder, decoder
        SetCriterion(CriterionConfig(), detector.classification)(
            detector(*batch()), TARGETS, Totals.of(TARGETS)
        ).total.backward()
        return [p.grad for p in detector.parameters() if p.grad is not None]

    for plain, recomputed in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(plain, recomputed)
