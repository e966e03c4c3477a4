"""The number of threads beside other programs."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from detrs.cli import cores, demo, train
from detrs.cli.cores import threads_beside_others
from detrs.config import Experiment, RuntimeConfig

CPU = RuntimeConfig(device="cpu")


class Core(NamedTuple):
    """Times of a core; here percent of the time."""

    idle: float
    nice: float = 0.0


class Machine:
    """Four cores with a load, and a clock that only ``sleep`` moves."""

    def __init__(self) -> None:
        self.loads: list[list[Core]] = [[Core(100)] * 4]
        """Of each measurement; the last one remains."""
        self.now = 0.0
        self.times = [Core(0.0)] * 8

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        load = self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]
        for i, core in enumerate(load):
            old = self.times[i]
            self.times[i] = Core(old.idle + seconds * core.idle / 100, old.nice + seconds * core.nice / 100)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: list(found.times))
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [0, 1, 2, 3], raising=False)
    monkeypatch.setattr(cores, "time", SimpleNamespace(monotonic=lambda: found.now, sleep=found.sleep))
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
    machine: Machine, load: list[Core], threads: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    machine.loads = [load]
    with caplog.at_level(logging.WARNING, "detrs"):
        assert threads_beside_others(CPU, {}) == threads
    assert ("--threads" in caplog.text) == (threads is not None)


def test_a_short_burst_does_not_count(machine: Machine) -> None:
    """Such as the installation that precedes the command."""
    machine.loads = [[Core(0)] * 4, [Core(10)] * 4, [Core(99)] * 4, [Core(98)] * 4, [Core(0)] * 4]
    assert threads_beside_others(CPU, {}) is None


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "WORLD_SIZE"])
def test_settings_are_kept(machine: Machine, variable: str) -> None:
    machine.loads = [[Core(0)] * 4]
    assert threads_beside_others(RuntimeConfig(device="cpu", threads=4), {}) == 4
    assert threads_beside_others(CPU, {variable: "4"}) is None


@pytest.mark.parametrize("given", [(), ("--threads", "2")])
@pytest.mark.parametrize(("command", "words"), [(train, ("deformable-detr-tiny", "--data", "digits")), (demo, ())])
def test_the_measured_number_is_not_saved(
    command: Any, words: tuple[str, ...], given: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A resumed run measures again, unless --threads was given."""

    class Stop(Exception):
        """Instead of a training."""

    def stop(experiment: Experiment, *arguments: object, **options: object) -> None:
        found.append((experiment.runtime.threads, torch.get_num_threads()))
        raise Stop

    found: list[tuple[int | None, int]] = []
    monkeypatch.setattr("detrs.engine.train.train", stop)
    monkeypatch.setattr(cores, "threads_beside_others", lambda config: config.threads or 3)
    before = torch.get_num_threads()
    with pytest.raises(Stop):
        command.run([*words, *given, "--output", str(tmp_path / "run")])
    assert found == [(2, 2) if given else (None, 3)]
    assert torch.get_num_threads() == before
