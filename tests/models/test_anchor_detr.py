"""Specific to Anchor DETR; for properties of the family see tests/family, for its attention tests/layers."""

import math
import re
from dataclasses import replace

import pytest
import torch

from detrs.backbones.timm import BackboneConfig
from detrs.errors import UserError
from detrs.layers.attention import GlobalCrossAttention
from detrs.layers.position import SinePosition
from detrs.layers.row_column_attention import RowColumnAttention, mean_of_all, mean_of_valid
from detrs.models import build
from detrs.models.anchor_detr import AnchorDETRConfig, PositionEmbedding, TokenLines, TokenPoints
from detrs.presets import preset
from detrs.structures import Pyramid

TINY = AnchorDETRConfig(
    num_classes=5,
    backbone=BackboneConfig(name="test_resnet", stages=(5,)),
    dim=64,
    num_heads=2,
    encoder_layers=2,
    decoder_layers=3,
    ffn_dim=96,
    num_queries=33,
)
EMPTY = Pyramid(
    tokens=torch.empty(2, 0, 64),
    position=torch.empty(2, 0, 128),
    reference_points=torch.empty(2, 0, 2),
    padding=torch.empty(2, 0, dtype=torch.bool),
    shapes=(),
    valid_ratio=torch.empty(2, 0, 2),
    image_sizes=torch.empty(2, 2, dtype=torch.long),
)
"""Of two images, without tokens: queries depend on the batch size only."""


def test_standard_attention_has_the_parameters_of_the_authors_code_that_it_uses() -> None:
    """35,459,703 there, with an MLP for single coordinates that is never used."""
    with torch.device("meta"):
        detector = build(replace(preset("anchor-detr-r50").model, attention="global"))
    assert sum(p.numel() for p in detector.parameters()) == 35_459_703 - 2 * (256 * 256 + 256)


def test_variants_differ_in_their_attention_to_the_image_only() -> None:
    """And in their position embeddings."""
    decoupled, masked, everywhere = (
        build(replace(TINY, attention=kind)) for kind in ("decoupled", "decoupled-masked", "global")
    )
    for detector, mean in ((decoupled, mean_of_all), (masked, mean_of_valid)):
        parts = [module for module in detector.modules() if isinstance(module, RowColumnAttention)]
        assert len(parts) == 5 and {part.key_mean for part in parts} == {mean}
    assert all(isinstance(layer.cross_attention, GlobalCrossAttention) for layer in everywhere.decoder.layers)

    def rest(detector: torch.nn.Module) -> list[tuple[str, torch.Size]]:
        own = ("cross_attention.attention", "encoder.layers", "coordinate")
        return [(n, p.shape) for n, p in detector.named_parameters() if not any(part in n for part in own)]

    assert rest(decoupled) == rest(masked)
    assert sorted(str(shape) for _, shape in rest(decoupled)) == sorted(str(shape) for _, shape in rest(everywhere))


def test_queries_are_every_pattern_at_every_point() -> None:
    """All points of the first pattern first."""
    part = build(TINY).queries
    queries, proposals = part(EMPTY)
    assert proposals is None and queries.content.shape == (2, 33, 64) and queries.position.shape == (2, 33, 192)
    for pattern, point in ((0, 0), (0, 10), (1, 0), (2, 7)):
        query = 11 * pattern + point
        assert torch.equal(queries.content[1, query], part.patterns.weight[pattern])
        assert torch.equal(queries.reference[1, query], part.embedding.weight[point])
        x, y = part.embedding.weight[point]
        expected = torch.cat(
            [part.position.point(torch.stack([x, y])), *map(part.position.coordinate, (x[None], y[None]))]
        )
        torch.testing.assert_close(queries.position[1, query], expected)


@pytest.mark.parametrize(("count", "side"), [(900, 17), (75, 5), (3, 1)])
def test_a_grid_is_the_nearest_square_and_is_not_trained(count: int, side: int) -> None:
    part = build(replace(TINY, anchors="grid", num_queries=count)).queries
    points = part(EMPTY)[0].reference[0, : side**2]
    assert part(EMPTY)[0].content.shape[1] == 3 * side**2
    assert points[0].tolist() == pytest.approx([0.5 / side] * 2)
    torch.testing.assert_close(points[side - 1], torch.tensor([0.5, side - 0.5]) / side)  # y changes first
    assert not any(name.startswith("queries.embedding") for name, _ in part.named_parameters(prefix="queries"))


def test_positions_are_those_of_the_centers_of_cells_in_the_image() -> None:
    """In the padding, a position is that of the image's last row or column; it is masked in attention."""
    padding = torch.ones(2, 5, 7, dtype=torch.bool)
    padding[0] = False
    padding[1, :3, :4] = False
    line, point = PositionEmbedding(16, 1), PositionEmbedding(16, 2)
    lines, points = TokenLines(line)(padding), TokenPoints(point)(padding)
    for image, (height, width) in enumerate(((5, 7), (3, 4))):
        for row, column in ((0, 0), (2, 3), (4, 6)):
            x, y = (min(column, width - 1) + 0.5) / width, (min(row, height - 1) + 0.5) / height
            expected = torch.cat([line(torch.tensor([x])), line(torch.tensor([y]))])
            torch.testing.assert_close(lines[image, row, column], expected)
            torch.testing.assert_close(points[image, row, column], point(torch.tensor([x, y])))


@torch.no_grad()
def test_position_embeddings_are_sine_features_with_y_first_then_an_mlp() -> None:
    point, line = PositionEmbedding(16, 2), PositionEmbedding(8, 1)
    point.adapt, line.adapt = (torch.nn.Sequential(torch.nn.Linear(n, n)) for n in (16, 8))
    for part, size in ((point, 16), (line, 8)):
        part.adapt[0].weight.copy_(torch.eye(size))
        part.adapt[0].bias.zero_()
    grid = TokenPoints(point)(torch.zeros(1, 5, 7, dtype=torch.bool))
    torch.testing.assert_close(grid, SinePosition(16, shift=-0.5)(torch.zeros(1, 5, 7, dtype=torch.bool)))
    expected = [f(0.75 * math.pi / w) for w in (1, 10, 100, 1000) for f in (math.sin, math.cos)]
    torch.testing.assert_close(line(torch.tensor([0.375])), torch.tensor(expected))


@pytest.mark.parametrize("kind", ["decoupled", "global"])
def test_tokens_and_queries_share_the_mlp_of_their_positions(kind: str) -> None:
    detector = build(replace(TINY, attention=kind))
    of_tokens, of_queries = detector.neck.position, detector.queries.position
    if kind == "decoupled":
        assert of_tokens.coordinate is of_queries.coordinate
    else:
        assert of_tokens.point is of_queries


def test_anchors_have_gradients_from_boxes_and_from_both_embeddings() -> None:
    detector = build(TINY)
    with torch.no_grad():  # boxes of an untrained head do not depend on the embeddings
        for parameter in detector.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    memory = detector.encoder(
        detector.neck(detector.backbone(torch.randn(1, 3, 97, 131)), torch.zeros(1, 97, 131, dtype=torch.bool))
    )
    queries, _ = detector.queries(memory)
    boxes = detector.decoder(queries, memory)[0][-1].boxes
    position, reference = torch.autograd.grad(boxes.sum(), (queries.position, queries.reference), retain_graph=True)
    assert reference.abs().max() > 0
    assert all(part.abs().max() > 0 for part in position.chunk(3, dim=-1))
    for embedded in queries.position.chunk(3, dim=-1):
        (gradient,) = torch.autograd.grad(embedded.sum(), detector.queries.embedding.weight, retain_graph=True)
        assert gradient.abs().max() > 0


def test_layers_share_one_head_and_refer_to_the_anchors() -> None:
    detector = build(TINY).eval()
    assert len({id(head) for head in detector.decoder.heads}) == 1
    predictions = detector(torch.randn(1, 3, 97, 131), torch.zeros(1, 97, 131, dtype=torch.bool)).layers
    size = 1 / (1 + math.exp(2))
    for layer in predictions:  # an untrained head predicts a small box at every anchor
        expected = detector.queries.embedding.weight.repeat(3, 1)
        torch.testing.assert_close(layer.boxes[0, :, :2], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(layer.boxes[0, :, 2:], torch.full((33, 2), size))


def test_initialization_is_that_of_the_authors_code() -> None:
    """A uniform distribution has a standard deviation of its bound * 3 ** -0.5."""
    detector = build(replace(preset("anchor-detr-r50").model, backbone=TINY.backbone, encoder_layers=1))
    layer, head = detector.decoder.layers[0], detector.decoder.heads[0]
    plain = 256**-0.5 * 3**-0.5
    for attention in (detector.encoder.layers[0].attention.attention, layer.cross_attention.attention):
        for name in ("query_x_proj", "query_y_proj", "key_x_proj", "key_y_proj", "value_proj"):
            linear = attention.get_submodule(name)
            assert linear.weight.std().item() == pytest.approx((2 / (256 + 5 * 256)) ** 0.5, rel=0.02)
            assert linear.bias.abs().max() == 0
    assert layer.self_attention.attention.key_proj.weight.std().item() == pytest.approx(
        (2 / (4 * 256)) ** 0.5, rel=0.02
    )
    for attention in (layer.self_attention.attention, layer.cross_attention.attention):
        assert attention.output_proj.weight.std().item() == pytest.approx(plain, rel=0.02)
        assert attention.output_proj.bias.abs().max() == 0
    assert layer.feedforward.expand.weight.std().item() == pytest.approx(plain, rel=0.02)
    assert layer.feedforward.expand.bias.abs().max() > 0
    assert detector.queries.patterns.weight.std().item() == pytest.approx(1.0, rel=0.1)
    anchors = detector.queries.embedding.weight
    assert anchors.shape == (300, 2) and 0 <= anchors.min() < 0.05 and 0.95 < anchors.max() <= 1
    assert head.classes.bias.tolist() == pytest.approx([-4.59512] * 91)
    assert head.box[-1].weight.abs().max() == 0 and head.box[-1].bias.tolist() == [0, 0, -2, -2]


def grid(num_queries: int) -> AnchorDETRConfig:
    return replace(TINY, anchors="grid", num_queries=num_queries)


@pytest.mark.parametrize(("num_queries", "capacity"), [(900, 867), (30, 27), (33, 27), (3, 3)])
def test_capacity_of_a_grid_is_the_number_of_its_queries(num_queries: int, capacity: int) -> None:
    """Objects beyond it are refused, with the smallest sufficient ``--model.num-queries``."""
    config = grid(num_queries)
    assert build(config).queries(EMPTY)[0].content.shape[1] == capacity
    config.check_capacity(capacity)
    with pytest.raises(UserError, match=rf"has {capacity + 1} objects.* has {capacity} queries") as error:
        config.check_capacity(capacity + 1)
    found = re.search(r"--model\.num-queries (\d+)", str(error.value))
    assert found
    suggested = int(found[1])
    assert build(grid(suggested)).queries(EMPTY)[0].content.shape[1] > capacity
    grid(suggested).check_capacity(capacity + 1)
    fewer = grid(suggested - config.num_patterns)
    assert build(fewer).queries(EMPTY)[0].content.shape[1] <= capacity
    with pytest.raises(UserError):
        fewer.check_capacity(capacity + 1)


def test_capacity_of_learned_points_is_a_multiple_of_the_patterns() -> None:
    TINY.check_capacity(33)
    with pytest.raises(UserError, match=r"--model\.num-queries 36 "):
        TINY.check_capacity(34)
