import math

import pytest
import torch

from detrs.config import ScheduleConfig
from detrs.engine.schedule import Pace, lr_factor


def factors(config: ScheduleConfig, steps_per_epoch: int, batch_size: int = 16) -> list[float]:
    total = config.epochs * steps_per_epoch
    return [lr_factor(config, step, step / total, batch_size) for step in range(total)]


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 7, 11, 7393])
def test_step_schedule_is_that_of_pytorch(steps_per_epoch: int) -> None:
    config = ScheduleConfig(epochs=13, kind="step", drop_at=(5 / 13, 11 / 13))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    by_torch = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 11])
    ours = factors(config, steps_per_epoch)
    for epoch in range(13):
        lr = optimizer.param_groups[0]["lr"]
        for step in (epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch - 1):  # first and last of the epoch
            assert ours[step] == pytest.approx(lr, rel=1e-12), (epoch, step)
        optimizer.step()
        by_torch.step()


def test_cosine_falls_from_one_to_its_final_factor() -> None:
    config = ScheduleConfig(epochs=10, kind="cosine", final_lr_factor=0.02)
    ours = factors(config, 31)
    assert ours[0] == 1
    assert ours == sorted(ours, reverse=True)
    assert ours[155] == pytest.approx(0.51)  # half way: the mean of both ends
    assert lr_factor(config, 310, 1.0, 16) == pytest.approx(0.02)


@pytest.mark.parametrize("batch_size", [4, 16, 64])
def test_warmup_spans_the_same_number_of_images_at_any_batch_size(batch_size: int) -> None:
    config = ScheduleConfig(epochs=1, drop_at=(), warmup_steps=100)
    ours = factors(config, 100_000, batch_size)
    steps = 1600 // batch_size
    assert ours[steps - 2] < 1 and ours[steps - 1] == 1
    assert ours[:steps] == pytest.approx([(step + 1) / steps for step in range(steps)])
    assert set(ours[steps:]) == {1}


def test_warmup_is_over_after_a_tenth_of_a_short_run() -> None:
    config = ScheduleConfig(epochs=1, drop_at=(), warmup_steps=10_000)
    ours = factors(config, 200)
    assert ours[19] < 1 and set(ours[20:]) == {1}
    assert ours[0] > 0 and ours == sorted(ours)


def test_progress_follows_what_is_nearer_to_its_end() -> None:
    pace = Pace(total_steps=1000, budget_seconds=110)
    assert pace.progress(step=100, seconds=90, reserve=10) == pytest.approx(0.9)  # by time, the reserve taken off
    assert pace.progress(step=950, seconds=50, reserve=10) == pytest.approx(0.95)  # by steps
    assert pace.progress(step=0, seconds=100, reserve=10) == 1
    assert pace.progress(step=0, seconds=0, reserve=200) == 1
    assert Pace(1000, None).progress(step=250, seconds=1e9, reserve=1e9) == 0.25


def test_evaluation_must_leave_time_for_the_last_one() -> None:
    pace = Pace(1000, budget_seconds=100)
    assert pace.allows(seconds=79.9, reserve=10)
    assert not pace.allows(seconds=80.1, reserve=10)
    assert Pace(1000, None).allows(seconds=math.inf, reserve=math.inf)
