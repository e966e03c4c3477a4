"""Two processes on one CPU against one process."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from detrs.engine.train import training

SETTINGS: dict[str, Any] = {
    "model": {"dropout": 0.0},
    "data": {"augment": "flip", "min_scale": 1.0},
    "runtime": {"device": "cpu", "accumulate": 2, "log_every": 2},
}


def test_two_processes_give_the_curve_of_one(
    tiny: ModuleType, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    curve = tmp_path / "curve.json"
    process = start(tmp_path / "two", "--curve", curve, json.dumps(SETTINGS), launcher=launcher)
    alone = tiny.experiment(**{**SETTINGS, "runtime": {"device": "cpu", "log_every": 2}})
    expected = list(training(alone, tmp_path / "one"))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    together = json.loads(curve.read_text())
    assert len(together) == len(expected) == 6
    for (loss, grad_norm, ap50), report in zip(together, expected, strict=True):
        assert loss == pytest.approx(report.loss, rel=1e-4)
        assert grad_norm == pytest.approx(report.grad_norm, rel=1e-3)
        assert (ap50 is None) == (report.evaluation is None)
        if report.evaluation is not None:
            assert ap50 == pytest.approx(report.evaluation.ap50, abs=0.02)
    steps = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in steps] == ["step", "step", "evaluation", "step", "step", "evaluation"]
    assert (tmp_path / "two" / "best.safetensors").exists() and not (tmp_path / "two" / "run.lock").exists()
