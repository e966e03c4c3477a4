"""Where convolutions and backbones sample: the dynamic encoder of Dynamic DETR, and DAT."""

import torch
from torch import Tensor

from detrs.backbones import dat_attention
from detrs.explanation.recording import Call, Selection
from detrs.explanation.tokens import grid_tokens
from detrs.explanation.views import PointsView, SamplingView
from detrs.layers.dynamic_encoder import DynamicEncoderLayer
from detrs.structures import Pyramid


def dynamic_encoder_view(call: Call, selection: Selection) -> SamplingView:
    """Of ``DynamicEncoderLayer``: one head, nine samples of the token's own level and of its neighbors.

    The weight of a sample is its modulation times the mean over the channels of the scale of its level; weights do not
    add up to 1, and those of other levels are zero.
    """
    layer = call.module
    assert isinstance(layer, DynamicEncoderLayer)
    (memory,) = call.arguments
    levels = [level_samples(layer, memory, i) for i in range(len(memory.shapes))]
    chosen, grids = grid_tokens(memory.shapes, selection.max_tokens)
    locations, weights = (torch.cat(parts)[chosen.to(memory.tokens.device)] for parts in zip(*levels, strict=True))
    return SamplingView(
        stage=call.stage,
        layer=call.layer,
        name=call.name,
        queries=chosen,
        grids=grids,
        locations=locations[:, None].float().cpu(),
        weights=weights[:, None].float().cpu(),
        shapes=memory.shapes,
    )


def level_samples(layer: DynamicEncoderLayer, memory: Pyramid, i: int) -> tuple[Tensor, Tensor]:
    """Locations (h * w, L, 9, 2), in [0, 1] of the un-padded image, and weights (h * w, L, 9) of the tokens of level i.

    Locations on levels that are not sampled are those on level i.
    """
    maps, paddings = layer.valid_maps(memory)
    sampling, sources = layer.sampling(maps[i]), layer.sources(maps, paddings, i)
    ratios = memory.valid_ratio[0]
    found = {}
    for level, source in sources.items():
        _, scale = layer.convolved(source, sampling, paddings[i])
        size = (source.x.shape[2], source.x.shape[3])
        ratio = ratios[min(level, i)]  # the coarser map has been enlarged to the cells of level i
        at = source.convolution.locations(sampling.offsets, size)[0].flatten(0, 1).flatten(1, 2) / ratio
        found[level] = at, sampling.modulation[0].flatten(1).T * scale[0].mean()
    at, weight = found[i]
    absent = at, torch.zeros_like(weight)
    locations, weights = zip(*(found.get(level, absent) for level in range(len(maps))), strict=True)
    return torch.stack(locations, dim=1), torch.stack(weights, dim=1)


def dat_view(call: Call, selection: Selection) -> PointsView:
    """Of DAT's ``DeformableAttention``: the deformed grid of points of each group, to which all cells attend.

    ``layer`` is the index of the block in its stage of the backbone, which is part of the name.
    """
    attention = call.module
    assert isinstance(attention, dat_attention.DeformableAttention)
    (x,) = call.arguments
    points = attention.points(attention.proj_q(x))[0].flip(-1)  # (G, h, w, 2), (x, y) from -1, the first cell, to 1
    size = points.new_tensor([x.shape[3], x.shape[2]])
    centers = ((points + 1) / 2 * (size - 1) + 0.5) / size
    return PointsView(
        stage=call.stage, layer=int(call.name.split(".")[-1]), name=call.name, points=centers.float().cpu()
    )
