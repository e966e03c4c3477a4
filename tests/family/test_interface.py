"""Properties of every model of the family, also of those that are no pipeline of encoder and decoder.

Checked with ``objective`` and ``detect`` only, on one small model of each class.
"""

from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from shrunk import (
    ONE_OF_EACH,
    PIPELINES,
    TARGETS,
    TINY_MODELS,
    batch,
    changed,
    exported_for_any_size,
    randomized,
    shallow,
    shrunk,
)
from torch import Tensor, nn

from detrs import ops
from detrs.checkpoints import format
from detrs.criterion.set_criterion import CriterionConfig
from detrs.models import ModelConfig, build
from detrs.structures import Batch, Boxes, Totals

DETECTIONS = 7
STEPS = 600
"""Limit of ``test_overfits_one_image``."""


def gradients(config: ModelConfig, targets: Any) -> dict[str, Tensor]:
    model = randomized(changed(config, dropout=0.0)).train()
    objective = model.objective(CriterionConfig())
    losses = objective(Batch(*batch(), targets), Totals.of(targets))
    assert losses.total.isfinite() and all(term.isfinite() for term in losses.terms.values())
    losses.total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@ONE_OF_EACH
def test_every_parameter_has_a_finite_gradient(config: ModelConfig) -> None:
    """Most are not zero; ``test_family.py`` lists those that are in each detector of encoder and decoder."""
    found = gradients(config, TARGETS)
    assert [name for name, grad in found.items() if grad is None or not grad.isfinite().all()] == []
    assert sum(grad.abs().max() > 0 for grad in found.values()) > 0.8 * len(found)


@ONE_OF_EACH
def test_images_without_objects_contribute_to_the_loss(config: ModelConfig) -> None:
    found = gradients(config, (TARGETS[1], TARGETS[1]))
    assert all(grad is None or grad.isfinite().all() for grad in found.values())
    assert any(grad is not None and grad.abs().max() > 0 for grad in found.values())


@ONE_OF_EACH
def test_a_batch_equals_its_images_one_by_one(config: ModelConfig) -> None:
    """In float64, whose rounding does not change the order of scores."""
    model = randomized(config).eval().double()
    images, padding = torch.randn(3, 3, 97, 131).double(), torch.zeros(3, 97, 131, dtype=torch.bool)
    with torch.no_grad():
        together = model.detect(images, padding, DETECTIONS)
        for i in range(3):
            alone = model.detect(images[i : i + 1], padding[i : i + 1], DETECTIONS)
            for mine, other in zip(alone, together, strict=True):
                torch.testing.assert_close(mine[0], other[i], atol=1e-6, rtol=1e-6)


@ONE_OF_EACH
@torch.no_grad()
def test_detections_have_a_fixed_size_and_are_sorted(config: ModelConfig) -> None:
    """Boxes of score 0 are the padding of images with fewer detections."""
    found = shallow(config).detect(*batch(), max_detections=DETECTIONS)
    assert found.boxes.shape == (2, DETECTIONS, 4) and found.scores.shape == found.labels.shape == (2, DETECTIONS)
    assert found.labels.dtype == torch.int64 and found.labels.min() >= 0 and found.labels.max() < config.num_classes
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    assert found.scores.min() >= 0 and 0 < found.scores.max() <= 1
    assert found.boxes.isfinite().all()


@ONE_OF_EACH
@torch.no_grad()
def test_layers_of_detections(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last are ``detect``'s; a detection is the box of its query, with the probability of its class."""
    model, (images, padding) = shallow(config), batch()
    predictions = model(images, padding)
    if config in PIPELINES:
        monkeypatch.setattr(model, "forward", lambda *_: predictions)  # it takes most of the time
    layers = model.detect_layers(images, padding, DETECTIONS)
    for mine, other in zip(layers[-1].boxes, model.detect(images, padding, DETECTIONS), strict=True):
        assert torch.equal(mine, other)
    if config not in PIPELINES:
        assert len(layers) == 1 and layers[0].queries is None and layers[0].num_queries is None
        return
    assert len(layers) == len(predictions.layers)
    for (found, queries, num_queries), (logits, boxes) in zip(layers, predictions.layers, strict=True):
        assert queries is not None and num_queries == boxes.shape[1]
        probabilities = logits.softmax(-1) if logits.shape[2] > config.num_classes else logits.sigmoid()
        for i in range(2):
            assert torch.equal(found.boxes[i], boxes[i, queries[i]])
            torch.testing.assert_close(found.scores[i], probabilities[i, queries[i], found.labels[i]])


@ONE_OF_EACH
@torch.no_grad()
def test_a_saved_model_detects_the_same(config: ModelConfig, tmp_path: Path) -> None:
    model, other = randomized(config, seed=0).eval(), randomized(config, seed=1).eval()
    format.save(tmp_path / "model.safetensors", model.state_dict(), {})
    other.load_state_dict(format.load(tmp_path / "model.safetensors").tensors)
    for mine, theirs in zip(other.detect(*batch()), model.detect(*batch()), strict=True):
        assert torch.equal(mine, theirs)


@ONE_OF_EACH
@torch.no_grad()
def test_detections_are_in_full_precision_under_autocast(config: ModelConfig) -> None:
    with ops.use("reference"), torch.autocast("cpu", dtype=torch.bfloat16):
        found = shallow(config).detect(*batch())
    assert found.boxes.dtype == found.scores.dtype == torch.float32


class Detect(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, padding: Tensor) -> Boxes:
        found: Boxes = self.model.detect(images, padding, max_detections=DETECTIONS)
        return found


@pytest.mark.filterwarnings("ignore:.create_unbacked_symint. is deprecated:FutureWarning")  # in torchvision's nms
@ONE_OF_EACH
@torch.no_grad()
def test_detect_is_exported_for_images_of_any_size(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # symbolic sizes are not of type int
    module = Detect(shallow(config))
    with ops.use("reference"):
        exported = exported_for_any_size(module)
        for inputs in (batch(), batch((203, 141), (77, 141)), batch((74, 167), (74, 90))):
            torch.testing.assert_close(exported(*inputs), module(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in TINY_MODELS if shrunk(name) not in PIPELINES])
def test_overfits_one_image(name: str) -> None:
    """Models without encoder and decoder; ``test_family.py`` has the others. Faster R-CNN needs about 100 steps."""
    torch.manual_seed(0)
    model = build(changed(shrunk(name), decoder_layers=2, encoder_layers=1)).train()
    objective = model.objective(CriterionConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    image, padding = torch.randn(1, 3, 67, 97), torch.zeros(1, 67, 97, dtype=torch.bool)
    for step in range(STEPS):
        optimizer.zero_grad()
        objective(Batch(image, padding, TARGETS[:1]), Totals.of(TARGETS[:1])).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        if step % 20 == 19:
            with torch.no_grad():
                found = model.eval().detect(image, padding, max_detections=3)
            if finds_every_object(found):
                return
            model.train()
    raise AssertionError(f"not all objects are detected after {STEPS} steps")


def finds_every_object(found: Boxes) -> bool:
    order = []
    for label, box in zip(TARGETS[0].labels, TARGETS[0].boxes, strict=True):
        near = (found.boxes[0] - box).abs().amax(-1).masked_fill(found.labels[0] != label, torch.inf)
        if near.min() >= 0.05:
            return False
        order.append(near.argmin().item())
    return sorted(order) == [0, 1, 2] and found.scores.min().item() > 0.4
