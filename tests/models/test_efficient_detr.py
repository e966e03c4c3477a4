"""Specific to Efficient DETR; for properties of the family see tests/family."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import goldens
import pytest
import torch
from torch import Tensor

from detrs.backbones.timm import BackboneConfig
from detrs.boxes import inverse_sigmoid
from detrs.config.models import check_model
from detrs.criterion.set_criterion import CriterionConfig
from detrs.errors import UserError
from detrs.layers.neck import centers, level_sizes
from detrs.models import build
from detrs.models.efficient_detr import EfficientDETRConfig
from detrs.presets import preset
from detrs.structures import Batch, Pyramid, Target, Totals

TINY = EfficientDETRConfig(
    num_classes=7,
    backbone=BackboneConfig(name="test_resnet"),
    num_levels=3,
    dim=64,
    num_heads=2,
    encoder_layers=1,
    ffn_dim=96,
    num_queries=11,
    initial_queries=31,
    decrease_images=10,
    dropout=0.0,
)


LAYER = {
    "linear1": "feedforward.expand",
    "linear2": "feedforward.contract",
    "cross_attn": "cross_attention.attention",
}
NORMS = {
    "encoder": {"norm1": "attention_norm.norm", "norm2": "feedforward_norm.norm", "self_attn": "attention.attention"},
    "decoder": {
        "norm1": "cross_attention_norm.norm",
        "norm2": "self_attention_norm.norm",
        "norm3": "feedforward_norm.norm",
    },
}
OUTSIDE = {
    "enc_output": "queries.token_transform.0",
    "enc_output_norm": "queries.token_transform.1",
    "pos_trans": "queries.box_proj",
    "pos_trans_norm": "queries.box_norm",
    "decoder.class_embed.0": "queries.head.classes",
    "decoder.bbox_embed.0.layers.0": "queries.head.box.0",
    "decoder.bbox_embed.0.layers.1": "queries.head.box.2",
    "decoder.bbox_embed.0.layers.2": "queries.head.box.4",
}


def renamed(name: str) -> str:
    """Name of our parameter for one of the reference."""
    module, _, kind = name.rpartition(".")
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{kind}"
    part, layers, number, *rest = name.split(".")
    words = LAYER | NORMS[part]
    return ".".join([part, layers, number, *(words.get(word, word) for word in rest)])


@pytest.fixture
def golden(shared: Path) -> dict[str, Any]:
    return goldens.golden(shared, "efficient.transformer")


@torch.no_grad()
def test_golden_values_of_the_reference(golden: dict[str, Any]) -> None:
    config = replace(
        TINY,
        dim=256,
        num_heads=8,
        num_levels=2,
        backbone=BackboneConfig(name="test_resnet", stages=(4, 5)),
        encoder_layers=2,
        ffn_dim=64,
        num_queries=6,
        initial_queries=None,
        proposals="all",
    )
    detector = build(config).eval()
    parameters = dict(detector.named_parameters())
    level_embedding = None
    for index, name in enumerate(golden["params"]):
        if name == "level_embed":
            level_embedding = goldens.parameter(name, index, (2, 256))
        elif match := re.fullmatch(r"(decoder\.layers\.\d)\.self_attn\.(in|out)_proj[._](weight|bias)", name):
            where, which, kind = f"{match[1]}.self_attention", match[2], match[3]
            projections = ("query_proj", "key_proj", "value_proj") if which == "in" else ("output_proj",)
            names = [f"{where}.{projection}.{kind}" for projection in projections]
            names = [own if own in parameters else own.replace(where, f"{where}.attention") for own in names]
            rows = 256 * len(names)
            whole = goldens.parameter(name, index, (rows, 256) if kind == "weight" else (rows,))
            for own, value in zip(names, whole.split(256), strict=True):
                parameters.pop(own).copy_(value)
        else:
            parameter = parameters.pop(renamed(name))
            parameter.copy_(goldens.parameter(name, index, tuple(parameter.shape)))
    assert [name for name in parameters if not name.startswith(("backbone.", "neck."))] == []
    assert level_embedding is not None

    shapes = ((6, 8), (3, 4))
    maps, positions = ([goldens.inputs(k + i, 2, 256, *shape) for i, shape in enumerate(shapes)] for k in (1000, 1002))
    paddings = [torch.ones(2, *shape, dtype=torch.bool) for shape in shapes]
    for level, (h, w) in zip(paddings, ((4, 6), (2, 3)), strict=True):
        level[0], level[1, :h, :w] = False, False
    valid = torch.tensor([[[8.0, 6.0], [4.0, 3.0]], [[6.0, 4.0], [3.0, 2.0]]])  # (B, L, 2), (x, y)
    pyramid = Pyramid(
        tokens=torch.cat([level.flatten(2).mT for level in maps], dim=1),
        position=torch.cat(
            [level.flatten(2).mT + row for level, row in zip(positions, level_embedding, strict=True)], dim=1
        ),
        reference_points=centers(shapes, valid),
        padding=torch.cat([level.flatten(1) for level in paddings], dim=1),
        shapes=shapes,
        valid_ratio=valid / level_sizes(shapes, valid),
        image_sizes=torch.tensor([[48, 64], [32, 48]]),
    )
    memory = detector.encoder(pyramid)
    queries, proposals = detector.queries(memory)
    (prediction,), final = detector.decoder(queries, memory)
    goldens.check(proposals.logits, golden["enc_logits"], sum_rtol=1e-3)
    goldens.check(proposals.boxes, golden["enc_boxes"], sum_rtol=1e-3)
    goldens.check(queries.reference, golden["init_ref"], sum_rtol=1e-3)
    goldens.check(final.content[None], golden["hs"], sum_rtol=1e-3)
    goldens.check(prediction.logits, golden["logits"], sum_rtol=1e-3)
    goldens.check(prediction.boxes, golden["boxes"], sum_rtol=1e-3)


def images(count: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    return torch.randn(count, 3, 97, 131), torch.zeros(count, 97, 131, dtype=torch.bool)


def target(*labels: int) -> Target:
    boxes = torch.rand(len(labels), 4, generator=torch.Generator().manual_seed(1)) * 0.3 + 0.3
    return Target(boxes, torch.tensor(labels, dtype=torch.long), 1, (97, 131))


def test_dense_and_sparse_part_share_one_head() -> None:
    detector = build(replace(TINY, decoder_layers=2))
    for head in detector.decoder.heads:
        assert {id(p) for p in head.parameters()} == {id(p) for p in detector.queries.head.parameters()}
    separate = sum(p.numel() for p in detector.queries.head.parameters())
    with_one_layer = sum(p.numel() for p in build(TINY).parameters())
    assert sum(p.numel() for p in detector.parameters()) == with_one_layer + sum(
        p.numel() for p in detector.decoder.layers[1].parameters()
    )
    assert separate > 0


@torch.no_grad()
def test_queries_are_the_tokens_of_the_best_proposals() -> None:
    """The same indices give the reference and the content, which is the token as the encoder returns it."""
    torch.manual_seed(0)
    detector = build(TINY).eval()
    detector.queries.head.box[-1].weight.normal_()
    detector.queries.head.classes.weight.normal_()
    memory = detector.encoder(detector.neck(detector.backbone(images()[0]), images()[1]))
    memory = memory.with_tokens(torch.randn_like(memory.tokens))
    queries, proposals = detector.queries(memory)
    for image in range(2):
        best = proposals.logits[image].amax(-1).argsort(descending=True)
        usable = [i for i in best.tolist() if proposals.boxes[image, i].max() < 1]
        assert torch.equal(queries.content[image], memory.tokens[image, usable[:11]])
        assert torch.equal(queries.reference[image], proposals.boxes[image, usable[:11]])


def test_gradients_reach_the_encoder_through_contents_not_through_references() -> None:
    torch.manual_seed(0)
    detector = build(TINY).eval()
    memory = detector.encoder(detector.neck(detector.backbone(images()[0]), images()[1]))
    leaf = torch.randn_like(memory.tokens).requires_grad_()
    queries, _ = detector.queries(memory.with_tokens(leaf))
    assert not queries.reference.requires_grad
    (gradient,) = torch.autograd.grad(queries.content.sum(), leaf)
    assert gradient.sum() == queries.content.numel()
    assert not torch.autograd.grad(queries.position.sum(), leaf, allow_unused=True)[0]


def test_proposals_are_trained_with_the_classes_of_objects() -> None:
    """All else equal, the dense loss depends on labels; with any-object labels it does not."""
    detector = build(TINY).eval()
    objective = detector.objective(CriterionConfig())
    terms = []
    with torch.no_grad():
        detector.queries.head.classes.bias.copy_(torch.linspace(-3, 3, 7))
        for label in (2, 5):
            batch = Batch(*images(1), (target(label),))
            terms.append(objective(batch, Totals.of(batch.targets)).terms["class_proposals"].item())
    assert abs(terms[0] - terms[1]) > 0.1


def test_number_of_queries_decreases_over_the_training_images() -> None:
    """31 to 11 over 10 images; then 11. In evaluation mode always 11."""
    detector = build(TINY).train()
    objective = detector.objective(CriterionConfig()).train()
    found = []
    for _ in range(7):
        batch = Batch(*images(2), (target(1), target(3)))
        found.append(detector(batch.images, batch.padding).last.logits.shape[1])
        objective(batch, Totals.of(batch.targets))
    assert found == [31, 27, 23, 19, 15, 11, 11]
    assert detector.state_dict()["queries.number.images_seen"] == 14
    fresh = build(TINY)
    assert fresh.eval()(*images()).last.logits.shape[1] == 11
    fresh.load_state_dict(detector.state_dict())
    assert fresh.train()(*images()).last.logits.shape[1] == 11


def test_images_of_all_processes_count() -> None:
    detector = build(TINY).train()
    batch = Batch(*images(2), (target(1), target(3)))
    detector.objective(CriterionConfig())(batch, Totals(6, 9, processes=3))
    assert detector.queries.number.images_seen == 6


def test_a_constant_number_of_queries() -> None:
    detector = build(replace(TINY, initial_queries=None)).train()
    batch = Batch(*images(2), (target(1), target(3)))
    detector.objective(CriterionConfig())(batch, Totals.of(batch.targets))
    assert detector(*images()).last.logits.shape[1] == 11


def test_boxes_are_refined_between_decoder_layers() -> None:
    """Table 2 of the paper varies the number of layers."""
    detector = build(replace(TINY, decoder_layers=2)).eval()
    references: list[Tensor] = []
    detector.decoder.layers[1].register_forward_hook(lambda m, inputs, output: references.append(inputs[0].reference))
    predictions = detector(*images())
    assert torch.equal(references[0], predictions.layers[0].boxes) and not references[0].requires_grad


@torch.no_grad()
def test_initial_boxes_are_anchors_and_then_references() -> None:
    detector = build(TINY).eval()
    predictions = detector(*images())
    memory = detector.encoder(detector.neck(detector.backbone(images()[0]), images()[1]))
    reference = detector.queries(memory)[0].reference
    sizes = torch.unique((predictions.proposals.boxes[..., 2:] * 1e4).round() / 1e4)
    torch.testing.assert_close(sizes, torch.tensor([0.05, 0.1, 0.2]), atol=1e-4, rtol=0)
    torch.testing.assert_close(predictions.last.boxes, inverse_sigmoid(reference).sigmoid())


def test_without_token_transform() -> None:
    """65,536 + 256 + 512 parameters fewer at 256 channels."""
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in build(replace(preset("efficient-detr-r50").model, token_transform=on)).parameters())
            for on in (True, False)
        ]
    assert counts[0] - counts[1] == 256 * 256 + 256 + 2 * 256
    assert counts[0] == 32_740_383


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial_queries": 10}, "model.initial_queries is 10, but must be at least model.num_queries (11)"),
        ({"num_levels": 2}, "model.num_levels is 2, but the backbone has 3 feature maps"),
        ({"dim": 48}, "model.dim is 48, but must be a multiple of 32"),
        ({"num_heads": 3}, "model.num_heads is 3, but must divide model.dim (64)"),
    ],
)
def test_contradicting_settings_are_rejected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_model(replace(TINY, **changes))


def test_more_objects_than_final_queries_are_rejected() -> None:
    TINY.check_capacity(11)
    with pytest.raises(UserError, match=r"add --model.num-queries 12"):
        TINY.check_capacity(12)


def test_recipe() -> None:
    """36 epochs and the sizes of the paper; learning rates of Deformable DETR."""
    experiment = preset("efficient-detr-r50")
    assert (experiment.schedule.epochs, experiment.schedule.drop_at) == (36, (30 / 36,))
    assert (experiment.data.batch_size, experiment.optimizer.lr) == (32, 2e-4)
    assert (experiment.model.encoder_layers, experiment.model.decoder_layers) == (3, 1)
    assert (experiment.model.initial_queries, experiment.model.num_queries) == (300, 100)
    assert experiment.model.decrease_images == 36 * 118_287
    assert preset("efficient-detr-r101-6enc").model.encoder_layers == 6
