"""Properties of every detector of the family, checked on a small copy of every preset."""

import re
from dataclasses import replace
from pathlib import Path

import torch
from shrunk import (
    BOXES,
    EVERY,
    EVERY_TRANSFORMER,
    LEARNED,
    SHRUNK,
    TARGETS,
    TINY,
    batch,
    changed,
    is_learned,
    losses,
    patterns,
    proposal_labels,
    randomized,
    shallow,
    shrunk,
)
from torch import Tensor

from detrs import ops
from detrs.checkpoints import format
from detrs.classification import Classification, class_logits
from detrs.config.conditional_detr import ConditionalDETRConfig
from detrs.config.dab_deformable_detr import DABDeformableDETRConfig
from detrs.config.dab_detr import DABDETRConfig
from detrs.config.dino import DINOConfig
from detrs.criterion.set_criterion import CriterionConfig, SetCriterion
from detrs.models import ModelConfig, build
from detrs.models.detr import DETRConfig
from detrs.presets import preset
from detrs.structures import Prediction, Predictions, Queries, Totals

STEPS = 1000
"""Limit of ``test_overfits_one_image``."""


def test_every_variant_is_here() -> None:
    assert set(SHRUNK.values()) >= {
        "deformable-detr-tiny",
        "deformable-detr-small",
        "deformable-detr-r50-single-scale",
        "deformable-detr-r50-single-scale-dc5",
        "deformable-detr-r50",
        "deformable-detr-r50-refine",
        "deformable-detr-r50-two-stage",
        "deformable-detr-r50-single-scale-k1",
        "deformable-detr-r50-own-level-k1",
        "deformable-detr-r50-own-level",
        "deformable-detr-r50-fpn",
        "deformable-detr-r50-bifpn",
        "detr-tiny",
        "detr-r50",
        "detr-r50-dc5",
        "detr-r50-dc5-plus",
        "conditional-detr-tiny",
        "conditional-detr-r50",
        "conditional-detr-r50-dc5",
        "anchor-detr-tiny",
        "anchor-detr-r50",
        "anchor-detr-r50-dc5",
        "efficient-detr-tiny",
        "efficient-detr-r50",
        "sparse-rcnn-tiny",
        "sparse-rcnn-r50-100",
    }


def is_idle_by_design(name: str, rows: int, config: ModelConfig) -> bool:
    """Parameters, with this number of rows, whose gradient is zero up to rounding.

    A key's bias adds the same number to all logits of a softmax. The softmax of a single logit per head (one sampling
    point on one level) is 1. With contents that start equal (DETR, Conditional DETR, DAB-DETR), all values of the first
    self-attention are equal, so its output does not depend on its attention weights; if they are zero, neither does the
    gradient of what they are multiplied by.
    """
    if re.search(r"\.key_(\w+_)?proj\.bias$", name):
        return True
    if ".attention_weights." in name and rows == config.num_heads:
        return True
    starts_equal = isinstance(config, DETRConfig | ConditionalDETRConfig | DABDETRConfig)
    first = re.match(r"decoder\.layers\.0\.(layer\.)?self_attention\.", name)
    learns = name.endswith("value_proj.bias") or (getattr(config, "content", "zero") != "zero" and "value_proj" in name)
    return starts_equal and first is not None and "output_proj" not in name and not learns


@EVERY
def test_every_parameter_learns(config: ModelConfig) -> None:
    """Except those whose gradient is zero by design; without dropout, which adds noise to their gradients."""
    detector = randomized(replace(config, dropout=0.0)).train()
    losses(config, detector(*batch()), TARGETS).total.backward()
    learning = {name: p.grad for name, p in detector.named_parameters() if p.requires_grad}
    assert [name for name, grad in learning.items() if grad is None or not grad.isfinite().all()] == []
    excused = {name for name, grad in learning.items() if is_idle_by_design(name, len(grad), config)}
    assert {name for name, grad in learning.items() if grad.abs().max() == 0} <= excused
    rounding = 1e-6 * max(grad.abs().max().item() for grad in learning.values())
    assert all(learning[name].abs().max() <= rounding for name in excused)


READS_PADDING = (("attention", "decoupled"), ("padding", "included"))
"""Settings with which layers read padding, as in the authors' code: means over rows and columns (Anchor DETR), RoIs
(Sparse R-CNN)."""


def reads_padding(config: ModelConfig) -> bool:
    """Whether the content of the padding has an influence, by design of the authors."""
    return any(getattr(config, name, None) == value for name, value in READS_PADDING)


@EVERY
@torch.no_grad()
def test_content_of_the_padding_has_no_influence(config: ModelConfig) -> None:
    """From the neck's output on; the convolutions before it depend on the padding.

    The exceptions are the settings ``READS_PADDING``: predictions change for the padded image only.
    """
    detector = randomized(config).eval()
    images, padding = batch()
    pyramid = detector.neck(detector.backbone(images), padding)
    # random tokens: with random weights and untrained normalization, all cells can be equal
    pyramid, noise = pyramid.with_tokens(torch.randn_like(pyramid.tokens)), 1e3 * torch.randn_like(pyramid.tokens)
    disturbed = pyramid.with_tokens(torch.where(pyramid.padding[..., None], noise, pyramid.tokens))
    results = []
    for tokens in (disturbed, pyramid):
        memory = detector.encoder(tokens)
        queries, proposals = detector.queries(memory)
        results.append((detector.decoder(queries, memory)[0], proposals))
    (layers, proposals), (expected_layers, expected_proposals) = results
    if reads_padding(config):
        for mine, other in zip(layers, expected_layers, strict=True):
            torch.testing.assert_close((mine.logits[0], mine.boxes[0]), (other.logits[0], other.boxes[0]))
            assert (mine.logits[1] - other.logits[1]).abs().max() > 1e-3
        return
    torch.testing.assert_close(layers, expected_layers, atol=3e-6, rtol=0)
    assert (proposals is None) == is_learned(config)
    if proposals is not None:
        chosen = proposals.boxes.shape[1] < pyramid.padding.shape[1]  # DINO returns no others
        valid = torch.ones(proposals.boxes.shape[:2], dtype=torch.bool) if chosen else ~pyramid.padding
        for mine, other in zip(proposals, expected_proposals, strict=True):
            torch.testing.assert_close(mine[valid], other[valid], atol=3e-6, rtol=0)


@EVERY
@torch.no_grad()
def test_a_batch_equals_its_images_one_by_one(config: ModelConfig) -> None:
    detector = randomized(config).eval()
    images, padding = torch.randn(3, 3, 97, 131), torch.zeros(3, 97, 131, dtype=torch.bool)
    together = detector(images, padding).last
    for i in range(3):
        alone = detector(images[i : i + 1], padding[i : i + 1]).last
        torch.testing.assert_close(alone.logits[0], together.logits[i], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.boxes[0], together.boxes[i], atol=1e-5, rtol=1e-4)


@LEARNED
@torch.no_grad()
def test_shuffled_queries_give_shuffled_boxes(config: ModelConfig) -> None:
    detector = randomized(config).eval()
    queries = detector.queries
    before, embedding = detector(*batch()).last, getattr(queries, "anchors", getattr(queries, "embedding", None)).weight
    order = torch.randperm(len(embedding))  # a grid can have fewer points than num_queries / num_patterns
    embedding.copy_(embedding[order].clone())
    if isinstance(config, DABDeformableDETRConfig):
        queries.content.embedding.weight.copy_(queries.content.embedding.weight[order].clone())
    order = torch.cat([order + len(order) * pattern for pattern in range(patterns(config))])
    after = detector(*batch()).last
    torch.testing.assert_close(after.boxes, before.boxes[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.logits, before.logits[:, order], atol=1e-5, rtol=1e-4)


@EVERY
def test_images_without_objects_contribute_to_the_loss(config: ModelConfig) -> None:
    detector = randomized(config).train()
    nothing = (TARGETS[1], TARGETS[1])
    found = losses(config, detector(*batch()), nothing)
    found.total.backward()
    assert all(value == 0 for name, value in found.terms.items() if not name.startswith("class"))
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)
    gradient = detector.decoder.heads[-1].classes.bias.grad
    assert gradient[:5].min() > 0  # a step lowers all scores
    assert (gradient[5:] < 0).all()  # and raises "no object", where there is such a row


@EVERY
@torch.no_grad()
def test_order_of_targets_does_not_matter(config: ModelConfig) -> None:
    predictions = randomized(config).eval()(*batch())
    turned = (TARGETS[0]._replace(boxes=BOXES.flip(0), labels=TARGETS[0].labels.flip(0)), TARGETS[1])
    torch.testing.assert_close(losses(config, predictions, turned).total, losses(config, predictions, TARGETS).total)


@EVERY
@torch.no_grad()
def test_a_saved_detector_predicts_the_same(config: ModelConfig, tmp_path: Path) -> None:
    detector, other = randomized(config, seed=0).eval(), randomized(config, seed=1).eval()
    format.save(tmp_path / "detector.safetensors", detector.state_dict(), {})
    other.load_state_dict(format.load(tmp_path / "detector.safetensors").tensors)
    expected, loaded = detector(*batch()), other(*batch())
    for mine, theirs in zip(loaded.layers, expected.layers, strict=True):
        assert torch.equal(mine.logits, theirs.logits) and torch.equal(mine.boxes, theirs.boxes)


@EVERY
@torch.no_grad()
def test_dropout_applies_in_training_only(config: ModelConfig) -> None:
    detector = randomized(replace(config, dropout=0.9, backbone=replace(config.backbone, norm="frozen")))
    inputs = batch()
    evaluated, again = detector.eval()(*inputs).last.boxes, detector(*inputs).last.boxes
    assert torch.equal(evaluated, again)
    count = evaluated.shape[1]  # there can be more queries in training
    trained, again = (detector.train()(*inputs).last.boxes[:, :count] for _ in range(2))
    assert (trained - evaluated).abs().max() > 1e-3 and (trained - again).abs().max() > 1e-3


@EVERY
@torch.no_grad()
def test_coordinates_and_scores_are_exact_under_autocast(config: ModelConfig) -> None:
    """Given the same queries: the choice of proposals can change with the last bits of bfloat16.

    Boxes that can be larger than the image (Sparse R-CNN) have their references replayed, too, since the level from
    which a box is pooled can change with the last bits; offsets are relative to the size of the reference.
    """
    detector = randomized(config).eval()
    images, padding = batch()
    next_reference, references = detector.decoder.next_reference, list[Tensor]()

    def record(queries: Queries, boxes: Tensor) -> Queries:
        queries = next_reference(queries, boxes)
        references.append(queries.reference)
        return queries

    def replay(queries: Queries, boxes: Tensor) -> Queries:
        return queries.with_reference(references.pop(0))

    def predict() -> tuple[Predictions, Tensor]:
        memory = detector.encoder(detector.neck(detector.backbone(images), padding))
        queries, proposals = detector.queries(memory)
        found.append(queries)
        return Predictions(detector.decoder(found[0], memory)[0], proposals), queries.reference

    found: list[Queries] = []
    with ops.use("reference"):  # compiling a kernel for another dtype takes too long
        detector.decoder.next_reference = record
        expected, _ = predict()
        largest = torch.stack([layer.boxes[..., 2:] for layer in expected.layers]).amax((0, -1)).clamp(min=1)
        detector.decoder.next_reference = replay if largest.max() > 1 else next_reference
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half, reference = predict()
    assert reference.dtype == torch.float32
    groups = [(mine, exact, largest[..., None]) for mine, exact in zip(half.layers, expected.layers, strict=True)]
    of_every_token = half.proposals is not None and not isinstance(config, DINOConfig)
    groups += [] if not of_every_token else [(half.proposals, expected.proposals, torch.ones(()))]
    for mine, exact, size in groups:
        assert mine.logits.dtype == mine.boxes.dtype == torch.float32
        assert ((mine.boxes - exact.boxes).abs() <= 0.02 * (3 * size - 2)).all()
        torch.testing.assert_close(mine.logits, exact.logits, atol=0.1, rtol=0)


@EVERY_TRANSFORMER
@torch.no_grad()
def test_attention_mask_separates_groups_of_queries(config: ModelConfig) -> None:
    """The predictions of one group do not depend on the queries of another; without a mask they do."""
    detector = shallow(config)
    images, padding = batch()
    memory = detector.encoder(detector.neck(detector.backbone(images), padding))
    queries, _ = detector.queries(memory)
    count = queries.content.shape[1]
    first = torch.arange(count) < count // 3
    noise = torch.randn_like(queries.content).masked_fill(first[:, None], 0.0)

    def change(mask: Tensor | None) -> Tensor:
        masked = replace(queries, attention_mask=mask)
        before, _ = detector.decoder(masked, memory)
        after, _ = detector.decoder(masked.with_content(queries.content + noise), memory)
        return (after[-1].logits - before[-1].logits).abs().amax((0, 2))

    separated = change(first[:, None] == first)
    assert separated[first].max() == 0 and separated[~first].min() > 1e-3
    assert change(None)[first].min() > 1e-4


@TINY
def test_overfits_one_image(name: str) -> None:
    """With the preset's kind of classification and the papers' weights of the loss, within STEPS steps.

    Matching makes this training chaotic: after a fixed number of steps the result depends on rounding, and so on the
    processor. The number of steps until all objects are detected is between 40 and 240 for 8 seeds; the limit leaves
    a factor of four. The learning rate is constant, since a decay would end training at a fixed step.

    Queries of one pattern (Anchor DETR) are almost equal at first and diverge slowly: their position embeddings are
    scaled here to a standard deviation of about 1, as DETR's.
    """
    torch.manual_seed(0)
    experiment = preset(name)
    classification = type(experiment.model.classification)()
    config = changed(shrunk(name), decoder_layers=2, encoder_layers=1, classification=classification)
    detector = build(config).train()
    with torch.no_grad():
        for parameter_name, parameter in detector.named_parameters():
            if parameter_name.endswith("adapt.2.weight"):
                parameter.mul_(6)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    image, padding = torch.randn(1, 3, 67, 97), torch.zeros(1, 67, 97, dtype=torch.bool)
    criterion = SetCriterion(CriterionConfig(), classification, proposal_labels(config))
    for step in range(STEPS):
        optimizer.zero_grad()
        criterion(detector(image, padding), TARGETS[:1], Totals.of(TARGETS[:1])).total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 0.1)
        optimizer.step()
        if step % 20 == 19:
            with torch.no_grad():
                prediction = detector.eval()(image, padding).last
            if finds_every_object(prediction, classification):
                return
            detector.train()
    raise AssertionError(f"not all objects are detected after {STEPS} steps")


def finds_every_object(prediction: Prediction, classification: Classification) -> bool:
    """Whether the best three detections are the objects of ``TARGETS[0]``: score, label and box."""
    best = class_logits(classification).best(prediction.logits, 3)
    boxes, order = prediction.boxes[0, best.queries[0]], []
    for label, box in zip(TARGETS[0].labels, BOXES, strict=True):
        near = (boxes - box).abs().amax(-1).masked_fill(best.labels[0] != label, torch.inf)
        if near.min() >= 0.05:
            return False
        order.append(near.argmin().item())
    return sorted(order) == [0, 1, 2] and best.scores.min().item() > 0.4
