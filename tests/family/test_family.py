"""What every detector of the family must have, checked on a small copy of every preset. As a script: traces each."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detrs import ops
from detrs.backbones.timm import BackboneConfig
from detrs.checkpoints import format
from detrs.classification import classification_of
from detrs.criterion.set_criterion import CriterionConfig, Losses, SetCriterion, Totals
from detrs.models import ModelConfig, build
from detrs.models.conditional_detr import ConditionalDETRConfig
from detrs.models.detector import Detector
from detrs.models.detr import DETRConfig
from detrs.presets import PRESETS, preset
from detrs.structures import Predictions, Target

QUERIES = 11
STEPS = 120


def shrunk(name: str) -> ModelConfig:
    """The model of a preset with all of its choices and as little width and depth as shows them."""
    model = preset(name).model
    return replace(
        model,
        num_classes=5,
        backbone=replace(model.backbone, name="test_resnet", weights="none"),
        dim=64,
        num_heads=2,
        encoder_layers=2,
        decoder_layers=3,
        ffn_dim=96,
        num_queries=QUERIES * patterns(model),
    )


def patterns(config: ModelConfig) -> int:
    """Queries that begin at the same place (Anchor DETR); 1 where each has its own."""
    return getattr(config, "num_patterns", 1)


SHRUNK = {shrunk(name): name for name in reversed(PRESETS)}  # without those that shrink to one and the same
SHRUNK |= {  # variants that are in no preset
    replace(shrunk("anchor-detr-r50"), attention="global", anchors="grid"): "anchor-detr-r50-global-grid",
    replace(shrunk("anchor-detr-r50"), attention="decoupled-masked"): "anchor-detr-r50-masked",
}
EVERY = pytest.mark.parametrize("config", [pytest.param(config, id=name) for config, name in SHRUNK.items()])
TRANSFORMERS = {  # one of those that differ in their backbone alone
    replace(config, backbone=BackboneConfig(name="test_resnet", stages=config.backbone.stages), dropout=0.0): name
    for config, name in SHRUNK.items()
}
EVERY_TRANSFORMER = pytest.mark.parametrize(
    "config", [pytest.param(config, id=name) for config, name in TRANSFORMERS.items()]
)
TINY = pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-tiny")])


def is_learned(config: ModelConfig) -> bool:
    """Whether queries are parameters, not proposals of the encoder."""
    return getattr(config, "queries", "learned") == "learned"


LEARNED = pytest.mark.parametrize(
    "config", [pytest.param(config, id=name) for config, name in SHRUNK.items() if is_learned(config)]
)
BOXES = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.5, 0.2], [0.5, 0.7, 0.1, 0.2]])
TARGETS = (
    Target(BOXES, torch.tensor([4, 1, 1]), 1, (97, 131)),
    Target(BOXES[:0], torch.zeros(0, dtype=torch.long), 2, (67, 101)),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Detectors this small lose more by dividing work than they gain, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def randomized(config: ModelConfig, seed: int = 0) -> Detector:
    """A detector without the zeros of a fresh one, which hide mistakes."""
    torch.manual_seed(seed)
    detector = build(config)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for buffer in detector.buffers():  # timm starts the last norm of a residual branch at zero
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return detector


def batch() -> tuple[Tensor, Tensor]:
    """An image of 97 x 131, and one of 67 x 101 padded to it."""
    generator = torch.Generator().manual_seed(1)
    images, padding = torch.randn(2, 3, 97, 131, generator=generator), torch.zeros(2, 97, 131, dtype=torch.bool)
    padding[1, 67:] = True
    padding[1, :, 101:] = True
    return images.masked_fill(padding[:, None], 0.0), padding


def losses(config: ModelConfig, predictions: Predictions, targets: tuple[Target, ...]) -> Losses:
    return SetCriterion(CriterionConfig(), config.classification)(predictions, targets, Totals.of(targets))


def test_every_variant_is_here() -> None:
    assert set(SHRUNK.values()) >= {
        "deformable-detr-tiny",
        "deformable-detr-small",
        "deformable-detr-r50-single-scale",
        "deformable-detr-r50-single-scale-dc5",
        "deformable-detr-r50",
        "deformable-detr-r50-refine",
        "deformable-detr-r50-two-stage",
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
    }


def is_idle_by_design(name: str, config: ModelConfig) -> bool:
    """Parameters that nothing depends on, but for rounding.

    A key's bias adds the same to all logits of a softmax. Contents that start at zero (DETR, Conditional DETR) have
    nothing to multiply in the first layer's self-attention, whose values are then all the same, wherever it looks.
    """
    if re.search(r"\.key_(\w+_)?proj\.bias$", name):
        return True
    starts_empty = isinstance(config, DETRConfig | ConditionalDETRConfig)
    first = name.startswith("decoder.layers.0.self_attention.")
    return starts_empty and first and "output_proj" not in name and not name.endswith("value_proj.bias")


@EVERY
def test_every_parameter_learns(config: ModelConfig) -> None:
    """But for those that cannot; without dropout, which makes noise where nothing is to be learned."""
    detector = randomized(replace(config, dropout=0.0)).train()
    losses(config, detector(*batch()), TARGETS).total.backward()
    learning = {name: p.grad for name, p in detector.named_parameters() if p.requires_grad}
    assert [name for name, grad in learning.items() if grad is None or not grad.isfinite().all()] == []
    excused = {name for name in learning if is_idle_by_design(name, config)}
    assert {name for name, grad in learning.items() if grad.abs().max() == 0} <= excused
    rounding = 1e-6 * max(grad.abs().max().item() for grad in learning.values())
    assert all(learning[name].abs().max() <= rounding for name in excused)


def averages_padding(config: ModelConfig) -> bool:
    """Whether keys are means of lines with the padding among them: Anchor DETR as its authors have it."""
    return getattr(config, "attention", "") == "decoupled"


@EVERY
@torch.no_grad()
def test_content_of_the_padding_has_no_influence(config: ModelConfig) -> None:
    """The maps below the neck's convolutions see the padding; from the neck on nothing may.

    But in Anchor DETR, a documented deviation: there it has, on the padded image alone.
    """
    detector = randomized(config).eval()
    images, padding = batch()
    pyramid = detector.neck(detector.backbone(images), padding)
    # random tokens: of random weights and an untrained normalisation, cells can come out all the same
    pyramid, noise = pyramid.with_tokens(torch.randn_like(pyramid.tokens)), 1e3 * torch.randn_like(pyramid.tokens)
    disturbed = pyramid.with_tokens(torch.where(pyramid.padding[..., None], noise, pyramid.tokens))
    results = []
    for tokens in (disturbed, pyramid):
        memory = detector.encoder(tokens)
        queries, proposals = detector.queries(memory)
        results.append((detector.decoder(queries, memory), proposals))
    (layers, proposals), (expected_layers, expected_proposals) = results
    if averages_padding(config):
        for mine, other in zip(layers, expected_layers, strict=True):
            torch.testing.assert_close((mine.logits[0], mine.boxes[0]), (other.logits[0], other.boxes[0]))
            assert (mine.logits[1] - other.logits[1]).abs().max() > 1e-3
        return
    torch.testing.assert_close(layers, expected_layers, atol=3e-6, rtol=0)
    assert (proposals is None) == is_learned(config)
    if proposals is not None:
        valid = ~pyramid.padding
        for mine, other in zip(proposals, expected_proposals, strict=True):
            torch.testing.assert_close(mine[valid], other[valid], atol=3e-6, rtol=0)


@EVERY
@torch.no_grad()
def test_a_batch_is_its_images_one_by_one(config: ModelConfig) -> None:
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
    before, embedding = detector(*batch()).last, detector.queries.embedding.weight
    order = torch.randperm(len(embedding))  # a grid has fewer than it was asked for
    embedding.copy_(embedding[order].clone())
    order = torch.cat([order + len(order) * pattern for pattern in range(patterns(config))])
    after = detector(*batch()).last
    torch.testing.assert_close(after.boxes, before.boxes[:, order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.logits, before.logits[:, order], atol=1e-5, rtol=1e-4)


@EVERY
def test_images_without_objects_teach_too(config: ModelConfig) -> None:
    detector = randomized(config).train()
    nothing = (TARGETS[1], TARGETS[1])
    found = losses(config, detector(*batch()), nothing)
    found.total.backward()
    assert all(value == 0 for name, value in found.terms.items() if not name.startswith("class"))
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)
    pushed = detector.decoder.heads[-1].classes.bias.grad
    assert pushed[:5].min() > 0  # all scores are pushed down
    assert (pushed[5:] < 0).all()  # "no object", where there is such a row, is pulled up


@EVERY
@torch.no_grad()
def test_order_of_targets_does_not_matter(config: ModelConfig) -> None:
    predictions = randomized(config).eval()(*batch())
    turned = (TARGETS[0]._replace(boxes=BOXES.flip(0), labels=TARGETS[0].labels.flip(0)), TARGETS[1])
    torch.testing.assert_close(losses(config, predictions, turned).total, losses(config, predictions, TARGETS).total)


@EVERY
@torch.no_grad()
def test_a_saved_detector_says_the_same(config: ModelConfig, tmp_path: Path) -> None:
    detector, other = randomized(config, seed=0).eval(), randomized(config, seed=1).eval()
    format.save(tmp_path / "detector.safetensors", detector.state_dict(), {})
    other.load_state_dict(format.load(tmp_path / "detector.safetensors").tensors)
    expected, loaded = detector(*batch()), other(*batch())
    for mine, theirs in zip(loaded.layers, expected.layers, strict=True):
        assert torch.equal(mine.logits, theirs.logits) and torch.equal(mine.boxes, theirs.boxes)


@EVERY
@torch.no_grad()
def test_dropout_is_for_training_alone(config: ModelConfig) -> None:
    detector = randomized(replace(config, dropout=0.9, backbone=replace(config.backbone, norm="frozen")))
    inputs = batch()
    evaluated, again = detector.eval()(*inputs).last.boxes, detector(*inputs).last.boxes
    assert torch.equal(evaluated, again)
    trained, again = detector.train()(*inputs).last.boxes, detector(*inputs).last.boxes
    assert (trained - evaluated).abs().max() > 1e-3 and (trained - again).abs().max() > 1e-3


@EVERY
@torch.no_grad()
def test_coordinates_and_scores_are_exact_under_autocast(config: ModelConfig) -> None:
    """Given the same queries: which proposals are the best of all may change in the last bits of bfloat16."""
    detector = randomized(config).eval()
    images, padding = batch()

    def said() -> tuple[Predictions, Tensor]:
        memory = detector.encoder(detector.neck(detector.backbone(images), padding))
        queries, proposals = detector.queries(memory)
        given.append(queries)
        return Predictions(detector.decoder(given[0], memory), proposals), queries.reference

    given: list = []
    with ops.use("reference"):  # no time to compile a kernel of another type
        expected, _ = said()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half, reference = said()
    assert reference.dtype == torch.float32
    groups = [*zip(half.layers, expected.layers, strict=True)]
    groups += [] if half.proposals is None else [(half.proposals, expected.proposals)]
    for mine, exact in groups:
        assert mine.logits.dtype == mine.boxes.dtype == torch.float32
        torch.testing.assert_close(mine.boxes, exact.boxes, atol=0.02, rtol=0)
        torch.testing.assert_close(mine.logits, exact.logits, atol=0.1, rtol=0)


def shallow(config: ModelConfig) -> Detector:
    """Deep enough for a first and a later layer."""
    return randomized(replace(config, encoder_layers=1, decoder_layers=2)).eval()


@pytest.fixture(scope="session")
def traced(once: Callable[[str, Callable[[Path], object]], Path]) -> dict[str, str]:
    """The output of ``trace`` for each preset, from another process: a tracer cannot trace the type checks of tests."""

    def run(folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (folder / "traced.json").write_text(done.stdout)

    found: dict[str, str] = json.loads((once("traced", run) / "traced.json").read_text())
    return found


@torch.no_grad()
def trace(config: ModelConfig) -> str:
    """``same``, or what went wrong."""
    detector, inputs = shallow(config), batch()
    expected = detector(*inputs)
    torch.compiler.reset()
    try:
        found = torch.compile(detector, fullgraph=True, backend="eager")(*inputs)
        torch.testing.assert_close(found.layers, expected.layers)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "same"


@pytest.mark.parametrize("name", TRANSFORMERS.values())
def test_it_is_traced_whole_and_says_the_same(name: str, traced: dict[str, str]) -> None:
    """No graph break: a compiler sees all of it at once."""
    assert traced[name] == "same"


@EVERY_TRANSFORMER
@torch.no_grad()
def test_an_exported_program_says_the_same(config: ModelConfig) -> None:
    detector, inputs = shallow(config), batch()
    with ops.use("reference"):
        expected = detector(*inputs)
        found = torch.export.export(detector, inputs, strict=False).module()(*inputs)
    torch.testing.assert_close(found.layers, expected.layers)


@TINY
def test_one_image_is_learned_by_heart(name: str) -> None:
    """In a few steps, with the preset's own classification and the papers' weights of the loss.

    Queries of one pattern (Anchor DETR) begin almost alike, and take long to part: places start louder here, with a
    deviation of about 1 as DETR's, and there are more steps.
    """
    torch.manual_seed(0)
    experiment = preset(name)
    detector = build(replace(shrunk(name), decoder_layers=2, encoder_layers=1)).train()
    steps = STEPS * patterns(experiment.model)
    with torch.no_grad():
        for parameter_name, parameter in detector.named_parameters():
            if parameter_name.endswith("adapt.2.weight"):
                parameter.mul_(6)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)
    image, padding = torch.randn(1, 3, 67, 97), torch.zeros(1, 67, 97, dtype=torch.bool)
    criterion = SetCriterion(CriterionConfig(), experiment.model.classification)
    for _ in range(steps):
        optimizer.zero_grad()
        criterion(detector(image, padding), TARGETS[:1], Totals.of(TARGETS[:1])).total.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 0.1)
        optimizer.step()
        schedule.step()
    part = classification_of(experiment.model.classification)
    prediction = detector.eval()(image, padding).last
    best = part.best(prediction.logits, 3)
    assert best.scores.min() > 0.4
    boxes, order = prediction.boxes[0, best.queries[0]], []
    for label, box in zip(TARGETS[0].labels, BOXES, strict=True):
        near = (boxes - box).abs().amax(-1).masked_fill(best.labels[0] != label, torch.inf)
        order.append(near.argmin().item())
        assert near.min() < 0.05
    assert sorted(order) == [0, 1, 2]


if __name__ == "__main__":
    with ops.use("reference"):
        print(json.dumps({name: trace(config) for config, name in TRANSFORMERS.items()}))
