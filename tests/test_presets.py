"""What the presets promise in words is what they build."""

import re
from dataclasses import replace

import pytest
import torch

from detrs.classification import Focal, Softmax, class_logits
from detrs.config.criterion import ContrastiveDenoising
from detrs.criterion.matching import Costs
from detrs.criterion.set_criterion import CriterionConfig, SetCriterion
from detrs.models import build
from detrs.presets import PRESETS, preset

PAPERS = [name for name in PRESETS if "r50" in name or "r101" in name or "swin" in name]


@pytest.mark.parametrize("name", PAPERS)
def test_official_presets_train_with_the_padding_of_the_authors_and_evaluate_without(name: str) -> None:
    """Padded batches cost dilated ones ten AP; Anchor DETR averages the padding into its keys."""
    experiment = preset(name)
    assert experiment.model.backbone.dilated == ("dc5" in name)
    disturbed = "dc5" in name or name.startswith("anchor")
    assert experiment.data.padded_together == (1 if disturbed or name.endswith("-5scale") else 2)
    assert experiment.evaluation.batch_size == (1 if disturbed or name.startswith("dino") else 2)
    assert not experiment.evaluation.pad  # evaluation.pad with this batch size is the authors' padding


@pytest.mark.parametrize("name", PAPERS)
def test_sizes_in_words_are_those_of_the_paper(name: str) -> None:
    """Papers cut: 41.5 M is 41 M there, 43.4 M is 44 M."""
    told = re.search(r"(\d+) M parameters", PRESETS[name].__doc__ or "")
    assert told or name.startswith("deformable")
    if told:
        with torch.device("meta"):
            count = sum(p.numel() for p in build(preset(name).model).parameters())
        assert abs(count / 1e6 - int(told[1])) < 1


@pytest.mark.parametrize(
    ("start", "lr", "batch_size", "epochs", "class_weight"),
    [
        ("detr-r50", 1e-4, 64, 500, 1.0),
        ("detr-r101", 1e-4, 64, 500, 1.0),
        ("conditional-detr-r50", 1e-4, 16, 50, 2.0),
        ("conditional-detr-r101", 1e-4, 16, 50, 2.0),
        ("anchor-detr-r50", 1e-4, 8, 50, 2.0),
        ("anchor-detr-r50-dc5", 1e-4, 8, 50, 2.0),
        ("anchor-detr-r101", 1e-4, 8, 50, 2.0),
        ("deformable-detr-r50", 2e-4, 32, 50, 2.0),
    ],
)
def test_recipes_are_the_official_ones(
    start: str, lr: float, batch_size: int, epochs: int, class_weight: float
) -> None:
    experiment = preset(start)
    assert (experiment.optimizer.lr, experiment.optimizer.backbone_lr_factor) == (lr, 0.1)
    assert (experiment.optimizer.weight_decay, experiment.optimizer.clip_norm) == (1e-4, 0.1)
    assert (experiment.data.batch_size, experiment.data.augment) == (batch_size, "official")
    assert (experiment.schedule.epochs, experiment.schedule.drop_at) == (epochs, (0.8,))
    criterion = SetCriterion(experiment.criterion, experiment.model.classification)
    assert criterion.class_weight == class_weight
    assert (criterion.config.box_weight, criterion.config.giou_weight, criterion.config.auxiliary) == (5.0, 2.0, True)
    assert criterion.costs == Costs(class_logits(experiment.model.classification), 5.0, 2.0)


@pytest.mark.parametrize("name", [name for name in PRESETS if hasattr(preset(name).model, "classification")])
def test_classification_is_that_of_the_paper(name: str) -> None:
    """Focal with weight 2, softmax with weight 1; three times as much in tiny presets that learn classes late.

    In DAB-DETR and its successors, weight 1 in the loss and 2 in the matching.
    """
    tiny = 3 if re.fullmatch("((conditional-|anchor-|dab-|dn-)?detr|sparse-rcnn)-tiny", name) else 1
    if name.startswith("detr-") and not name.endswith("plus"):
        assert preset(name).model.classification == Softmax(weight=tiny * 1.0, no_object_weight=0.1)
    elif name in PAPERS and name.startswith(("dab", "dn", "dino")):
        assert preset(name).model.classification == Focal(weight=1.0, cost_weight=2.0, alpha=0.25, gamma=2.0)
    else:
        assert preset(name).model.classification == Focal(weight=tiny * 2.0, alpha=0.25, gamma=2.0)


@pytest.mark.parametrize("name", PRESETS)
def test_only_our_own_designs_average_weights(name: str) -> None:
    assert preset(name).optimizer.ema_decay == (None if name in PAPERS else 0.998)


@pytest.mark.parametrize("name", PRESETS)
def test_only_our_own_designs_suppress_duplicates(name: str) -> None:
    has_its_own = name.startswith("faster-rcnn")
    assert preset(name).evaluation.nms == (None if name in PAPERS or has_its_own else 0.8)


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_else_limits_a_preset(name: str) -> None:
    experiment = preset(name)
    assert (experiment.schedule.max_minutes, experiment.evaluation.patience, experiment.initial) == (None, None, None)
    assert (experiment.evaluation.every_steps, experiment.data.path) == (None, None)
    clipped = {"faster-rcnn": None, "sparse-rcnn-r": 1.0, "dynamic-detr": 1.0}
    assert experiment.optimizer.clip_norm == next((clipped[start] for start in clipped if name.startswith(start)), 0.1)


def test_only_detectors_with_sampling_offsets_have_a_group_for_them() -> None:
    for name in PAPERS:
        assert preset(name).optimizer.sampling_lr_factor == (
            0.1 if name.startswith(("deformable", "efficient")) else 1.0
        )


def test_dc5_plus_is_detr_with_focal_loss_and_more_queries() -> None:
    plain, plus = preset("detr-r50-dc5"), preset("detr-r50-dc5-plus")
    assert (plain.model.classification, plain.model.num_queries) == (Softmax(), 100)
    assert (plus.model.classification, plus.model.num_queries) == (Focal(), 300)
    assert plus.schedule.epochs == 50
    assert plus.model.classification.weight == 2.0
    assert preset("conditional-detr-r50-dc5").data.batch_size == 8


@pytest.mark.parametrize("name", ["detr-tiny", "conditional-detr-tiny", "anchor-detr-tiny"])
def test_tiny_presets_can_be_compared(name: str) -> None:
    """Same backbone, images, width, depth, queries, epochs; another learning rate and weight of classes."""
    tiny, other = preset("deformable-detr-tiny"), preset(name)
    for part in ("data", "schedule", "evaluation"):
        assert getattr(other, part) == getattr(tiny, part)
    assert (tiny.optimizer.lr, tiny.optimizer.backbone_lr_factor) == (1e-3, 1.0)
    assert other.optimizer == replace(tiny.optimizer, lr=8e-4, backbone_lr_factor=2.5)
    assert tiny.criterion == other.criterion == CriterionConfig()
    assert tiny.model.classification.weight == 2.0
    assert other.model.classification.weight == (3.0 if name == "detr-tiny" else 6.0)
    assert other.model.backbone.name == tiny.model.backbone.name
    for setting in ("dim", "num_heads", "encoder_layers", "decoder_layers", "ffn_dim", "num_queries"):
        assert getattr(other.model, setting) == getattr(tiny.model, setting)


def test_small_presets_share_a_recipe_with_denoising() -> None:
    """Faster R-CNN is the baseline: half the learning rate, as without denoising."""
    deformable, dino, baseline = (preset(f"{name}-small") for name in ("deformable-detr", "dino", "faster-rcnn"))
    criterion = CriterionConfig(denoising=ContrastiveDenoising(pairs=50, hide_padding=True), quality="matchability")
    assert deformable.criterion == dino.criterion == criterion
    assert replace(deformable, name="", model=dino.model) == replace(dino, name="")
    assert (deformable.optimizer.lr, baseline.optimizer.lr) == (2e-3, 1e-3)


def test_faster_rcnn_has_the_recipe_of_the_baseline_of_detr() -> None:
    """Long schedule, random crops and GIoU loss (DETR, A.4), with its own optimizer settings."""
    experiment = preset("faster-rcnn-r50-fpn")
    assert (experiment.schedule.epochs, experiment.data.augment, experiment.data.batch_size) == (109, "official", 16)
    assert (experiment.criterion.box_weight, experiment.criterion.giou_weight) == (0.0, 10.0)
    assert (experiment.optimizer.lr, experiment.optimizer.weight_decay) == (1e-4, 0.05)
    for name, other in (("faster-rcnn-small", "deformable-detr-small"), ("faster-rcnn-tiny", "deformable-detr-tiny")):
        for part in ("data", "schedule"):
            assert getattr(preset(name), part) == getattr(preset(other), part)
        assert preset(name).evaluation == replace(preset(other).evaluation, nms=None)
        assert preset(name).model.backbone.name == preset(other).model.backbone.name
