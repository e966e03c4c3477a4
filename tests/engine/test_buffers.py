"""Running statistics of BatchNorm in steps that are not finite, and states that are not finite."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from run_tiny import Tiny, training
from torch import nn

from detrs.backbones.frozen_norm import FrozenBatchNorm
from detrs.checkpoints import format
from detrs.config import Experiment
from detrs.engine import step as step_module
from detrs.engine.buffers import Buffers
from detrs.engine.trainer import Trainer
from detrs.structures import Batch


class Norms(nn.Module):
    """A BatchNorm, a frozen one, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = FrozenBatchNorm(nn.BatchNorm2d(3))
        self.register_buffer("mask", torch.full((2,), -torch.inf), persistent=False)


def test_all_changes_are_undone() -> None:
    net = Norms()
    net.norm(torch.randn(2, 3, 5, 7))
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    buffers = Buffers(net)
    buffers.remember()
    assert buffers.zero_or_nan() == 0
    for value in (torch.inf, torch.nan, 1e30):  # the variance of the last one overflows
        images = torch.randn(2, 3, 5, 7)
        images[1, 2, 3, 4] = value
        net.norm(images)
        assert torch.as_tensor(buffers.zero_or_nan()).isnan()
        buffers.restore()
        assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
        assert buffers.zero_or_nan() == 0


def test_constant_statistics_are_not_copied() -> None:
    assert len(Buffers(Norms().frozen)._buffers) == 0 and Buffers(Norms().frozen).zero_or_nan() == 0.0


@pytest.fixture
def batch_norm(tiny: ModuleType) -> Experiment:
    experiment: Experiment = tiny.experiment(model={"dropout": 0.0, "backbone": {"norm": "batch"}})
    return experiment


@pytest.fixture
def poisoned_step(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers of the steps (from 0) whose first image contains infinity."""
    steps: list[int] = []
    normalize = step_module.Preprocessing.normalize
    call = step_module.Step.__call__
    now = [0]

    def poison(self: Any, batch: Batch) -> Batch:
        batch = normalize(self, batch)
        if now[0] in steps:
            batch.images[0, 0, 5, 7] = torch.inf
        return batch

    def remember(self: Any, batches: Any) -> Any:
        now[0] = self.state.step
        try:
            return call(self, batches)
        finally:
            now[0] = -1

    monkeypatch.setattr(step_module.Preprocessing, "normalize", poison)
    monkeypatch.setattr(step_module.Step, "__call__", remember)
    yield steps


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return format.load(run / "last.safetensors").tensors


def test_run_with_a_poisoned_batch_is_resumed_bit_exactly(
    batch_norm: Experiment, tmp_path: Path, poisoned_step: list[int]
) -> None:
    poisoned_step.append(2)
    reports = list(training(batch_norm, tmp_path / "whole"))
    assert [report.skipped for report in reports] == [False, False, True, False, False, False]
    parts = training(batch_norm, tmp_path / "parts")
    for report in parts:
        if report.skipped:
            break
    parts.close()
    list(training(batch_norm, tmp_path / "parts", resume=True))
    whole, resumed = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    assert {"model", "average", "optimizer"} == {name.partition("/")[0] for name in whole}
    assert any("running_var" in name for name in whole)


def test_skipped_step_restores_the_statistics(
    batch_norm: Experiment, tmp_path: Path, poisoned_step: list[int], trainers: list[Trainer]
) -> None:
    poisoned_step.extend([1, 3])
    before: dict[str, torch.Tensor] = {}
    for report in training(batch_norm, tmp_path / "run"):
        state = {name: tensor.clone() for name, tensor in trainers[0].state.tensors().items()}
        if report.skipped:
            assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())
        elif before:
            assert not torch.equal(*(s["model/backbone.body.bn1.running_var"] for s in (state, before)))
        before = state


def test_failed_forward_pass_does_not_change_the_saved_statistics(
    batch_norm: Experiment, tmp_path: Path, trainers: list[Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = training(batch_norm, tmp_path / "run")
    next(steps)
    before = {name: tensor.clone() for name, tensor in trainers[0].state.tensors().items()}
    monkeypatch.setattr(trainers[0].runtime, "backward", lambda loss: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(steps)
    saved = format.load(tmp_path / "run" / "last.safetensors")
    assert saved.meta["step"] == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in saved.tensors.items())


def test_state_that_is_not_finite_does_not_replace_one_that_is(
    batch_norm: Experiment, tmp_path: Path, trainers: list[Trainer], caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    steps = training(batch_norm, run)
    for report in steps:
        if report.step == 4:
            break
    assert format.read_meta(run / "last.safetensors")["step"] == 3
    before = tensors(run)
    next(iter(trainers[0].state.detector.parameters())).data.fill_(torch.nan)
    with caplog.at_level(logging.INFO):
        steps.close()
    assert "step 4 is not saved (step 3 is kept): Cannot save" in caplog.text and "resume with" not in caplog.text
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(run).items())
    resumed = training(batch_norm, run, resume=True, train_set=Tiny("train"))
    assert next(resumed).step == 4
    resumed.close()
