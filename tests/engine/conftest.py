import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from detrs.engine import evaluate, trainer

SCRIPT = Path(__file__).with_name("run_tiny.py")
SOURCE = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """``run_tiny.py`` as a module."""
    spec = importlib.util.spec_from_file_location("run_tiny", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def tiny_data(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Every data set is the tiny one; and no time goes into pictures, unless a test asks for ``pictures``."""
    monkeypatch.setattr(trainer, "open_dataset", tiny.open_dataset)
    monkeypatch.setattr(evaluate, "open_dataset", tiny.open_dataset)
    if "pictures" not in request.fixturenames:
        for name in ("save_training_batch", "save_predictions", "save_curves"):
            monkeypatch.setattr(trainer, name, lambda *arguments: None)
    torch.set_num_threads(1)


@pytest.fixture
def pictures() -> None:
    """Asked for by a test that wants the pictures of a run."""


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start ``run_tiny.py`` as a process group of its own: ``start(*arguments, launcher=(...))``."""

    def start(*arguments: Any, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
        command = [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)

    return start
