import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import page
import precision as benchmark
import pytest
import scipy.stats

from detrs.engine.evaluate import Scores

MARKS = "<!-- precision: begin --><!-- precision: end -->"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for results and page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results" / "precision.jsonl")
    monkeypatch.setattr(page, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(MARKS)
    return tmp_path


def run(name: str, seed: int, ap: float, seconds: float = 10.0, **values: Any) -> dict[str, Any]:
    line = {"kind": "training", "preset": "detr-tiny", "data": "digits", "image_size": [128, 192], "steps": 70}
    own = {"seed": seed, "precision": name, "ap": ap, "ap_in_fp32": ap, "seconds": seconds}
    return {**line, **own, "device": "CPU (amx_bf16)", "threads": 1, **values}


def test_the_standard_error_is_that_of_welch() -> None:
    fp32, bf16 = [0.51, 0.48, 0.53], [0.47, 0.50, 0.49, 0.46]
    found = benchmark.difference(fp32, bf16)
    expected = scipy.stats.ttest_ind(bf16, fp32, equal_var=False).statistic
    assert found.mean / found.standard_error == pytest.approx(expected) and found.is_noise
    assert not benchmark.difference([0.51, 0.50, 0.52], [0.47, 0.48, 0.46]).is_noise


def test_the_table_of_training_pairs_seeds_and_marks_what_is_no_noise() -> None:
    runs = [run("fp32", seed, 0.5 + seed / 100, 20.0) for seed in (1, 2, 3)]
    runs += [run("bf16", seed, 0.505 + seed / 100, 10.0) for seed in (1, 2, 3)]
    alone = run("bf16", 4, 0.1)  # of which the other half is missing
    other = [run(name, 1, 0.5, steps=99) for name in benchmark.BOTH]  # one seed is no comparison
    (row,) = benchmark.training_table([*runs, alone, *other]).splitlines()[2:]
    assert row == "| detr-tiny, digits | 70 | 3 | 0.5200 ± 0.0100 | 0.5250 ± 0.0100 | +0.0050 ± 0.0082 | 2.00x |"
    runs[3:] = [run("bf16", seed, 0.4 + seed / 100) for seed in (1, 2, 3)]
    assert "-0.1000 ± 0.0082 (!)" in benchmark.training_table(runs)


def test_machines_have_their_own_tables() -> None:
    runs = [run(name, seed, 0.5) for name in benchmark.BOTH for seed in (1, 2)]
    others = [run(name, seed, 0.3, threads=2) for name in benchmark.BOTH for seed in (1, 2)]
    first, second = re.split(r"\*\*CPU \(amx_bf16\), 2 threads\*\*", benchmark.section([*runs, *others]))
    assert first.startswith("**CPU (amx_bf16), 1 thread**") and "0.3000" not in first and "0.5000" in first
    assert "| detr-tiny, digits | 70 | 2 | 0.3000 ± 0.0000 |" in second and benchmark.section([]) == ""


def test_checkpoints_of_a_preset_have_a_row_each(home: Path) -> None:
    half = {"ap": 0.5, "latency_ms": 30.0}
    line = {"kind": "checkpoint", "preset": "detr-tiny", "data": "digits", "num_images": 7, "device": "x", "threads": 2}
    for name in ("runs/first", "runs/second", "runs/first"):
        page.append(benchmark.RESULTS, {**line, "checkpoint": name, "fp32": half, "bf16": half})
    rows = benchmark.section(benchmark.newest(benchmark.RESULTS)).splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == [
        f"| runs/{each}, detr-tiny, digits" for each in ("first", "second")
    ]


@pytest.mark.parametrize(("change", "code"), [(0.0019, 0), (-0.0021, 1)])
def test_a_checkpoint_whose_ap_changes_is_reported(
    home: Path, monkeypatch: pytest.MonkeyPatch, change: float, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"kind": "checkpoint", "preset": "detr-tiny", "data": "digits", "num_images": 7, "device": "x", "threads": 2}
    numbers = {"fp32": {"ap": 0.5, "latency_ms": 30.0}, "bf16": {"ap": 0.5 + change, "latency_ms": 10.0}}
    monkeypatch.setattr(benchmark, "measure_checkpoint", lambda path, arguments: {**line, **numbers})
    assert benchmark.main(["best.safetensors"]) == code
    mark = " (!)" if code else ""
    row = f"| detr-tiny, digits | 7 | 0.5000 | {0.5 + change:.4f} | {change:+.4f}{mark} | 30.0 ms | 10.0 ms | 3.00x |"
    assert row in capsys.readouterr().out and row in (home / "README.md").read_text()
    assert json.loads(benchmark.RESULTS.read_text()) == {**line, **numbers}


def test_a_checkpoint_is_evaluated_and_timed_in_both(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    def stop(path: str, device: Any, precision: str = "auto") -> None:
        calls.append(("timed", precision))
        if precision == "bf16":
            raise InterruptedError

    def evaluate(path: str, *, data: Any, device: str, precision: str) -> Scores:
        calls.append(("evaluated", precision))
        return dataclasses.make_dataclass("S", ["report", "experiment"])(  # type: ignore[no-any-return]
            dataclasses.make_dataclass("R", ["ap", "ap50"])(0.1, 0.2), object()
        )

    monkeypatch.setattr(benchmark, "evaluate_checkpoint", evaluate)
    monkeypatch.setattr(benchmark, "open_file", stop)
    with pytest.raises(InterruptedError):
        benchmark.main(["best.safetensors"])
    assert calls == [("evaluated", "fp32"), ("evaluated", "bf16"), ("timed", "fp32"), ("timed", "bf16")]


def test_runs_of_a_seed_differ_in_precision_only() -> None:
    arguments = benchmark.PrecisionArguments(train="deformable-detr-tiny", data="digits", epochs=3)
    fp32, bf16 = (benchmark.experiment_of(arguments, 5, name) for name in benchmark.BOTH)
    assert (fp32.runtime.precision, bf16.runtime.precision) == benchmark.BOTH
    assert dataclasses.replace(bf16, runtime=fp32.runtime) == fp32
    assert (fp32.seed, fp32.schedule.epochs, fp32.evaluation.every_epochs, fp32.data.augment) == (5, 3, 3, "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Nothing to measure: expected checkpoints, --train PRESET or --draw."),
        (["--train", "detr-tiny"], "--train expects --data FOLDER, or --data digits."),
        (["--train", "detr-tini", "--data", "digits"], "Did you mean 'detr-tiny'?"),
    ],
)
def test_invalid_arguments(home: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark.main(words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
