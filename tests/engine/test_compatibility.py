"""Batches that cannot be divided into equal micro-batches."""

import pytest

from detrs.engine.compatibility import check_divisible
from detrs.errors import UserError


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulate", "message"),
    [
        (8, 3, 1, r"data\.batch_size 8 cannot be divided among 3 processes .*choose a multiple of 3"),
        (16, 1, 3, r"data\.batch_size 16 cannot be divided among 1 process .*runtime\.accumulate.* a multiple of 3"),
        (4, 2, 4, "multiple of 8"),
        (2, 4, 1, "multiple of 4"),
    ],
)
def test_a_batch_that_cannot_be_divided(batch_size: int, world_size: int, accumulate: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_divisible(batch_size, world_size, accumulate)


@pytest.mark.parametrize(("batch_size", "world_size", "accumulate"), [(1, 1, 1), (16, 4, 4), (12, 3, 2)])
def test_a_batch_that_can_be_divided(batch_size: int, world_size: int, accumulate: int) -> None:
    check_divisible(batch_size, world_size, accumulate)
