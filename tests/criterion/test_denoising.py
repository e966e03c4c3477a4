"""Denoising: slots, what they attend to, and what they cannot change. tests/parity has numbers of the authors' code."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from detrs.config import validate
from detrs.config.criterion import ContrastiveDenoising, CriterionConfig, Denoising, GroupDenoising
from detrs.criterion.denoising import Denoiser, contrasting_boxes, noised_labels, shifted_boxes
from detrs.criterion.training_objective import TrainingObjective
from detrs.errors import UserError
from detrs.models import build
from detrs.presets import preset
from detrs.structures import Batch, Queries, Target, Totals

SIZE = 64, 96
BOXES = torch.tensor([[0.3, 0.4, 0.25, 0.3], [0.7, 0.55, 0.4, 0.5], [0.15, 0.8, 0.1, 0.12]])
FROM_BOXES = [
    "dino-tiny",
    "dab-detr-tiny",
    "dn-deformable-detr-tiny",
    "dn-detr-tiny",
    "deformable-detr-tiny",
    "efficient-detr-tiny",
    "dynamic-detr-tiny",
    "sparse-rcnn-tiny",
]
BOTH = pytest.mark.parametrize("config", [ContrastiveDenoising(pairs=6), GroupDenoising(groups=2)])


def no_content(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (boxes.new_zeros(*boxes.shape[:2], 8),) * 2


def target(count: int, number: int = 0) -> Target:
    return Target(BOXES[:count], torch.tensor([2, 5, 0])[:count], number, SIZE)


def anchored(images: int, dim: int = 8) -> Queries:
    return Queries(torch.randn(images, 5, dim), torch.zeros(images, 5, dim), torch.rand(images, 5, 4))


def objective(config: Denoising, name: str = "dino-tiny", **model: Any) -> TrainingObjective:
    torch.manual_seed(0)
    experiment = preset(name)
    detector = build(replace(experiment.model, num_classes=7, dropout=0.0, **model)).train()
    found = detector.objective(CriterionConfig(denoising=config))
    found = found.losses if name == "efficient-detr-tiny" else found  # it counts images, too
    assert isinstance(found, TrainingObjective)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return found


def batch(*targets: Target) -> Batch:
    images = torch.randn(len(targets), 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.zeros(len(targets), *SIZE, dtype=torch.bool), targets)


def test_noise_of_boxes() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.4]).expand(2, 5000, 4)
    shifted = (shifted_boxes(boxes, 0.4, torch.rand) - boxes) / boxes[..., 2:].repeat(1, 1, 2)
    assert (shifted[..., :2].abs() <= 0.2 + 1e-6).all() and shifted[..., :2].abs().max() > 0.19
    assert (shifted[..., 2:].abs() <= 0.4 + 1e-6).all() and shifted[..., 2:].abs().max() > 0.39
    low = boxes[..., :2] - boxes[..., 2:] / 2
    found = contrasting_boxes(boxes, 1.0, torch.rand)
    moved = ((found[..., :2] - found[..., 2:] / 2) - low).abs() / boxes[..., 2:]
    assert moved[0].max() <= 0.5 + 1e-5 and (found[0, :, 2:] >= -1e-6).all()
    assert moved[1].min() >= 0.5 - 1e-5 and moved[1].max() <= 1 + 1e-5
    assert (found[1, :, 2:] < 0).any()


def test_noise_of_labels() -> None:
    torch.manual_seed(0)
    labels = torch.full((2, 20_000), 3)
    found = noised_labels(labels, 10, 0.5, torch.rand)
    assert (found == 3).float().mean().item() == pytest.approx(0.5 + 0.05, abs=0.01)
    assert sorted(found.unique().tolist()) == list(range(10)) and torch.equal(labels, torch.full_like(labels, 3))


@BOTH
@pytest.mark.parametrize("hide", [False, True])
def test_who_attends_to_whom(config: Any, hide: bool) -> None:
    denoiser = Denoiser(replace(config, hide_padding=hide), 7, 8, no_content)
    queries, answers = denoiser((target(3), target(0, 1), target(1, 2)), anchored(3))
    slots, mask = answers.slots, queries.attention_mask
    assert mask is not None and mask.shape[-1] == slots + 5
    mask = mask.expand(3, 1, -1, -1)[:, 0]
    assert not mask[:, slots:, :slots].any(), "matched queries must not attend to slots"
    assert mask[:, :, slots:].all(), "every query attends to the matched ones"
    group = torch.arange(slots) // (slots // 2)  # of two groups
    same = group[:, None] == group
    assert not mask[:, :slots, :slots][:, ~same].any()
    used = (queries.content[:, :slots] != 0).any(-1)
    expected = same & used[:, None] if hide else same.expand(3, -1, -1)
    assert torch.equal(mask[:, :slots, :slots], expected)


@BOTH
def test_at_most_some_objects_are_denoised(config: Any) -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(replace(config, max_objects=1), 7, 8, no_content)
    seen = set()
    for _ in range(20):
        _, answers = denoiser((target(3), target(1)), anchored(2))
        assert answers.slots in (2, 12)
        seen |= set(answers.target[answers.image[answers.row] == 0].tolist())
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("name", FROM_BOXES)
@BOTH
def test_matched_predictions_do_not_depend_on_targets(config: Any, name: str) -> None:
    """Denoising leaks no answers: other boxes, other labels and other numbers of objects change nothing."""
    trained, found = objective(config, name), []
    decoder, count = trained.detector.decoder, preset(name).model.num_queries  # type: ignore[attr-defined,union-attr]
    forward = decoder.forward

    def record(*arguments: Any) -> Any:
        result = forward(*arguments)
        found.append([layer.boxes[:, -count:] for layer in result[0]])
        return result

    decoder.forward = record
    moved = Target(1 - BOXES[:2], torch.tensor([1, 1]), 0, SIZE)
    with torch.no_grad():
        for objects in (target(3), moved, target(0)):
            trained(batch(objects), Totals(1, 3))
    for other in found[1:]:
        for first, second in zip(found[0], other, strict=True):
            torch.testing.assert_close(first, second, atol=1e-5, rtol=2e-4)


@BOTH
def test_with_hidden_padding_losses_do_not_depend_on_other_images(config: Any) -> None:
    """With the same noise and groups: those of a batch are the sum of those of its images."""
    trained = objective(replace(config, hide_padding=True, label_noise=0.0, box_noise=0.0)).eval()
    if isinstance(config, ContrastiveDenoising):
        trained.denoiser.config = replace(config, pairs=1, hide_padding=True, label_noise=0.0, box_noise=0.0)
    whole = batch(target(3), target(1, 1))
    parts = [Batch(whole.images[i : i + 1], whole.padding[i : i + 1], whole.targets[i : i + 1]) for i in range(2)]
    totals = Totals(2, 4)
    with torch.no_grad():
        together = trained(whole, totals).terms
        alone = [trained(part, totals).terms for part in parts]
    for name, value in together.items():
        assert value.item() == pytest.approx(sum(each[name].item() for each in alone), rel=1e-4, abs=1e-5), name


@BOTH
@pytest.mark.parametrize("name", FROM_BOXES)
def test_every_parameter_has_a_gradient_without_objects(config: Any, name: str) -> None:
    trained = objective(config, name)
    losses = trained(batch(target(0)), Totals(1, 0))
    losses.total.backward()
    missing = [name for name, p in trained.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    some = objective(config, name)(batch(target(2)), Totals(1, 2)).terms
    assert list(some) == list(losses.terms)  # processes reduce terms by their position


def test_the_detector_does_not_contain_the_embeddings_of_labels() -> None:
    trained = objective(ContrastiveDenoising())
    names = trained.detector.state_dict()  # type: ignore[attr-defined]
    assert not any("denoiser" in name or "labels" in name for name in names)
    assert [name for name, _ in trained.training_parts.named_parameters()] == ["labels.weight"]


def test_only_detectors_whose_queries_are_boxes() -> None:
    experiment = preset("detr-tiny")
    with pytest.raises(UserError, match=r"criterion\.denoising"):
        validate(replace(experiment, criterion=CriterionConfig(denoising=GroupDenoising())))
