import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detrs.ops import use
from detrs.ops.ms_deform_attn import benchmark


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "LEVELS", ((5, 7), (3, 2)))
    monkeypatch.setattr(benchmark, "QUICK", (benchmark.Case(11), benchmark.Case(0, 2, "uniform", backward=True)))
    monkeypatch.setattr(
        benchmark.shutil, "which", lambda name: None
    )  # without a compiler, because compiling takes a minute
    monkeypatch.setattr(benchmark, "_peak", lambda case, name, device: 1.5)


def test_every_implementation_is_timed_and_kept(detrs: Callable) -> None:
    done = detrs("benchmark", "ops", "--repeats", 1, "--device", "cpu", "--json", "--output", "lines.jsonl")
    assert done.code == 0
    first, second = done.json["cases"]
    names = {"detrs", "grid_sample", "detrs fused +", "detrs +", "grid_sample +"}
    assert set(first["milliseconds"]) == set(second["milliseconds"]) == names
    assert all(time > 0 for time in second["milliseconds"].values())
    assert second["name"] == "encoder, 2 x, uniform, float32, forward + backward"
    assert [json.loads(line) for line in Path("lines.jsonl").read_text().splitlines()] == [first, second]


def test_all_implementations_compute_the_same() -> None:
    for case in benchmark.QUICK:
        given = benchmark.inputs(case, "cpu")
        outputs = [run(given) for run in benchmark.implementations("cpu").values()]
        assert len(outputs) == 5 and all((output - outputs[0]).abs().max() < 1e-5 for output in outputs)


def test_unknown_subject(detrs: Callable) -> None:
    done = detrs("benchmark", "opps")
    assert done.code == 2 and "Did you mean 'ops'" in done.message


def test_nothing_comes_from_the_host_while_a_gpu_is_timed() -> None:
    """Launches are recorded in a CUDA graph, which cannot contain copies of Python numbers."""

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            assert function is not torch.ops.aten.lift_fresh.default, "a tensor was created from Python numbers"
            return function(*args, **(kwargs or {}))

    given = benchmark.inputs(benchmark.QUICK[0], "cpu")
    for run in benchmark.implementations("cpu").values():
        with use("numba"):
            run(given)
            with Recording():
                run(given)
