"""Shared by all comparisons with ``transformers``: its backbone behind our interface, images, objects, names."""

import re
from collections.abc import Iterable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from detrs.structures import Target

LAYERS = 3
QUERIES = 7
CLASSES = 5
WIDTHS = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": LAYERS,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
    "dropout": 0.0,
}
"""Of their configurations; ``OUR_WIDTHS`` of ours."""
OUR_WIDTHS = {
    "dim": 64, "num_heads": 4, "encoder_layers": 2, "decoder_layers": LAYERS, "ffn_dim": 96, "dropout": 0.0,
    "num_queries": QUERIES, "num_classes": CLASSES,
}  # fmt: skip

Patterns = list[tuple[str, str]]


def attention(theirs: str, ours: str) -> Patterns:
    """Names within multi-head attention."""
    letters = {"q": "query", "k": "key", "v": "value", "o": "output"}
    return [(rf"{theirs}\.{letter}_proj", rf"{ours}.{name}_proj") for letter, name in letters.items()]


SHARED: Patterns = [  # their name -> ours, where no detector differs
    *attention(r"^model\.decoder\.layers\.(\d+)\.self_attn", r"decoder.layers.\1.self_attention.attention"),
    (r"^model\.encoder\.layers\.(\d+)\.self_attn_layer_norm", r"encoder.layers.\1.attention_norm.norm"),
    (r"^model\.decoder\.layers\.(\d+)\.self_attn_layer_norm", r"decoder.layers.\1.self_attention_norm.norm"),
    (r"^model\.decoder\.layers\.(\d+)\.encoder_attn_layer_norm", r"decoder.layers.\1.cross_attention_norm.norm"),
    (r"^model\.(en|de)coder\.layers\.(\d+)\.mlp\.fc1", r"\1coder.layers.\2.feedforward.expand"),
    (r"^model\.(en|de)coder\.layers\.(\d+)\.mlp\.fc2", r"\1coder.layers.\2.feedforward.contract"),
    (r"^model\.(en|de)coder\.layers\.(\d+)\.final_layer_norm", r"\1coder.layers.\2.feedforward_norm.norm"),
    (r"^model\.query_position_embeddings", "queries.embedding"),
]

largest: dict[str, float] = {}
"""Largest difference by quantity compared; ``conftest.py`` prints it."""


def close(what: str, mine: Tensor, other: Tensor, atol: float, rtol: float = 0.0) -> None:
    """Compare, and record the largest difference."""
    largest[what] = max(largest.get(what, 0.0), (mine - other).abs().max().item())
    torch.testing.assert_close(mine, other, atol=atol, rtol=rtol)


class TheirBackbone(nn.Module):
    """The ResNet of ``transformers`` behind our interface, so that both detectors have the same feature maps."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images).feature_maps)


def resnet(stages: tuple[int, ...]) -> transformers.ResNetConfig:
    """A small ResNet of theirs; see ``channels``."""
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 2], layer_type="bottleneck",
        hidden_act="relu", out_features=[f"stage{stage - 1}" for stage in stages],
    )  # fmt: skip


def channels(stages: tuple[int, ...]) -> tuple[int, ...]:
    """Channels of its maps."""
    return tuple({2: 16, 3: 24, 4: 32, 5: 40}[stage] for stage in stages)


@torch.no_grad()
def randomize(module: nn.Module) -> None:
    """Change every parameter: zeros of an untrained detector hide errors."""
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)


def renamed(name: str, patterns: Patterns) -> str:
    """Our name of one of their tensors."""
    for pattern, replacement in patterns:
        new, count = re.subn(pattern, replacement, name)
        if count:
            # our box head is a sequence whose linear layers stand at 0, 2 and 4
            return re.sub(r"\.box\.layers\.(\d)", lambda found: f".box.{2 * int(found[1])}", new)
    raise AssertionError(f"no name for {name}")


def key_map(names: Iterable[str], patterns: Patterns) -> dict[str, str]:
    """Their name to ours, without the backbone; no two of theirs are one of ours."""
    mapped = {name: renamed(name, patterns) for name in names if "backbone" not in name}
    assert len(set(mapped.values())) == len(mapped)
    return mapped


def padded_images() -> tuple[Tensor, Tensor]:
    """Two images of different sizes, padded on both axes."""
    torch.manual_seed(1)
    images, padding = torch.randn(2, 3, 193, 229), torch.zeros(2, 193, 229, dtype=torch.bool)
    padding[0, 163:] = True
    padding[1, :, 149:] = True
    return images.masked_fill(padding[:, None], 0.0), padding


TARGETS = (
    Target(
        torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.5, 0.2], [0.5, 0.5, 0.1, 0.1]]), torch.tensor([1, 4, 0]), 0,
        (97, 131),
    ),
    Target(torch.tensor([[0.7, 0.2, 0.2, 0.3]]), torch.tensor([2]), 1, (97, 131)),
)  # fmt: skip


def their_labels() -> list[dict[str, Any]]:
    """``TARGETS`` in their format; only for images without padding, because they rescale boxes where there is some."""
    return [{"class_labels": target.labels, "boxes": target.boxes} for target in TARGETS]
