"""Sparse R-CNN: the authors' numbers, the gradient between stages, initialization, coordinates of the loss."""

import math
from dataclasses import replace
from pathlib import Path

import goldens
import pytest
import torch
from torch import Tensor

from detrs.backbones.timm import BackboneConfig
from detrs.boxes import LARGEST_SCALE, cxcywh_to_xyxy, scaled_from_box
from detrs.checkpoints.foreign.official_sparse_rcnn import LAYOUTS
from detrs.criterion.set_criterion import CriterionConfig, SetCriterion
from detrs.errors import UserError
from detrs.layers.decoder import Decoder, refine
from detrs.models import build
from detrs.models.detector import Detector
from detrs.models.sparse_rcnn import SparseRCNNConfig, head, stage, strides
from detrs.presets import preset
from detrs.structures import Prediction, Predictions, Pyramid, Queries, Target, Totals

SMALL = SparseRCNNConfig(
    num_classes=5,
    backbone=BackboneConfig(name="test_resnet", weights="none", stages=(2, 3, 4, 5)),
    dim=32,
    num_heads=4,
    decoder_layers=2,
    ffn_dim=64,
    dynamic_dim=8,
    num_queries=6,
)
"""Of the size of the golden values."""
PROPOSALS = torch.tensor(
    [
        [0.5, 0.5, 1.0, 1.0],
        [0.2, 0.3, 0.1, 0.2],
        [0.7, 0.6, 0.4, 0.3],
        [0.5, 0.5, 0.02, 0.03],
        [0.4, 0.8, 0.3, 0.3],
        [0.9, 0.1, 0.15, 0.15],
    ]
)


def maps(*, batch: int = 2) -> list[Tensor]:
    sizes = ((64, 96), (32, 48), (16, 24), (8, 12))
    return [goldens.inputs(1000 + k, batch, 32, *size) for k, size in enumerate(sizes)]


def memory(levels: list[Tensor], image_sizes: list[list[int]]) -> Pyramid:
    """Only what the decoder of Sparse R-CNN uses."""
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
    shapes = tuple((level.shape[2], level.shape[3]) for level in levels)
    padding, ratio = torch.zeros(tokens.shape[:2], dtype=torch.bool), torch.ones(len(tokens), len(shapes), 2)
    return Pyramid(tokens, tokens[..., :0], tokens[..., :2], padding, shapes, ratio, torch.tensor(image_sizes))


@torch.no_grad()
def test_golden_values_of_the_official_head(shared: Path) -> None:
    golden = goldens.golden(shared, "sparse.head")
    decoder = Decoder([stage(SMALL), stage(SMALL)], [head(SMALL), head(SMALL)], refine).eval()
    table, state = LAYOUTS["official"].renaming, decoder.state_dict(prefix="decoder.")
    names = {name.removeprefix("head."): tensor.shape for name, tensor in table.write(state).items()}
    assert sorted(names) == golden["params"]
    values = {f"head.{name}": value for name, value in goldens.parameters(names).items()}
    read = table.read(values, {name: tuple(tensor.shape) for name, tensor in state.items()}, "the golden file")
    decoder.load_state_dict({name.removeprefix("decoder."): tensor for name, tensor in read.items()})
    sizes = [[256, 384], [200, 320]]
    content = goldens.inputs(1010, 6, 32).expand(2, -1, -1)
    queries = Queries(content, content[..., :0], PROPOSALS.expand(2, -1, -1))
    layers, _ = decoder(queries, memory(maps(), sizes))
    goldens.check(torch.stack([layer.logits for layer in layers]), golden["logits"])
    pixels = torch.tensor(sizes).flip(1).repeat(1, 2)[:, None]
    goldens.check(torch.stack([cxcywh_to_xyxy(layer.boxes) * pixels for layer in layers]), golden["boxes"])


def test_box_coder_equals_that_of_rcnn() -> None:
    """On corners in pixels; changes of the sides are limited from above only."""
    torch.manual_seed(0)
    raw, boxes, size = torch.randn(50, 4), torch.rand(50, 4) + 0.1, torch.tensor([640.0, 480.0, 640.0, 480.0])
    raw[0, 2:], raw[1, 2:] = 20.0, -20.0
    corners = cxcywh_to_xyxy(boxes) * size
    width, height = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
    x = corners[:, 0] + width / 2 + raw[:, 0] / 2 * width
    y = corners[:, 1] + height / 2 + raw[:, 1] / 2 * height
    limit = math.log(100_000 / 16)
    half_width = width * raw[:, 2].clamp(max=limit).exp() / 2
    half_height = height * raw[:, 3].clamp(max=limit).exp() / 2
    expected = torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)
    torch.testing.assert_close(cxcywh_to_xyxy(scaled_from_box(raw, boxes)) * size, expected, rtol=1e-4, atol=1e-3)
    assert pytest.approx(8.7403, abs=1e-4) == LARGEST_SCALE


def detector() -> Detector:
    torch.manual_seed(0)
    return build(SMALL)


def test_proposals_start_as_the_whole_image_with_random_features() -> None:
    weight = build(replace(SMALL, num_queries=300)).queries.embedding.weight
    assert torch.equal(weight[:, :4], torch.tensor([0.5, 0.5, 1.0, 1.0]).expand(300, -1))
    assert weight[:, 4:].std().item() == pytest.approx(1.0, abs=0.05)


def test_matrices_of_the_decoder_are_xavier_uniform_and_only_the_class_bias_has_a_prior() -> None:
    """Also with as many classes as channels, where the authors' code overwrites other parameters."""
    model = build(replace(SMALL, num_classes=32))
    for name, parameter in model.decoder.named_parameters():
        if parameter.dim() > 1:
            rows, columns = parameter.shape
            rows *= 3 if "query_proj" in name or "key_proj" in name or "value_proj" in name else 1  # one matrix
            bound = math.sqrt(6 / (rows + columns))
            assert 0.85 * bound < parameter.abs().max() <= bound, name
        assert (parameter == -math.log(99)).all() == name.endswith("classes.bias"), name


def test_boxes_are_detached_between_stages_and_features_are_not() -> None:
    """A loss on the second stage reaches the first stage through features, not through its boxes."""
    model = detector()
    images, padding = torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool)
    first, last = model(images, padding).layers
    last.boxes.sum().backward()
    assert model.decoder.heads[0].box.weight.grad is None
    assert model.decoder.layers[0].cross_attention.filters.weight.grad.abs().max() > 0
    assert model.queries.embedding.weight.grad[:, :4].abs().max() == 0
    model(images, padding).layers[0].boxes.sum().backward()
    assert model.queries.embedding.weight.grad[:, :4].abs().max() > 0  # the box that the first stage changes
    assert first.boxes.shape == (1, 6, 4)


def test_the_loss_is_the_l1_distance_of_corners() -> None:
    """In matching and loss; the default of the criterion is center and size."""
    boxes = torch.tensor([[[0.4, 0.5, 0.2, 0.3], [0.52, 0.5, 0.42, 0.3]]])
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.3]]), torch.tensor([1]), 1, (64, 96))
    predictions = Predictions((Prediction(torch.zeros(1, 2, 5), boxes),), None)
    for coordinates, expected in (("xyxy", 0.2), ("cxcywh", 0.1)):
        config = CriterionConfig(box_weight=5.0, giou_weight=0.0, box_coordinates=coordinates)
        criterion = SetCriterion(config, SMALL.classification)
        terms = criterion(predictions, (target,), Totals.of((target,))).terms
        assert terms["box"].item() == pytest.approx(expected, abs=1e-6)
    assert preset("sparse-rcnn-r50-100").criterion == CriterionConfig(box_coordinates="xyxy")


def test_matching_uses_the_same_coordinates() -> None:
    """By corners, the first box is nearer; by center and size, the second."""
    target = Target(torch.tensor([[0.5, 0.5, 0.2, 0.2]]), torch.tensor([1]), 1, (64, 96))
    boxes = torch.tensor([[[0.5, 0.5, 0.35, 0.2], [0.59, 0.5, 0.2, 0.2]]])
    predictions = Predictions((Prediction(torch.zeros(1, 2, 5), boxes),), None)
    for coordinates, expected in (("xyxy", 0.15), ("cxcywh", 0.09)):
        config = CriterionConfig(box_weight=5.0, giou_weight=0.0, box_coordinates=coordinates)
        criterion = SetCriterion(config, SMALL.classification)
        terms = criterion(predictions, (target,), Totals.of((target,))).terms
        assert terms["box"].item() == pytest.approx(expected, abs=1e-6)


def test_strides_of_levels() -> None:
    assert strides(SMALL.backbone) == (4, 8, 16, 32)
    assert strides(replace(SMALL.backbone, dilated=True)) == (4, 8, 16, 16)


@pytest.mark.parametrize("stages", [(2, 4, 5), ()])
def test_stages_with_gaps_are_rejected(stages: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="model.backbone.stages"):
        build(replace(SMALL, backbone=replace(SMALL.backbone, stages=stages)))


def test_more_objects_than_proposals_are_rejected() -> None:
    SMALL.check_capacity(6)
    with pytest.raises(UserError, match="num-queries 7"):
        SMALL.check_capacity(7)


@pytest.mark.parametrize(
    ("name", "queries", "augment"),
    [
        ("sparse-rcnn-r50-100", 100, "flip"),
        ("sparse-rcnn-r50-300", 300, "official"),
        ("sparse-rcnn-r101-100", 100, "flip"),
        ("sparse-rcnn-r101-300", 300, "official"),
    ],
)
def test_recipes_are_the_official_ones(name: str, queries: int, augment: str) -> None:
    experiment = preset(name)
    assert (experiment.model.num_queries, experiment.data.augment) == (queries, augment)
    assert (experiment.optimizer.lr, experiment.optimizer.backbone_lr_factor) == (2.5e-5, 1.0)
    assert (experiment.optimizer.weight_decay, experiment.optimizer.clip_norm) == (1e-4, 1.0)
    assert (experiment.data.batch_size, experiment.schedule.epochs, experiment.schedule.warmup_steps) == (16, 36, 1000)
    assert experiment.schedule.drop_at == pytest.approx((210 / 270, 250 / 270))
