import itertools

import numpy as np
import pytest
import torch

from detrs.errors import UserError
from detrs.tiling import Tiling, Window, whole

SIZES = ((97, 211), (211, 97), (389, 613), (64, 64), (65, 64), (31, 257), (1021, 1009))  # (height, width)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tile", [64, 97, 211, 640])
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.75])
def test_tiles_cover_the_image_with_the_overlap(size: tuple[int, int], tile: int, overlap: float) -> None:
    tiling = Tiling(size=tile, overlap=overlap)
    windows = tiling.tiles(size)
    covered = np.zeros(size, dtype=bool)
    for window in windows:
        assert window.size == (min(tile, size[0]), min(tile, size[1]))
        assert 0 <= window.left < window.right <= size[1] and 0 <= window.top < window.bottom <= size[0]
        covered[window.top : window.bottom, window.left : window.right] = True
    assert covered.all() and len({*windows}) == len(windows)
    for axis, side in ((1, size[0]), (0, size[1])):
        starts = sorted({window[axis] for window in windows})
        assert starts[0] == 0 and starts[-1] == max(side - tile, 0)
        assert all(tile - (b - a) >= overlap * tile for a, b in itertools.pairwise(starts))
        fewer = len(starts) - 1  # as few as possible: with one tile less, the overlap would be smaller
        assert fewer == 0 or fewer * tile - (fewer - 1) * np.ceil(overlap * tile) < side
    assert windows == sorted(windows, key=lambda window: (window.top, window.left))


def test_views_end_with_the_whole_image() -> None:
    size = (300, 500)
    tiles = Tiling(size=256).tiles(size)
    assert len(tiles) == 6
    assert Tiling(size=256).views(size) == [*tiles, Window(0, 0, 500, 300)]
    assert Tiling(size=256, whole_image=False).views(size) == tiles
    for tile in (500, 640):
        assert Tiling(size=tile).views(size) == Tiling(size=tile).tiles(size) == [whole(size)]


def test_window_of_an_image() -> None:
    image = torch.arange(3 * 5 * 7).view(3, 5, 7)
    assert torch.equal(Window(2, 1, 6, 4).of(image), image[:, 1:4, 2:6])
    assert Window(2, 1, 6, 4).size == (3, 4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 31}, "^tile is 31, but must be an integer of at least 32"),
        ({"size": 0}, "^tile is 0"),
        ({"size": 64.5}, "^tile is 64.5"),
        ({"size": True}, "^tile is True"),
        ({"size": 64, "overlap": -0.1}, r"^overlap is -0.1, but must be in \[0, 0.9\]"),
        ({"size": 64, "overlap": 20}, "^overlap is 20"),
        ({"size": 64, "overlap": float("nan")}, "^overlap is nan"),
        ({"size": 64, "overlap": "x"}, "^overlap is 'x'"),
    ],
)
def test_values_out_of_range(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Tiling(**values)


def test_too_many_tiles() -> None:
    tiling = Tiling(size=32, overlap=0.0)
    assert len(tiling.tiles((32 * 64, 32 * 64))) == 4096
    with pytest.raises(UserError, match="^An image of 2049 x 2048 pixels has 4,160 tiles of 32 pixels.*use larger"):
        tiling.tiles((32 * 64, 32 * 64 + 1))
