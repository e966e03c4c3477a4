"""Grids of tokens."""

import pytest

from detrs.explanation.tokens import fitting_grid, grid_tokens, spread


def test_all_tokens_where_they_fit() -> None:
    chosen, grids = grid_tokens(((5, 7), (2, 3)), 35)
    assert chosen.tolist() == list(range(41)) and grids == ((5, 7), (2, 3))


def test_the_middle_of_equal_parts() -> None:
    assert spread(12, 3).tolist() == [2, 6, 10]
    assert spread(7, 7).tolist() == list(range(7))
    chosen, grids = grid_tokens(((6, 12), (2, 3)), 8)
    assert grids == ((2, 4), (2, 3))
    assert chosen.tolist() == [13, 16, 19, 22, 49, 52, 55, 58, *range(72, 78)]


@pytest.mark.parametrize("shape", [(1, 1), (97, 131), (1, 977), (977, 1), (3, 400)])
@pytest.mark.parametrize("limit", [1, 2, 17, 400])
def test_grids_fit_and_are_no_finer_than_the_map(shape: tuple[int, int], limit: int) -> None:
    height, width = fitting_grid(shape, limit)
    assert 1 <= height <= shape[0] and 1 <= width <= shape[1] and height * width <= limit
    if min(shape) > 50 and limit == 400:
        assert height * width > 0.9 * limit and abs(height / width - shape[0] / shape[1]) < 0.1
