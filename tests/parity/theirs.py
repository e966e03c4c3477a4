"""Shared by all comparisons with ``transformers``: its backbone behind our interface, images, objects, names."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from detrs.checkpoints.foreign.transformers_names import renaming
from detrs.models import ModelConfig
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


def without_backbone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that both detectors have; the backbone is the same module."""
    return {name: tensor for name, tensor in tensors.items() if "backbone" not in name}


def key_map(model: ModelConfig, ours: nn.Module, theirs: nn.Module) -> dict[str, str]:
    """Their name of each tensor to ours, the first of those of a shared head."""
    tensors = without_backbone(theirs.state_dict())
    links = renaming(model).links(without_backbone(ours.state_dict()))
    mapped = {next(name for name in link.read if name in tensors): link.ours[0] for link in links}
    assert mapped.keys() == tensors.keys()
    assert len(set(mapped.values())) == len(mapped)
    return mapped


def their_weights(model: ModelConfig, ours: nn.Module, theirs: nn.Module) -> dict[str, Tensor]:
    """The weights of theirs with our names, for all layers that share a head."""
    mine = {name: tuple(tensor.shape) for name, tensor in without_backbone(ours.state_dict()).items()}
    return renaming(model).read(without_backbone(theirs.state_dict()), mine, "theirs")


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
