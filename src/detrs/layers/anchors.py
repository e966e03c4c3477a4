"""Queries that are boxes: where they start, their position embedding in every layer, and attention that depends
on their size (DAB-DETR, arXiv 2201.12329)."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from detrs.boxes import SMALLEST_SIDE, offset_from_box
from detrs.layers.conditional_attention import ConditionalLayer
from detrs.layers.initialization import ExactLinear, xavier_linear
from detrs.layers.position import sine_features
from detrs.layers.queries import StartsFromBoxes
from detrs.structures import Pyramid, Queries


def box_features(boxes: Float[Tensor, "B Q 4"], dim: int) -> Float[Tensor, "B Q _"]:
    """Sine features of a box in [0, 1] (Eq. 3): C/2 for y, x, width and height each, in this order, together 2C."""
    return sine_features(boxes[..., [1, 0, 2, 3]] * 2 * math.pi, dim // 2).flatten(2)


Frame = Callable[[Tensor, Pyramid], Tensor]
"""Boxes in [0, 1] of the image, and the memory, to the boxes whose features are the position embedding."""


def in_image(boxes: Float[Tensor, "B Q 4"], memory: Pyramid) -> Float[Tensor, "B Q 4"]:
    """The boxes as they are: their embedding does not depend on padding."""
    return boxes


def on_finest_map(boxes: Float[Tensor, "B Q 4"], memory: Pyramid) -> Float[Tensor, "B Q 4"]:
    """In [0, 1] of the padded map of the finest level, as in the authors' code of the deformable detectors."""
    return boxes * memory.valid_ratio[:, :1].repeat(1, 1, 2)


FRAMES: dict[str, Frame] = {"padded": on_finest_map, "image": in_image}
"""``position_frame`` in the configuration."""
offset_from_anchor = partial(offset_from_box, eps=SMALLEST_SIDE)
"""The box coder of all detectors whose queries are boxes: sides that vanish keep a gradient."""


class BoxPosition(nn.Module):
    """The position embedding of each query, computed from its reference box (Eq. 2).

    Args:
        dim: C.
        frame: ``in_image`` or ``on_finest_map``.
    """

    def __init__(self, dim: int, frame: Frame = in_image) -> None:
        super().__init__()
        self.dim = dim
        self.frame = frame
        self.mlp = nn.Sequential(xavier_linear(2 * dim, dim), nn.ReLU(inplace=True), xavier_linear(dim, dim))

    def forward(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q C"]:
        boxes = self.frame(queries.reference, memory)
        features: Tensor = self.mlp(box_features(boxes, self.dim).to(queries.content.dtype))
        return features


class ScaledBoxPosition(nn.Module):
    """``BoxPosition``, and a factor for each channel that is predicted from the query's content."""

    def __init__(self, position: BoxPosition, scale: nn.Module) -> None:
        super().__init__()
        self.position = position
        self.scale = scale

    def forward(self, queries: Queries, memory: Pyramid) -> Float[Tensor, "B Q C"]:
        scaled: Tensor = self.position(queries, memory) * self.scale(queries.content)
        return scaled


class AnchoredLayer(nn.Module):
    """A decoder layer before which position embeddings are computed from the reference boxes (3.3).

    Args:
        position: queries and memory to position embeddings; one module in several layers.
        layer: the layer itself.
    """

    def __init__(self, position: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.position = position
        self.layer = layer

    def forward(self, queries: Queries, memory: Pyramid) -> Queries:
        anchored: Queries = self.layer(replace(queries, position=self.position(queries, memory)), memory)
        return anchored


class SizeModulatedLayer(ConditionalLayer):
    """A layer of Conditional DETR whose attention is as wide and high as the query's box (3.4, Eq. 6).

    Args:
        size: predicts the size that a query looks for from its content; one module in all layers.
        arguments: those of ``ConditionalLayer``.
    """

    def __init__(self, size: nn.Module, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.size = size

    def spatial_query(self, queries: Queries) -> Float[Tensor, "B Q C"]:
        """The position of the center, its rows times h_ref / h and its columns times w_ref / w."""
        spatial = super().spatial_query(queries)
        rows, columns = spatial.chunk(2, dim=-1)
        width, height = (self.size(queries.content) / queries.reference[..., 2:]).to(spatial.dtype).split(1, dim=-1)
        return torch.cat([rows * height, columns * width], dim=-1)


def size_mlp(dim: int) -> nn.Sequential:
    """Content to (w_ref, h_ref) in (0, 1): ``SizeModulatedLayer.size``."""
    last = ExactLinear(dim, 2)
    nn.init.xavier_uniform_(last.weight)
    return nn.Sequential(xavier_linear(dim, dim), nn.ReLU(inplace=True), last, nn.Sigmoid())


def scale_mlp(dim: int) -> nn.Sequential:
    """Content to a factor for each channel of a position embedding."""
    return nn.Sequential(xavier_linear(dim, dim), nn.ReLU(inplace=True), xavier_linear(dim, dim))


class RescaledSelfAttention(nn.Module):
    """Self-attention of tokens whose position embeddings are multiplied by factors predicted from the tokens.

    Args:
        scale: tokens to factors; one module in all layers.
        attention: ``Pyramid`` to tokens.
    """

    def __init__(self, scale: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.scale = scale
        self.attention = attention

    def forward(self, memory: Pyramid) -> Float[Tensor, "B S C"]:
        scaled = replace(memory, position=memory.position * self.scale(memory.tokens))
        attended: Tensor = self.attention(scaled)
        return attended


class ZeroContent(nn.Module):
    """Contents of ``num_queries`` queries before the first layer: zero (DAB-DETR)."""

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.size = num_queries, dim
        self.label_channels = dim

    def forward(self, like: Float[Tensor, "Q 4"]) -> Float[Tensor, "Q C"]:
        return like.new_zeros(self.size)


class LearnedContent(nn.Module):
    """Learned contents of queries before the first layer.

    Args:
        number: of different contents.
        repeats: number of consecutive queries that share one.
        dim: channels that are learned.
        indicator: add one channel, zero here and one in denoising (DN-DETR, 4.3).
    """

    def __init__(self, number: int, repeats: int, dim: int, *, indicator: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(number, dim)
        self.repeats = repeats
        self.indicator = indicator
        self.label_channels = dim

    def forward(self, like: Float[Tensor, "Q 4"]) -> Float[Tensor, "Q C"]:
        content = self.embedding.weight.repeat_interleave(self.repeats, dim=0)
        return F.pad(content, (0, 1)) if self.indicator else content


class AnchorQueries(StartsFromBoxes, nn.Module):
    """Learned boxes (3.2): references are the sigmoid of parameters; layers compute positions.

    Args:
        num_anchors: number of boxes.
        copies: queries of each box, with different contents: copy p of anchor a is query ``p * num_anchors + a``.
        content: contents of all queries.
    """

    def __init__(self, num_anchors: int, copies: int, content: ZeroContent | LearnedContent) -> None:
        super().__init__()
        self.anchors = nn.Embedding(num_anchors, 4)
        self.copies = copies
        self.content = content
        self.label_channels: int = content.label_channels
        self.has_indicator = isinstance(content, LearnedContent) and content.indicator
        self.has_unknown = isinstance(content, LearnedContent) and content.indicator and content.repeats > 1

    def of_boxes(self, boxes: Float[Tensor, "B Q 4"]) -> tuple[Float[Tensor, "B Q C"], Float[Tensor, "B Q C"]]:
        """Zero, also in the channel of the indicator."""
        zero = boxes.new_zeros(*boxes.shape[:2], self.label_channels + self.has_indicator)
        return zero, zero

    def forward(self, memory: Pyramid) -> tuple[Queries, None]:
        anchors = self.anchors.weight.repeat(self.copies, 1)
        content = self.content(anchors)[None].expand(memory.tokens.shape[0], -1, -1)
        reference = anchors.sigmoid()[None].expand(memory.tokens.shape[0], -1, -1)
        return Queries(content, torch.zeros_like(content), reference), None
