"""The process belongs to the program that uses the library: nothing global changes, and no setting of it matters."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).with_name("guest.py")
SOURCE = Path(__file__).parents[1] / "src"


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, str(SCRIPT), str(folder), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("guest") / "plain")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Default dtype float64, warnings are errors, an Accelerator and its environment variables, NumPy raises, ..."""
    return run(tmp_path_factory.mktemp("guest") / "odd", "--odd")


@pytest.mark.parametrize("program", ["plain", "odd"])
def test_no_global_setting_changes(program: str, request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue(program)["changed"] == {}


@pytest.mark.parametrize("program", ["plain", "odd"])
def test_random_streams_of_the_program_continue(program: str, request: pytest.FixtureRequest) -> None:
    drawn = request.getfixturevalue(program)["drawn"]
    python, numpy, torch_stream = random.Random(7), np.random.RandomState(7), torch.Generator().manual_seed(7)
    dtype = torch.float64 if program == "odd" else torch.float32
    expected = [
        [python.random(), numpy.rand(), float(torch.rand((), generator=torch_stream, dtype=dtype))] for _ in drawn
    ]
    assert drawn == expected and len(drawn) == 13


def test_results_do_not_depend_on_the_settings_of_the_program(plain: dict[str, Any], odd: dict[str, Any]) -> None:
    for key in ("built", "reports", "weights", "scores", "detections", "explanation"):
        assert plain[key] == odd[key], key
