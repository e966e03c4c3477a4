"""The precision of a run: decided at its start, stored, and that of its evaluations."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from run_tiny import Tiny, training

from detrs.checkpoints import format
from detrs.checkpoints.detector import TrainedDetector
from detrs.engine.evaluate import evaluate_checkpoint
from detrs.engine.trainer import Trainer
from detrs.errors import UserError
from detrs.ops import use
from detrs.precision import VARIABLE


@pytest.fixture(autouse=True)
def reference() -> Iterator[None]:
    """Without the kernels for bfloat16, which take a minute to compile and have tests of their own."""
    with use("reference"):
        yield


@pytest.fixture
def types(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In which precision each model computes, in the order of its forward passes."""
    found: list[str] = []

    def remember(name: str) -> None:
        is_on = torch.is_autocast_enabled("cpu")
        found.append(f"{name} {torch.get_autocast_dtype('cpu') if is_on else torch.float32}".replace("torch.", ""))

    def wrap(owner: type, method: str, name: str, model: Callable[[Any], Any]) -> None:
        original = getattr(owner, method)

        def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
            handle = model(self).register_forward_pre_hook(lambda *_: remember(name))
            try:
                return original(self, *arguments, **options)
            finally:
                handle.remove()

        monkeypatch.setattr(owner, method, wrapped)

    wrap(Trainer, "step", "step", lambda trainer: trainer.state.detector)
    wrap(TrainedDetector, "detect", "detect", lambda detector: detector.module)
    return found


def runtime_of(folder: Path) -> str:
    settings = json.loads((folder / "experiment.json").read_text())
    return str(settings["runtime"]["precision"])


def test_a_run_is_resumed_in_the_precision_it_started_with(
    tiny: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    types: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(VARIABLE, "bf16")
    with caplog.at_level(logging.INFO, "detrs"):
        whole = list(training(tiny.EXPERIMENT, tmp_path / "whole"))
    assert "CPU thread, bf16\n" in caplog.text
    assert {*types} == {"step bfloat16", "detect bfloat16"} and types[0] == "step bfloat16"
    steps = training(tiny.EXPERIMENT, tmp_path / "run")
    first = [next(steps), next(steps)]
    steps.close()
    assert runtime_of(tmp_path / "run") == runtime_of(tmp_path / "whole") == "bf16"

    monkeypatch.setenv(VARIABLE, "fp32")  # a machine on which auto would be another one
    rest = list(training(tiny.EXPERIMENT, tmp_path / "run", resume=True))
    assert [each.loss for each in first + rest] == [each.loss for each in whole]
    assert {*types} == {"step bfloat16", "detect bfloat16"} and runtime_of(tmp_path / "run") == "bf16"

    best = tmp_path / "run" / "best.safetensors"
    promised = format.read_meta(best)
    assert promised["experiment"]["runtime"]["precision"] == "bf16"
    scores = evaluate_checkpoint(best, data=Tiny("val"), device="cpu", precision="bf16")
    assert scores.report.scalars() == promised["scores"], "the path of evaluation in training"
    assert scores.precision == "bf16" and scores.experiment is not None
    assert scores.experiment.runtime.precision == "bf16"
    found = {result["score"] for result in scores.results}
    in_float32 = evaluate_checkpoint(best, data=Tiny("val"), device="cpu")
    assert in_float32.precision == "fp32" and {result["score"] for result in in_float32.results} != found
    assert types[-1] == "detect float32"


def test_a_precision_that_is_given_continues_a_run_in_another_one(
    tiny: ModuleType, tmp_path: Path, types: list[str]
) -> None:
    bf16 = tiny.experiment(runtime={"precision": "bf16"})
    steps = training(bf16, tmp_path / "run")
    next(steps)
    steps.close()
    assert runtime_of(tmp_path / "run") == "bf16" and {*types} == {"step bfloat16"}
    types.clear()
    fp32 = tiny.experiment(runtime={"precision": "fp32"})
    assert len(list(training(fp32, tmp_path / "run", resume=True))) == 5
    assert runtime_of(tmp_path / "run") == "fp32" and {*types} == {"step float32", "detect float32"}


def test_a_precision_that_the_device_lacks_is_refused_first(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"precision 'fp16' is not supported on the CPU"):
        next(training(tiny.experiment(runtime={"precision": "fp16"}), tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    experiment = replace(tiny.EXPERIMENT, runtime=replace(tiny.EXPERIMENT.runtime, precision="half"))
    with pytest.raises(UserError, match=r"runtime.precision: 'half' is not one of 'auto', 'fp32', 'bf16', 'fp16'"):
        next(training(experiment, tmp_path / "run"))
