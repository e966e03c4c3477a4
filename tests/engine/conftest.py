import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import run_tiny
import torch

from detrs.engine import trainer

SCRIPT = Path(__file__).with_name("run_tiny.py")
SOURCE = Path(__file__).parents[2] / "src"
NUMERICS = Path(__file__).parents[1] / "numerics"


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """``run_tiny.py`` as a module."""
    return run_tiny


@pytest.fixture(autouse=True)
def no_drawings(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Nothing is drawn, which takes most of the time of a tiny run, unless a test uses ``drawings``."""
    if "drawings" not in request.fixturenames:
        for name in ("save_training_batch", "save_predictions", "save_curves"):
            monkeypatch.setattr(trainer, name, lambda *arguments: None)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def drawings() -> None:
    """Requested by a test that needs the drawings of a run."""


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start ``run_tiny.py`` as a process group of its own: ``start(*arguments, launcher=(...))``."""

    def start(*arguments: Any, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (SOURCE, NUMERICS)))}
        command = [sys.executable, *launcher, str(SCRIPT), *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)

    return start


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[trainer.Trainer]:
    """The trainers of all runs of a test, each added when it is built."""
    built: list[trainer.Trainer] = []
    build = trainer.Trainer.__init__

    def remember(self: trainer.Trainer, *arguments: Any, **options: Any) -> None:
        build(self, *arguments, **options)
        built.append(self)

    monkeypatch.setattr(trainer.Trainer, "__init__", remember)
    return built
