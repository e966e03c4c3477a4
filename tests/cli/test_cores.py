"""The number of threads beside other programs."""

import logging
from typing import NamedTuple

import psutil
import pytest
import torch

from detrs.cli.cores import threads_beside_others
from detrs.config import RuntimeConfig

CPU = RuntimeConfig(device="cpu")


class Core(NamedTuple):
    idle: float
    nice: float = 0.0


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> list[Core]:
    """The load of four cores, to be filled."""
    found: list[Core] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_times_percent", lambda **_: found)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [0, 1, 2, 3], raising=False)
    return found


@pytest.mark.parametrize(
    ("load", "threads"),
    [
        ([Core(100)] * 4, None),
        ([Core(90), Core(95), Core(100), Core(97)], None),
        ([Core(0), Core(100), Core(100), Core(98)], 3),
        ([Core(0)] * 4, 1),
        ([Core(0, nice=100), Core(3, nice=97), Core(100), Core(100)], None),  # low priority yields
        ([Core(100)] * 4 + [Core(0)] * 4, None),  # of another set of cores
    ],
)
def test_one_thread_per_free_core(
    cores: list[Core], load: list[Core], threads: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    cores.extend(load)
    with caplog.at_level(logging.WARNING, "detrs"):
        assert threads_beside_others(CPU, {}) == threads
    assert ("--threads" in caplog.text) == (threads is not None)


def test_a_short_burst_does_not_count(cores: list[Core], monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as the installation that precedes the command."""
    loads = iter([[Core(0)] * 4, [Core(10)] * 4, [Core(99)] * 4, [Core(98)] * 4, [Core(0)] * 4])
    monkeypatch.setattr(psutil, "cpu_times_percent", lambda **_: next(loads))
    assert threads_beside_others(CPU, {}) is None


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "WORLD_SIZE"])
def test_settings_are_kept(cores: list[Core], variable: str) -> None:
    cores.extend([Core(0)] * 4)
    assert threads_beside_others(RuntimeConfig(device="cpu", threads=4), {}) == 4
    assert threads_beside_others(CPU, {variable: "4"}) is None
