import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from detrs.errors import UserError
from detrs.layers.neck import (
    ChannelMapper,
    LevelEmbedding,
    PyramidNeck,
    centers,
    check_padding,
    normalized_projection,
    padding_at,
    plain_projection,
    valid_cells,
    valid_group_norm,
    valid_size,
    whole_map,
)
from detrs.layers.position import SinePosition
from detrs.layers.queries import proposal_anchors

NO_PADDING = torch.zeros(2, 320, 352, dtype=torch.bool)


def test_sizes_of_levels_and_inputs_of_further_levels() -> None:
    features = [torch.randn(2, 3, 40, 44), torch.randn(2, 5, 20, 22), torch.randn(2, 7, 10, 11)]
    mapper = ChannelMapper((3, 5, 7), 32, 5, normalized_projection)
    assert [level.shape[-2:] for level in mapper(features, NO_PADDING)] == [
        (40, 44),
        (20, 22),
        (10, 11),
        (5, 6),
        (3, 3),
    ]
    assert mapper.downsamples[0][0].in_channels == 7  # the backbone's last map
    assert mapper.downsamples[1][0].in_channels == 32  # then the level before


def test_tokens_are_row_major_and_maps_is_the_inverse() -> None:
    neck = PyramidNeck(
        ChannelMapper((3, 5), 32, 3, normalized_projection), SinePosition(32, -0.5), LevelEmbedding(3, 32)
    )
    features = [torch.randn(2, 3, 12, 14), torch.randn(2, 5, 6, 7)]
    padding = torch.zeros(2, 96, 112, dtype=torch.bool)
    pyramid = neck(features, padding)
    assert pyramid.shapes == ((12, 14), (6, 7), (3, 4))
    for level, expected in zip(pyramid.maps(), neck.mapper(features, padding), strict=True):
        torch.testing.assert_close(level, expected)
    assert pyramid.position.shape == pyramid.tokens.shape == (2, 12 * 14 + 6 * 7 + 3 * 4, 32)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_group_norm_of_valid_cells_is_that_of_the_image_without_padding(dtype: torch.dtype, atol: float) -> None:
    norm = nn.GroupNorm(32, 64).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, padding = torch.randn(2, 64, 11, 13, dtype=dtype) * 3 + 7, torch.zeros(2, 11, 13, dtype=torch.bool)
    torch.testing.assert_close(valid_group_norm(norm, x, padding), norm(x), atol=atol, rtol=0)
    padding[1, 7:], padding[1, :, 5:] = True, True
    found = valid_group_norm(norm, x, padding)
    assert found.dtype == dtype
    torch.testing.assert_close(found[:1], norm(x[:1]), atol=atol, rtol=0)
    torch.testing.assert_close(found[1:, :, :7, :5], norm(x[1:, :, :7, :5]), atol=atol, rtol=0)


def test_with_masked_group_norm_tokens_do_not_depend_on_padding() -> None:
    """Given the backbone's maps; further levels have a 3x3 convolution, which reaches into the padding."""
    results = {}
    for apply in (valid_cells, whole_map):
        torch.manual_seed(0)
        mapper = ChannelMapper((3, 5), 32, 4, normalized_projection, apply)
        neck = PyramidNeck(mapper, SinePosition(32, -0.5), LevelEmbedding(4, 32))
        maps = [torch.randn(1, 3, 24, 20), torch.randn(1, 5, 12, 10)]
        padding = torch.ones(1, 192, 160, dtype=torch.bool)
        padding[:, :128, :96] = False
        cropped = [maps[0][..., :16, :12], maps[1][..., :8, :6]]
        alone = neck(cropped, padding[:, :128, :96])
        padded = neck(maps, padding)
        kept = ~padded.padding[0]
        assert kept.sum() == alone.tokens.shape[1] == 16 * 12 + 8 * 6 + 4 * 3 + 2 * 2
        torch.testing.assert_close(padded.position[:, kept], alone.position)
        results[apply] = (padded.tokens[:, kept] - alone.tokens).abs()
    assert results[valid_cells].max() < 1e-5 and results[whole_map].mean() > 1e-2


def test_plain_projection_without_level_embedding_is_a_convolution_and_sine_positions() -> None:
    """The neck of DETR."""
    neck = PyramidNeck(ChannelMapper((3,), 32, 1, plain_projection), SinePosition(32, 0.0))
    feature, padding = torch.randn(2, 3, 5, 7), torch.zeros(2, 40, 56, dtype=torch.bool)
    padding[1, :, 32:] = True
    pyramid = neck([feature], padding)
    torch.testing.assert_close(pyramid.maps()[0], neck.mapper.projections[0](feature))
    torch.testing.assert_close(
        pyramid.position.unflatten(1, (5, 7)), SinePosition(32, 0.0)(padding_at(padding, (5, 7)))
    )
    assert {name for name, _ in neck.named_parameters()} == {f"mapper.projections.0.{n}" for n in ("weight", "bias")}
    assert neck.double()([feature.double()], padding).position.dtype == torch.float64  # the dtype of the weights


def test_padding_of_a_level_is_that_of_its_nearest_pixel() -> None:
    padding = torch.zeros(2, 97, 131, dtype=torch.bool)
    padding[1, 61:] = True
    padding[1, :, 83:] = True
    level = padding_at(padding, (13, 17))
    rows, columns = torch.arange(13) * 97 // 13, torch.arange(17) * 131 // 17
    assert torch.equal(level, padding[:, rows][:, :, columns])


def padded(rows: slice, columns: slice) -> torch.Tensor:
    """Of two images: the first has none, the second has it outside of a rectangle."""
    padding = torch.ones(2, 97, 131, dtype=torch.bool)
    padding[0] = False
    padding[1, rows, columns] = False
    return padding


HOLE = torch.zeros(2, 97, 131, dtype=torch.bool)
HOLE[1, 5, 7] = True


@pytest.mark.parametrize(
    "padding",
    [
        padded(slice(61), slice(1, None)),
        padded(slice(1, None), slice(83)),
        padded(slice(20, 60), slice(20, 60)),
        padded(slice(0, 97, 2), slice(131)),
        HOLE,
    ],
    ids=["left", "top", "everywhere", "rows between", "hole"],
)
def test_padding_that_is_not_right_and_bottom_is_rejected(padding: torch.Tensor) -> None:
    neck = PyramidNeck(ChannelMapper((3,), 32, 1, normalized_projection), SinePosition(32, -0.5))
    features = [torch.randn(2, 3, 13, 17)]
    with pytest.raises(UserError, match="right and at the bottom .* image 1 of"):
        neck(features, padding)
    meta = neck.to("meta")([features[0].to("meta")], padding.to("meta"))  # a device whose answer would be late
    assert meta.tokens.shape == (2, 13 * 17, 32)


@pytest.mark.parametrize("size", [(97, 131), (1, 1), (96, 131), (97, 130)])
def test_padding_right_and_bottom_is_accepted(size: tuple[int, int]) -> None:
    check_padding(padded(slice(size[0]), slice(size[1])))
    check_padding(torch.zeros(0, 97, 131, dtype=torch.bool))


def test_padding_is_checked_only_where_its_values_can_be_read() -> None:
    neck = PyramidNeck(ChannelMapper((3,), 32, 1, normalized_projection), SinePosition(32, -0.5)).eval()
    features, padding = [torch.randn(2, 3, 13, 17)], padded(slice(61), slice(83))
    expected = neck(features, padding).tokens

    class Tokens(nn.Module):
        def forward(self, features: list[torch.Tensor], padding: torch.Tensor) -> torch.Tensor:
            return neck(features, padding).tokens

    program = torch.export.export(Tokens(), (features, padding), strict=False)
    torch.testing.assert_close(program.module()(features, padding), expected)
    mapped = torch.func.vmap(Tokens())([features[0][None]], padding[None])
    torch.testing.assert_close(mapped[0], expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        check_padding(mode.from_tensor(padding))


def test_valid_size_is_width_then_height() -> None:
    padding = torch.zeros(1, 10, 20, dtype=torch.bool)
    padding[:, 4:] = True
    padding[:, :, 15:] = True
    assert valid_size(padding).tolist() == [[15.0, 4.0]]


def test_image_sizes_are_those_without_padding_in_pixels() -> None:
    """(height, width), whatever the size of the maps."""
    neck = PyramidNeck(ChannelMapper((3,), 32, 2, normalized_projection), SinePosition(32, -0.5), LevelEmbedding(2, 32))
    padding = torch.zeros(3, 97, 131, dtype=torch.bool)
    padding[1, 61:], padding[1, :, 83:], padding[2, :, 7:] = True, True, True
    pyramid = neck([torch.randn(3, 3, 13, 17)], padding)
    assert pyramid.image_sizes.tolist() == [[97, 131], [61, 83], [97, 7]]
    assert pyramid.image_sizes.dtype == torch.int64


def test_valid_ratio_is_the_valid_fraction_of_each_level() -> None:
    neck = PyramidNeck(ChannelMapper((3,), 32, 2, normalized_projection), SinePosition(32, -0.5), LevelEmbedding(2, 32))
    padding = torch.zeros(1, 80, 160, dtype=torch.bool)
    padding[:, 32:] = True
    padding[:, :, 120:] = True
    ratio = neck([torch.randn(1, 3, 10, 20)], padding).valid_ratio
    torch.testing.assert_close(ratio, torch.tensor([[[0.75, 0.4], [0.8, 0.4]]]))  # 8 of 10 columns, 2 of 5 rows


def test_centers_are_those_of_the_image_without_padding() -> None:
    points = centers(((2, 4),), torch.tensor([[[2.0, 2.0]]]))[0].unflatten(0, (2, 4))
    torch.testing.assert_close(points[0, :, 0], torch.tensor([0.25, 0.75, 1.25, 1.75]))  # half the width is padding
    torch.testing.assert_close(points[:, 0, 1], torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize("size", [70, 71, 80, 97])
def test_padding_does_not_decide_which_proposals_are_usable(size: int) -> None:
    """The center of the first of 50 cells is 0.01, the limit of usable proposals: rounding by one bit would matter."""
    neck = PyramidNeck(ChannelMapper((3,), 32, 1, normalized_projection), SinePosition(32, -0.5), LevelEmbedding(1, 32))
    padding = torch.ones(1, 8 * 7, 8 * size, dtype=torch.bool)
    padding[:, : 8 * 3, : 8 * 50] = False
    _, usable = proposal_anchors(neck([torch.randn(1, 3, 7, size)], padding))
    _, alone = proposal_anchors(neck([torch.randn(1, 3, 3, 50)], torch.zeros(1, 8 * 3, 8 * 50, dtype=torch.bool)))
    assert torch.equal(usable.unflatten(1, (7, size))[:, :3, :50], alone.unflatten(1, (3, 50)))
    assert not alone.unflatten(1, (3, 50))[:, :, 0].any()
