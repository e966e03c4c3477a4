"""A second implementation of Anchor DETR, after its paper and its authors' code, for one padded batch.

No other implementation can be installed. Positions, their order, the order of layers and the decoding of boxes are
compared with this one: cell by cell, in float64; it uses only the weights of the library's detector.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from detrs.backbones.timm import BackboneConfig
from detrs.models import build
from detrs.models.anchor_detr import AnchorDETRConfig
from detrs.models.detector import Detector

DIM, HEADS, PATTERNS, POINTS = 64, 2, 3, 7
CONFIG = AnchorDETRConfig(
    num_classes=5,
    backbone=BackboneConfig(name="test_resnet", stages=(5,)),
    dim=DIM,
    num_heads=HEADS,
    encoder_layers=2,
    decoder_layers=2,
    ffn_dim=96,
    num_queries=PATTERNS * POINTS,
    num_patterns=PATTERNS,
)
SIZES = ((128, 200), (75, 256))
"""(height, width) of two images; both are padded, the one to the right and the other at the bottom."""


class Weights:
    """The parameters of a detector by name, and the layers that use them."""

    def __init__(self, detector: Detector) -> None:
        self.found = detector.state_dict()

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.found[f"{name}.weight"].T + self.found[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * self.found[f"{name}.norm.weight"] + self.found[f"{name}.norm.bias"]

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.adapt.2", self.linear(f"{name}.adapt.0", x).relu())

    def feedforward(self, layer: str, x: Tensor) -> Tensor:
        inside = self.linear(f"{layer}.feedforward.expand", x).relu()
        return self.norm(f"{layer}.feedforward_norm", x + self.linear(f"{layer}.feedforward.contract", inside))


def sine(value: Tensor, count: int) -> Tensor:
    """Features of a number in [0, 1]: sine and cosine in turns, of falling frequency."""
    angles = [2 * math.pi * value / 10000 ** (2 * k / count) for k in range(count // 2)]
    return torch.stack([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=-1)


def attend_in_row_and_column(
    weights: Weights,
    name: str,
    queries: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    value: Tensor,
    size: Tensor,
) -> Tensor:
    """``queries`` (Q, C) for columns and rows; ``keys`` (H, W, C) likewise; ``size``: number of valid rows, columns."""
    rows, columns = size.tolist()
    query_x, query_y = (weights.linear(f"{name}.query_{a}_proj", q) for a, q in zip("xy", queries, strict=True))
    of_columns = weights.linear(f"{name}.key_x_proj", keys[0]).mean(0)[:columns]  # the mean includes padding
    of_rows = weights.linear(f"{name}.key_y_proj", keys[1]).mean(1)[:rows]
    values = weights.linear(f"{name}.value_proj", value)[:rows, :columns]
    heads = []
    for head in range(HEADS):
        own = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
        along_x = (query_x[:, own] @ of_columns[:, own].T / math.sqrt(DIM // HEADS)).softmax(-1)
        along_y = (query_y[:, own] @ of_rows[:, own].T / math.sqrt(DIM // HEADS)).softmax(-1)
        heads.append(torch.einsum("qy,qx,yxd->qd", along_y, along_x, values[..., own]))
    return weights.linear(f"{name}.output_proj", torch.cat(heads, dim=-1))


def attend_to_each_other(weights: Weights, name: str, queries: Tensor, value: Tensor) -> Tensor:
    query, key = (weights.linear(f"{name}.{which}_proj", queries) for which in ("query", "key"))
    values, heads = weights.linear(f"{name}.value_proj", value), []
    for head in range(HEADS):
        own = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
        heads.append((query[:, own] @ key[:, own].T / math.sqrt(DIM // HEADS)).softmax(-1) @ values[:, own])
    return weights.linear(f"{name}.output_proj", torch.cat(heads, dim=-1))


def anchor_detr(weights: Weights, feature: Tensor, size: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Logits and boxes of each layer for one image.

    Args:
        weights: of the detector.
        feature: (C5, H, W), of the padded image.
        size: rows and columns of it that are not padding.
    """
    _, height, width = feature.shape
    projected = torch.einsum("oc,chw->ohw", weights.found["neck.mapper.projections.0.0.weight"][:, :, 0, 0], feature)
    projected = projected + weights.found["neck.mapper.projections.0.0.bias"][:, None, None]
    affine = (weights.found[f"neck.mapper.projections.0.1.{part}"] for part in ("weight", "bias"))
    tokens = F.group_norm(projected[None], 32, *affine)[0].permute(1, 2, 0)  # (H, W, C)

    def centers(cells: int, valid: Tensor) -> Tensor:
        """Centers of cells along an axis; in the padding, that of the last valid cell."""
        return (torch.arange(cells).double().clamp(max=int(valid) - 1) + 0.5) / valid

    y, x = centers(height, size[0]), centers(width, size[1])
    of_column = weights.mlp("neck.position.coordinate", sine(x, DIM)).expand(height, -1, -1)
    of_row = weights.mlp("neck.position.coordinate", sine(y, DIM))[:, None].expand(-1, width, -1)
    for number in range(CONFIG.encoder_layers):
        layer = f"encoder.layers.{number}"
        by_column, by_row = tokens + of_column, tokens + of_row
        queries = by_column.reshape(-1, DIM), by_row.reshape(-1, DIM)
        attended = attend_in_row_and_column(
            weights, f"{layer}.attention.attention", queries, (by_column, by_row), tokens, size
        )
        tokens = weights.norm(f"{layer}.attention_norm", tokens + attended.view(height, width, DIM))
        tokens = weights.feedforward(layer, tokens)

    points, patterns = weights.found["queries.embedding.weight"], weights.found["queries.patterns.weight"]
    content = torch.stack([patterns[k] for k in range(PATTERNS) for _ in range(POINTS)])
    points = torch.stack([points[k] for _ in range(PATTERNS) for k in range(POINTS)])
    position = torch.cat([sine(points[:, 1], DIM // 2), sine(points[:, 0], DIM // 2)], dim=-1)  # y first
    position = weights.mlp("queries.position.point", position)
    at_x, at_y = (weights.mlp("queries.position.coordinate", sine(points[:, axis], DIM)) for axis in (0, 1))
    found = []
    for number in range(CONFIG.decoder_layers):
        layer = f"decoder.layers.{number}"
        attended = attend_to_each_other(weights, f"{layer}.self_attention.attention", content + position, content)
        content = weights.norm(f"{layer}.self_attention_norm", content + attended)
        attended = attend_in_row_and_column(
            weights,
            f"{layer}.cross_attention.attention",
            (content + at_x, content + at_y),
            (tokens + of_column, tokens + of_row),
            tokens,
            size,
        )
        content = weights.feedforward(layer, weights.norm(f"{layer}.cross_attention_norm", content + attended))
        raw = content
        for part in (0, 2, 4):
            raw = weights.linear(f"decoder.heads.0.box.{part}", raw.relu() if part else raw)
        start = (points / (1 - points)).log()
        boxes = (raw + torch.cat([start, torch.zeros_like(start)], dim=-1)).sigmoid()
        found.append((weights.linear("decoder.heads.0.classes", content), boxes))
    return found


@pytest.fixture
def detector() -> Detector:
    """With random weights, also in the box head, and anchors inside the image."""
    torch.manual_seed(0)
    detector = build(CONFIG).double().eval()
    with torch.no_grad():
        for name, parameter in detector.named_parameters():
            if not name.startswith("backbone."):
                parameter.add_(0.1 * torch.randn_like(parameter))
        detector.queries.embedding.weight.clamp_(0.05, 0.95)
    return detector


@torch.no_grad()
def test_logits_and_boxes_of_every_layer(detector: Detector) -> None:
    images, padding = torch.randn(2, 3, 128, 256).double(), torch.ones(2, 128, 256, dtype=torch.bool)
    for image, (height, width) in enumerate(SIZES):
        padding[image, :height, :width] = False
    images.masked_fill_(padding[:, None], 0.0)
    features = detector.backbone(images)[0]
    predictions = detector(images, padding)
    for image, (height, width) in enumerate(SIZES):
        size = torch.tensor([math.ceil(height / 32), math.ceil(width / 32)])
        for layer, (logits, boxes) in enumerate(anchor_detr(Weights(detector), features[image], size)):
            # the detector computes positions in float32
            torch.testing.assert_close(predictions.layers[layer].logits[image], logits, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(predictions.layers[layer].boxes[image], boxes, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_comparison_distinguishes_axes_layers_images_and_queries(detector: Detector) -> None:
    """Swapped axes change the result, and so do layer, image and query: the comparison above is not trivial."""
    feature = torch.randn(*detector.backbone.channels, 4, 8).double()
    size = torch.tensor([3, 7])
    first = anchor_detr(Weights(detector), feature, size)
    turned = anchor_detr(Weights(detector), feature.transpose(1, 2), size.flip(0))
    assert (first[-1][0] - turned[-1][0]).abs().max() > 0.05
    assert (first[0][0] - first[1][0]).abs().max() > 0.05
    assert first[-1][0].std(0).min() > 0.01 and first[-1][1].std(0).min() > 0.005
