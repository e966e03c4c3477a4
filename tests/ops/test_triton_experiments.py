"""The GPU experiments, as far as they run without a GPU: the error message, lower bounds, and every launch."""

import importlib.util
import itertools
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from detrs.ops.ms_deform_attn import benchmark
from detrs.ops.ms_deform_attn.benchmark import Case

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "experiments.py"


@pytest.fixture
def experiments() -> ModuleType:
    spec = importlib.util.spec_from_file_location("experiments", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
def test_one_sentence_without_a_gpu() -> None:
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "The experiments time kernels on a GPU, but CUDA is not available.\n"


def test_lower_bounds_are_those_of_an_h200(experiments) -> None:
    """Lower bounds of the time at 800 x 1333."""
    assert experiments.lower_bound(Case(), *experiments.FORWARD) == pytest.approx(18.5, abs=0.1)
    assert experiments.lower_bound(Case(), *experiments.BACKWARD) == pytest.approx(31.8, abs=0.1)
    assert experiments.lower_bound(Case(dtype="bfloat16"), *experiments.FORWARD) == pytest.approx(13.2, abs=0.1)
    assert experiments.lower_bound(Case(300), *experiments.FORWARD) == pytest.approx(2.2, abs=0.1)
    assert experiments.lower_bound(Case(300), *experiments.BACKWARD) == pytest.approx(7.6, abs=0.2)


def test_blocks_of_queries_are_all_queries(experiments, monkeypatch) -> None:
    monkeypatch.setattr(benchmark, "LEVELS", ((9, 17), (3, 2)))
    monkeypatch.setattr(experiments, "DEVICE", torch.device("cpu"))
    order = experiments.in_blocks()
    assert order.sort().values.tolist() == list(range(9 * 17 + 6))
    assert order[:9].tolist() == [*range(8), 17] and order[64] == 8  # 8 x 8, then the pixel on its right


@pytest.mark.parametrize("name", ["E1", "E2", "E3", "E4", "E5", "E6"])
def test_everything_is_launched(experiments, monkeypatch, name) -> None:
    launched = []

    class Recorder:
        def __init__(self, kernel: object) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]):
            assert all(size > 0 for size in grid)
            return lambda *arguments, **options: launched.append((self.kernel, options))

    load = experiments.variant

    def variant(**names) -> ModuleType:
        kernels = ("_forward", "_backward", "_add", "_bin", "_accumulate_tile", "_gather")
        module = load(**names)
        vars(module).update({kernel: Recorder(kernel) for kernel in kernels})
        return module

    monkeypatch.setattr(experiments, "variant", variant)
    monkeypatch.setattr(experiments, "DEVICE", torch.device("cpu"))
    for stopwatch in ("microseconds", "host_microseconds"):
        monkeypatch.setattr(experiments, stopwatch, lambda work: 7.0 if work() is not experiments else 0)
    monkeypatch.setattr(experiments, "kernel_microseconds", lambda work: {"kernel": 7.0})
    monkeypatch.setattr(benchmark, "LEVELS", ((5, 7), (3, 2)))
    monkeypatch.setattr(
        benchmark.shutil, "which", lambda name: None
    )  # without a compiler, because compiling takes a minute
    lines = list(itertools.islice(experiments.EXPERIMENTS[name](), 3 if name in ("E5", "E6") else None))
    assert all(line["microseconds"] == 7 and math.isfinite(line.get("efficiency", 0)) for line in lines)
    expected = {
        "E1": {"_add", "_bin", "_accumulate_tile", "_gather"},
        "E2": {"_forward", "_backward", "_add"},
        "E3": {"_forward"},
    }
    expected["E4"] = expected["E1"] - {"_add"}
    assert {kernel for kernel, _ in launched} == expected.get(name, set())
    settings = [{key: value for key, value in options.items() if key != "points"} for _, options in launched]
    assert len({str(setting) for setting in settings}) >= {"E2": 18, "E4": 7}.get(name, 0)
