"""Computational complexity of attention: the terms of the papers, evaluated for a detector and an image size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from detrs.errors import UserError
from detrs.layers.deformable_attention import DeformableAttention
from detrs.layers.row_column_attention import RowColumnAttention
from detrs.models.detector import Detector, Model
from detrs.structures import Pyramid, Queries

DEFORMABLE = ("N_q C^2", "min(N_k C^2, N_q L K C^2)", "5 N_q L K C", "3 N_q C M L K")
GLOBAL = ("N_q C^2", "N_k C^2", "N_q N_k C")
ROW_COLUMN = ("N_q C^2", "N_k C^2", "N_q (H + W) C", "N_q N_k C")


@dataclass(frozen=True)
class Complexity:
    """One kind of attention in one part of a detector."""

    part: str
    """``encoder self-attention``, ``decoder self-attention`` or ``decoder cross-attention``."""
    kind: str
    """``global`` (DETR), ``deformable`` (Deformable DETR) or ``row-column`` (Anchor DETR)."""
    layers: int
    """Number of layers with this attention at these sizes."""
    num_queries: int
    """N_q, query elements."""
    num_keys: int
    """N_k, key elements: tokens of all levels (H W in the papers), or queries in the decoder's self-attention."""
    terms: dict[str, int]
    """Terms of O(...) per layer and their values, without constant factors that the papers omit."""

    @property
    def total(self) -> int:
        """Sum of the terms of all layers."""
        return self.layers * sum(self.terms.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON-serializable dictionary."""
        return {
            "part": self.part,
            "kind": self.kind,
            "layers": self.layers,
            "num_queries": self.num_queries,
            "num_keys": self.num_keys,
            "terms": self.terms,
            "total": self.total,
        }


def complexity(detector: Model, image_size: tuple[int, int]) -> list[Complexity]:
    """The attention of each encoder and decoder layer, from one forward pass on an image without padding.

    Formulas: global attention, Deformable DETR (arXiv 2010.04159), Sec. 3; deformable attention, Sec. 4.1 and A.1, with
    L K points per head on L levels; row-column attention, Anchor DETR (arXiv 2109.07107), Sec. 3.4.

    Args:
        detector: on any device; on ``meta``, nothing is computed.
        image_size: (height, width) in pixels.

    Raises:
        UserError: the model has no encoder or decoder layers.
    """
    if not isinstance(detector, Detector):
        raise UserError("Expected a detector with encoder and decoder for --complexity, got a model without attention.")
    found: list[Complexity] = []
    hooks = [
        module.register_forward_pre_hook(recorder(found, part))
        for part, modules in attentions(detector).items()
        for module in modules
    ]
    device = next(detector.parameters()).device
    was_training = detector.training
    try:
        with torch.no_grad():
            images = torch.zeros(1, 3, *image_size, device=device)
            detector.eval()(images, torch.zeros(1, *image_size, dtype=torch.bool, device=device))
    finally:
        detector.train(was_training)
        for hook in hooks:
            hook.remove()
    return merged(found)


def attentions(detector: Detector) -> dict[str, list[nn.Module]]:
    """The attention modules of each part."""
    encoder: list[Any] = list(detector.encoder.layers)
    decoder: list[Any] = [getattr(layer, "layer", layer) for layer in detector.decoder.layers]  # of AnchoredLayer
    return {
        "encoder self-attention": [layer.attention for layer in encoder if hasattr(layer, "attention")],
        "decoder self-attention": [layer.self_attention for layer in decoder],
        "decoder cross-attention": [layer.cross_attention for layer in decoder],
    }


def recorder(found: list[Complexity], part: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that appends the complexity of its module to ``found``."""

    def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        memory = next((x for x in inputs if isinstance(x, Pyramid)), None)
        queries = next((x for x in inputs if isinstance(x, Queries)), None)
        attending = queries.content if queries is not None else inputs[0].tokens
        num_queries, dim = attending.shape[1], attending.shape[2]
        num_keys = num_queries if memory is None else memory.tokens.shape[1]
        for kind, values in evaluated(module, memory, num_queries, num_keys, dim):
            found.append(Complexity(part, kind, 1, num_queries, num_keys, values))

    return record


def evaluated(
    module: nn.Module, memory: Pyramid | None, num_queries: int, num_keys: int, dim: int
) -> list[tuple[str, dict[str, int]]]:
    """Kind and terms of the attention inside ``module``; none for modules without attention."""
    parts = list(module.modules())
    deformable = next((x for x in parts if isinstance(x, DeformableAttention)), None)
    if deformable is not None:
        heads, levels, points = deformable.heads_levels_points
        samples = num_queries * levels * points * dim
        values = (num_queries * dim**2, min(num_keys * dim**2, samples * dim), 5 * samples, 3 * samples * heads)
        return [("deformable", dict(zip(DEFORMABLE, values, strict=True)))]
    projections = (num_queries * dim**2, num_keys * dim**2)
    pairs = num_queries * num_keys * dim
    if memory is not None and any(isinstance(x, RowColumnAttention) for x in parts):
        sides = sum(height + width for height, width in memory.shapes)
        values = (*projections, num_queries * sides * dim, pairs)
        return [("row-column", dict(zip(ROW_COLUMN, values, strict=True)))]
    if any(hasattr(x, "key_proj") or hasattr(x, "key_content_proj") for x in parts):
        return [("global", dict(zip(GLOBAL, (*projections, pairs), strict=True)))]
    return []


def merged(found: list[Complexity]) -> list[Complexity]:
    """Equal layers as one entry."""
    counts: dict[tuple[Any, ...], Complexity] = {}
    for each in found:
        key = (each.part, each.kind, each.num_queries, each.num_keys)
        layers = counts[key].layers + 1 if key in counts else 1
        counts[key] = Complexity(each.part, each.kind, layers, each.num_queries, each.num_keys, each.terms)
    return list(counts.values())


def table(rows: list[Complexity]) -> Table:
    """The terms of each part as a rich table, in 1e9."""
    result = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("attention", "N_q", "N_k", "term of O(...)", "per layer", "layers", "all layers"):
        result.add_column(column, justify="left" if column in ("attention", "term of O(...)") else "right")
    for row in rows:
        name, sizes = f"{row.part}, {row.kind}", (f"{row.num_queries:,}", f"{row.num_keys:,}")
        for i, (term, value) in enumerate(row.terms.items()):
            first = (name, *sizes) if i == 0 else ("", "", "")
            result.add_row(*first, term, f"{value / 1e9:.3f} G", str(row.layers), f"{row.layers * value / 1e9:.3f} G")
    return result
