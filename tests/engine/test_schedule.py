import math

import pytest
import torch

from detrs.config import ScheduleConfig
from detrs.engine.schedule import Pace, advance, lr_factor


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


def test_remaining_steps_are_those_of_the_epochs_or_those_that_fit() -> None:
    pace = Pace(total_steps=1000, budget_seconds=110)
    assert pace.remaining(step=100, seconds=60, reserve=10, step_seconds=0.5) == 80  # the reserve taken off
    assert pace.remaining(step=950, seconds=60, reserve=10, step_seconds=0.5) == 50
    assert pace.remaining(step=100, seconds=60, reserve=10, step_seconds=None) == 900
    assert pace.remaining(step=100, seconds=100, reserve=10, step_seconds=None) == 0
    assert pace.remaining(step=0, seconds=0, reserve=200, step_seconds=0.5) == 0
    assert Pace(1000, None).remaining(step=250, seconds=1e9, reserve=1e9, step_seconds=9) == 750


def test_fraction_of_steps_or_time() -> None:
    pace = Pace(total_steps=1000, budget_seconds=110)
    assert pace.fraction(step=100, seconds=90, reserve=10) == pytest.approx(0.9)
    assert pace.fraction(step=950, seconds=50, reserve=10) == pytest.approx(0.95)
    assert pace.fraction(step=0, seconds=0, reserve=200) == 1
    assert Pace(1000, None).fraction(step=250, seconds=1e9, reserve=1e9) == 0.25


def test_progress_at_a_constant_pace_is_the_fraction_of_the_steps() -> None:
    progress = 0.0
    for step in range(1, 1001):
        progress = advance(progress, remaining=1000 - step)
        assert progress == pytest.approx(step / 1000, rel=1e-10)
    assert progress == 1


def test_progress_does_not_jump_when_fewer_steps_fit() -> None:
    """Half of a run is done, and then only 10 more steps fit: each advances by a tenth of the rest."""
    seen = [0.5]
    for remaining in range(9, -1, -1):
        seen.append(advance(seen[-1], remaining))
    assert seen == pytest.approx([0.5 + 0.05 * step for step in range(11)])


def test_evaluation_must_leave_time_for_the_last_one() -> None:
    pace = Pace(1000, budget_seconds=100)
    assert pace.allows(seconds=79.9, reserve=10)
    assert not pace.allows(seconds=80.1, reserve=10)
    assert Pace(1000, None).allows(seconds=math.inf, reserve=math.inf)
