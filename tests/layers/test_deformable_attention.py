import math

import torch

from detrs.layers.deformable_attention import (
    DeformableAttention,
    DeformableSelfAttention,
    OwnLevelSelfAttention,
    on_padded_maps,
    star,
)
from detrs.layers.neck import centers
from detrs.ops.ms_deform_attn.reference import locate
from detrs.structures import Pyramid

SHAPES = ((5, 7), (3, 2))
TOKENS = 5 * 7 + 3 * 2


def pyramid(dim: int, valid_ratio: torch.Tensor | None = None) -> Pyramid:
    ratio = torch.ones(2, 2, 2) if valid_ratio is None else valid_ratio
    tokens = torch.randn(2, TOKENS, dim, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, TOKENS, dtype=torch.bool)
    reference = centers(SHAPES, ratio * torch.tensor([[7.0, 5.0], [2.0, 3.0]]))
    sizes = torch.tensor([[40, 56], [40, 56]])
    return Pyramid(tokens, torch.zeros_like(tokens), reference, padding, SHAPES, ratio, sizes)


def test_star_of_eight_heads() -> None:
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    offsets = star(8, 3, 4)
    for head, direction in enumerate(directions):
        for point in range(4):
            expected = torch.tensor(direction) * (point + 1.0)
            torch.testing.assert_close(offsets[head, 2, point], expected, atol=1e-5, rtol=0)


def test_initial_offsets_are_the_star_with_equal_weights() -> None:
    layer = DeformableAttention(64, num_heads=4, num_levels=2, num_points=3)
    torch.testing.assert_close(layer.sampling_offsets.bias, star(4, 2, 3).flatten())
    for parameter in (layer.sampling_offsets.weight, *layer.attention_weights.parameters()):
        assert parameter.abs().max() == 0
    bound = math.sqrt(6 / 128)
    assert 0.9 * bound < layer.value_proj.weight.abs().max() <= bound


def test_offsets_around_a_point_are_pixels_of_each_level() -> None:
    ratio = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[0.5, 0.8], [0.5, 1.0]]])
    offsets = torch.tensor([1.0, 2.0]).expand(2, 1, 1, 2, 2)
    point = on_padded_maps(torch.tensor([[[0.4, 0.6]], [[0.4, 0.6]]]), ratio)
    locations = locate(offsets, point, SHAPES, (1, 1))[:, 0, 0]  # (B, L, 2)
    expected = torch.tensor(
        [
            [[0.4 + 1 / 7, 0.6 + 2 / 5], [0.4 + 1 / 2, 0.6 + 2 / 3]],
            [[0.2 + 1 / 7, 0.48 + 2 / 5], [0.2 + 1 / 2, 0.6 + 2 / 3]],
        ]
    )
    torch.testing.assert_close(locations, expected)


def test_the_last_point_of_the_star_lies_on_the_edge_of_a_box() -> None:
    offsets = star(8, 2, 4)[None, None].flatten(3, 4)
    box = on_padded_maps(torch.tensor([[[0.5, 0.4, 0.2, 0.6]]]), torch.tensor([[[0.5, 1.0], [1.0, 1.0]]]))
    locations = locate(offsets, box, SHAPES, (4, 4))
    torch.testing.assert_close(locations[0, 0, 0, 7], torch.tensor([0.6, 0.4]), atol=1e-6, rtol=0)  # to the right
    torch.testing.assert_close(locations[0, 0, 2, 7], torch.tensor([0.5, 0.7]), atol=1e-6, rtol=0)  # below
    torch.testing.assert_close(locations[0, 0, 0, 3], torch.tensor([0.3, 0.4]), atol=1e-6, rtol=0)  # half is padding


def test_padded_tokens_have_no_influence() -> None:
    layer = DeformableAttention(64, num_heads=4, num_levels=2, num_points=3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    memory = pyramid(64)
    memory.padding[:, 11:17] = True
    query, point = torch.randn(2, 9, 64), torch.rand(2, 9, 2)
    before = layer(query, point, memory)
    memory.tokens[memory.padding] = 1e4
    assert torch.equal(layer(query, point, memory), before)


def test_output_is_the_projected_bilinear_sample() -> None:
    """One head, one point, offset zero: the result is the bilinear value at the reference, projected."""
    layer = DeformableAttention(32, num_heads=1, num_levels=2, num_points=1)
    with torch.no_grad():
        layer.sampling_offsets.bias.zero_()
        layer.attention_weights.bias.copy_(torch.tensor([0.0, -torch.inf]))  # the first level only
    memory = pyramid(32)
    row, column = 3, 5  # the center of this cell, where bilinear interpolation is exact
    point = torch.tensor([[[(column + 0.5) / 7, (row + 0.5) / 5]]]).expand(2, 1, 2)
    expected = layer.output_proj(layer.value_proj(memory.tokens[:, row * 7 + column]))
    torch.testing.assert_close(layer(torch.randn(2, 1, 32), point, memory)[:, 0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_that_attend_to_their_own_level_have_a_pyramid_of_one_level() -> None:
    torch.manual_seed(0)
    memory = pyramid(16, torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[4 / 7, 0.8], [0.5, 2 / 3]]]))
    memory.padding[1, 4:7], memory.padding[1, -2:] = True, True
    own, alone = OwnLevelSelfAttention(16, 2, 3), DeformableSelfAttention(16, 2, 1, 3)
    for parameter in own.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    alone.load_state_dict(own.state_dict())
    first = slice(0, 5 * 7)
    for part, shape, level in ((first, SHAPES[0], 0), (slice(5 * 7, None), SHAPES[1], 1)):
        expected = alone(
            Pyramid(
                memory.tokens[:, part],
                memory.position[:, part],
                memory.reference_points[:, part],
                memory.padding[:, part],
                (shape,),
                memory.valid_ratio[:, level : level + 1],
                memory.image_sizes,
            )
        )
        torch.testing.assert_close(own(memory)[:, part], expected)
    disturbed = memory.with_tokens(memory.tokens.index_fill(1, torch.arange(5 * 7, TOKENS), 7.0))
    assert torch.equal(own(disturbed)[:, first], own(memory)[:, first])
