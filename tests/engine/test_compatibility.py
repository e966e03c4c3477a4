"""Batches that cannot be divided, and images too small for BatchNorm."""

from dataclasses import replace
from typing import Any

import pytest

from detrs.config import Experiment
from detrs.config.criterion import OneToMany
from detrs.data.digits import DigitsDataset
from detrs.engine.compatibility import check_batch_norm, check_divisible, for_data, object_limit
from detrs.errors import UserError
from detrs.presets import preset


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


def test_further_queries_must_suffice_for_all_repeats() -> None:
    start = preset("deformable-detr-tiny")

    def with_queries(number: int) -> Experiment:
        assignment = OneToMany(queries=number, repeats=6)
        return replace(start, criterion=replace(start.criterion, assignment=assignment))

    data = DigitsDataset("train", 2)  # at most ten objects
    for_data(with_queries(60), data, data)
    with pytest.raises(UserError, match=r"criterion\.assignment\.queries to at least 60, or .*repeats to fewer"):
        for_data(with_queries(59), data, data)
    mosaic = replace(with_queries(100), data=replace(start.data, mosaic=0.5))
    assert object_limit(mosaic, 10) == 16
    assert object_limit(replace(with_queries(240), data=mosaic.data), 10) is None


@pytest.mark.parametrize(
    ("images", "size", "norm", "dilated", "is_rejected"),
    [
        (1, (32, 32), "batch", False, True),
        (1, (32, 64), "batch", False, True),
        (2, (32, 32), "batch", False, False),
        (1, (33, 64), "batch", False, False),
        (1, (32, 32), "batch", True, False),
        (1, (32, 32), "frozen", False, False),
    ],
)
def test_one_value_per_channel_is_not_enough_for_batch_norm(
    images: int, size: tuple[int, int], norm: Any, dilated: bool, is_rejected: bool
) -> None:
    experiment = preset("deformable-detr-r50")
    backbone = replace(experiment.model.backbone, norm=norm, dilated=dilated)
    model: Any = experiment.model
    experiment = replace(
        experiment,
        model=replace(model, backbone=replace(backbone, stages=(5,) if dilated else (3, 4, 5))),
        data=replace(experiment.data, resize_to=size),
    )
    check_batch_norm(experiment, 2)
    if is_rejected:
        with pytest.raises(UserError, match="--batch-size 2 or more per process, --image-size 64"):
            check_batch_norm(experiment, images)
        check_batch_norm(experiment, images, is_synchronized=True)
    else:
        check_batch_norm(experiment, images)
