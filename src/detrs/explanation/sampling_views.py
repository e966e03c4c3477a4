"""Views of multi-scale deformable attention: where each query samples, and with which weights."""

import torch
from torch import Tensor

from detrs.explanation.recording import Call, Selection
from detrs.explanation.tokens import grid_tokens
from detrs.explanation.views import SamplingView
from detrs.layers.deformable_attention import DeformableInputs
from detrs.ops.ms_deform_attn import reference


def deformable_view(call: Call, selection: Selection) -> SamplingView:
    """Of ``DeformableSelfAttention`` (encoder) or ``DeformableCrossAttention`` (decoder)."""
    inputs: DeformableInputs = call.module.inputs(*call.arguments)  # type: ignore[operator]
    shapes = inputs.memory.shapes
    chosen, grids = grid_tokens(shapes, selection.max_tokens) if call.stage == "encoder" else (selection.queries, ())
    locations, weights = sampled(call.module.attention, inputs, chosen.to(inputs.query.device))
    return SamplingView(
        stage=call.stage,
        layer=call.layer,
        name=call.name,
        queries=chosen,
        grids=grids,
        locations=locations.cpu(),
        weights=weights.cpu(),
        shapes=shapes,
    )


def own_level_view(call: Call, selection: Selection) -> SamplingView:
    """Of ``OwnLevelSelfAttention``: the weights of other levels are zero, their locations those of the own level."""
    levels: list[DeformableInputs] = call.module.inputs(*call.arguments)  # type: ignore[operator]
    shapes = tuple(each.memory.shapes[0] for each in levels)
    locations, weights = [], []
    for level, (each, shape) in enumerate(zip(levels, shapes, strict=True)):
        own, _ = grid_tokens((shape,), selection.max_tokens)
        at, weight = sampled(call.module.attention, each, own.to(each.query.device))  # (q, M, 1, P, 2), (q, M, 1, P)
        others = torch.zeros_like(weight).expand(-1, -1, len(levels), -1).clone()
        others[:, :, level] = weight[:, :, 0]
        locations.append(at.expand(-1, -1, len(levels), -1, -1))
        weights.append(others)
    chosen, grids = grid_tokens(shapes, selection.max_tokens)
    return SamplingView(
        stage=call.stage,
        layer=call.layer,
        name=call.name,
        queries=chosen,
        grids=grids,
        locations=torch.cat(locations).cpu(),
        weights=torch.cat(weights).cpu(),
        shapes=shapes,
    )


def sampled(attention: object, inputs: DeformableInputs, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Locations (Q, M, L, P, 2), in [0, 1] of the un-padded image, and weights (Q, M, L, P) of some queries."""
    query, around, memory = inputs
    offsets, logits, references = attention.samples(query[:, chosen], around[:, chosen], memory)  # type: ignore[attr-defined]
    levels, points = logits.shape[3:]
    locations, weights = reference.samples(
        offsets.flatten(3, 4), logits.flatten(3, 4), references, memory.shapes, (points,) * levels
    )
    ratio = memory.valid_ratio[0, :, None]  # (L, 1, 2)
    return locations[0].unflatten(2, (levels, points)) / ratio, weights[0].unflatten(2, (levels, points))
