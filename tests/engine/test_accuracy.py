import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detrs.config import Experiment
from detrs.data import digits
from detrs.engine import accuracy, accuracy_results, accuracy_run, accuracy_table
from detrs.engine.accuracy import Comparison
from detrs.errors import UserError
from detrs.schema import to_dict

TINY = Comparison(
    presets=("deformable-detr-tiny", "faster-rcnn-tiny"), data="digits", minutes=0.02, seeds=2, device="cpu", threads=1
)


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "NUM_IMAGES", {"train": 8, "val": 2})


def result(ap: float | None, seconds: float = 60.0) -> dict[str, Any]:
    point = {"images": 80, "seconds": seconds, "ap": ap, "ap50": ap}
    return {**accuracy_run.scores([point]), "images": 80, "seconds": seconds, "peak_mib": 900}


def test_runs_differ_in_preset_and_seed_only() -> None:
    runs = accuracy.experiments(replace(TINY, image_size=(64, 96), batch_size=2))
    assert [(run.name, run.seed) for run, _ in runs] == [
        *(("deformable-detr-tiny", 42), ("faster-rcnn-tiny", 42)),
        *(("deformable-detr-tiny", 43), ("faster-rcnn-tiny", 43)),
    ]
    for run, setting in runs:
        assert setting == runs[0][1] and setting["image_size"] == [64, 96] and setting["num_images"] == [8, 2]
        assert (run.data.resize_to, run.data.batch_size, run.schedule.max_minutes) == ((64, 96), 2, 0.02)
        assert run.evaluation.patience is None and run.runtime.threads == 1
    assert (
        accuracy_results.recipe_digest(runs[0][0])
        == accuracy_results.recipe_digest(runs[2][0])
        != accuracy_results.recipe_digest(runs[1][0])
    )


def test_the_first_preset_gives_the_size_of_all() -> None:
    runs = accuracy.experiments(replace(TINY, presets=("deformable-detr-tiny", "faster-rcnn-small")))
    assert {run.data.resize_to for run, _ in runs} == {(128, 192)}


def test_weights_are_for_pretrained_backbones_only() -> None:
    presets = ("deformable-detr-small", "deformable-detr-tiny")
    small, tiny = (run for run, _ in accuracy.experiments(replace(TINY, presets=presets, seeds=1, backbone="resnet18")))
    assert small.model.backbone.name == "resnet18" and tiny.model.backbone.name == "test_resnet"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"presets": ()}, "expected at least one preset"),
        ({"presets": ("detr-tinny",)}, "Did you mean 'detr-tiny'?"),
        ({"minutes": 0.0}, "--minutes must be above 0, got 0"),
        ({"minutes": float("nan")}, "--minutes must be above 0, got nan"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"evaluate_every": 0}, "--evaluate-every must be at least 1, got 0"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_faults_are_found_before_the_first_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        accuracy.experiments(replace(TINY, **changes))


def test_a_preset_with_too_few_queries_for_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "MAX_OBJECTS", 51)
    with pytest.raises(UserError, match="deformable-detr-tiny cannot be trained on 'digits': .*51"):
        accuracy.experiments(TINY)


def test_finished_runs_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str | None, int]] = []

    def measure(experiment: Experiment) -> dict[str, Any]:
        measured.append((experiment.name, experiment.seed))
        if len(measured) == 4:
            raise KeyboardInterrupt
        return result(0.5)

    monkeypatch.setattr(accuracy_run, "measure_alone", measure)
    results = tmp_path / "new" / "accuracy.jsonl"
    with pytest.raises(KeyboardInterrupt):
        list(accuracy.compare(TINY, results))
    with results.open("a") as file:
        file.write('{"subject": "deform')  # a full disk
    told: list[bool] = []
    lines = list(accuracy.compare(TINY, results, on_run=lambda number, runs, experiment, done: told.append(done)))
    assert told == [True, True, True, False] and measured[3] == measured[4] == ("faster-rcnn-tiny", 43)
    assert [json.loads(text) for text in results.read_text().splitlines()] == lines and len(lines) == 4
    list(accuracy.compare(replace(TINY, minutes=0.03), results))  # another setting
    assert len(measured) == 9


@pytest.mark.parametrize("content", [b'{"precious": 1}', b"3\n", b"[1]\n", b"\xff\xfe\n"])
def test_a_file_with_other_content_stays_as_it_is(content: bytes, tmp_path: Path) -> None:
    results = tmp_path / "other.jsonl"
    results.write_bytes(content)
    with pytest.raises(UserError, match=r"has other content than results of this comparison: choose another file"):
        list(accuracy.compare(TINY, results))
    assert results.read_bytes() == content


def test_a_complete_last_line_without_its_end_is_kept(tmp_path: Path) -> None:
    results = tmp_path / "runs.jsonl"
    results.write_text('{"seed": 1}')
    accuracy_results.append(results, {"seed": 2})
    assert results.read_text() == '{"seed": 1}\n{"seed": 2}\n'


def test_a_file_that_cannot_be_written_is_found_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy_run, "measure_alone", lambda experiment: pytest.fail("a run began"))
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "runs.jsonl", tmp_path, tmp_path / ("n" * 300)):
        with pytest.raises(UserError, match=r"^Cannot (read|write to) "):
            list(accuracy.compare(TINY, path))


def test_a_backbone_that_does_not_exist_is_found_before_the_first_run() -> None:
    with pytest.raises(UserError, match="nosuch"):
        accuracy.experiments(replace(TINY, presets=("deformable-detr-tiny", "dino-small"), backbone="nosuch"))


def test_threads_are_those_of_earlier_runs_and_not_part_of_the_recipe(tmp_path: Path) -> None:
    results = tmp_path / "runs.jsonl"
    assert accuracy_results.threads_of(results, "digits", 0.02) is None
    (one, setting), *_ = accuracy.experiments(TINY)
    (two, _), *_ = accuracy.experiments(replace(TINY, threads=2))
    assert accuracy_results.recipe_digest(one) == accuracy_results.recipe_digest(two)
    accuracy_results.append(results, {"subject": "x", "seed": 1, "setting": {**setting, "threads": 3}})
    assert accuracy_results.threads_of(results, "digits", 0.02) == 3
    assert accuracy_results.threads_of(results, "digits", 5.0) is None


def test_queries_of_small_presets_follow_from_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "MAX_OBJECTS", 120)
    comparison = replace(TINY, presets=("deformable-detr-small",))
    model = accuracy.experiments(comparison)[0][0].model
    assert model.num_queries == 250  # type: ignore[union-attr]


@pytest.mark.parametrize(("size", "stages"), [((64, 96), (2, 3, 4)), ((512, 768), (3, 4, 5))])
def test_feature_maps_of_small_presets_follow_from_the_data(size: tuple[int, int], stages: tuple[int, ...]) -> None:
    """The image size stays that of the comparison."""
    experiment, _ = accuracy.experiments(replace(TINY, presets=("dino-small",), image_size=size))[0]
    assert (experiment.model.backbone.stages, experiment.data.resize_to) == (stages, size)


def test_a_run_counts_images_and_memory() -> None:
    experiment, _ = accuracy.experiments(replace(TINY, image_size=(64, 96)))[0]
    found = accuracy_run.measure(experiment)
    assert found["images"] == found["last"]["images"] == found["points"][-1]["images"] > 0
    assert found["images"] % experiment.data.batch_size == 0
    assert found["best"]["ap"] == max(point["ap"] for point in found["points"])
    assert 0 < found["seconds"] < 60 and found["peak_mib"] > 100 and "torch" in found["versions"]


def test_the_best_and_the_last_evaluation() -> None:
    points = [{"ap": None}, {"ap": 0.4}, {"ap": 0.3}]
    assert accuracy_run.scores(points) == {"best": {"ap": 0.4}, "last": {"ap": 0.3}, "points": points}


@pytest.mark.skipif(not accuracy_run.STATUS.exists(), reason="the system has no /proc")
def test_memory_is_not_that_of_the_parent() -> None:
    code = (
        "import json, torch; from detrs.engine.accuracy_run import peak_mib; "
        "print(json.dumps({'peak': peak_mib(torch.device('cpu'))}))"
    )
    held = torch.ones(2**29)  # 2 GiB, which getrusage includes for a new process
    found = accuracy_run.result_of([sys.executable, "-c", code], "", "run 1")
    assert 100 < found["peak"] < 1500
    del held


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('print(\'{"error": "the loss is not finite"}\'); raise SystemExit(2)', "run 1: the loss is not finite"),
        ("import os; os.kill(os.getpid(), 9)", "run 1: .* signal 9. It may be out of memory"),
        ("raise SystemExit(1)", "run 1: the training process ended with exit code 1"),
    ],
)
def test_runs_that_fail(code: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        accuracy_run.result_of([sys.executable, "-c", code], "", "run 1")


@pytest.mark.parametrize(("code", "stop"), [(130, KeyboardInterrupt), (143, SystemExit)])
def test_runs_that_are_stopped(code: int, stop: type[BaseException]) -> None:
    with pytest.raises(stop):
        accuracy_run.result_of([sys.executable, "-c", f"raise SystemExit({code})"], "", "run 1")


def test_the_process_of_a_run_reports_an_error_in_one_line() -> None:
    experiment, _ = accuracy.experiments(TINY)[0]
    missing = replace(experiment, data=replace(experiment.data, path="nowhere"))
    command = [sys.executable, "-P", "-m", "detrs.engine.accuracy_run"]
    with pytest.raises(UserError, match="run 1: .*nowhere"):
        accuracy_run.result_of(command, json.dumps(to_dict(missing)), "run 1")


def test_means_and_ranges() -> None:
    lines = [{"subject": "a", **result(ap)} for ap in (0.2, 0.4)] + [{"subject": "b", **result(None)}]
    a, b = accuracy_table.rows(lines)
    assert a.best_ap is not None and (a.best_ap.lowest, a.best_ap.highest) == (0.2, 0.4)
    assert a.best_ap.mean == pytest.approx(0.3) and a.runs == 2
    assert a.cells(" ") == ["a", "2", *["0.300 0.200-0.400"] * 4, "80", "900", "60"]
    assert b.best_ap is None and b.cells() == ["b", "1", "-", "-", "-", "-", "80", "900", "60"]
