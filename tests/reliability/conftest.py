from collections.abc import Iterator

import pytest
import torch
from sandbox import Sandbox

from detrs.engine import trainer
from detrs.ops import use


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, nothing compiled, nothing drawn."""
    for name in ("save_training_batch", "save_predictions", "save_curves"):
        monkeypatch.setattr(trainer, name, lambda *arguments: None)
    torch.set_num_threads(1)
    with use("reference"):
        yield


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """The server that starts processes for faults and attacks."""
    with Sandbox() as server:
        yield server
