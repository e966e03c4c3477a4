import io
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from detrs.config import Experiment, RuntimeConfig
from detrs.engine.journal import Display, Metrics, StepReport, display, summary
from detrs.evaluation.coco import CocoReport, coco_report


def report(step: int, loss: float = 2.0, **changes: Any) -> StepReport:
    values: dict[str, Any] = {
        "step": step,
        "total_steps": 20,
        "epoch": 1 + step // 5,
        "epochs": 4,
        "loss": loss,
        "terms": {"class": loss / 4, "box": loss / 2},
        "lr": 1e-3 / step,
        "grad_norm": 3.0 * step,
        "skipped": not math.isfinite(loss),
        "images": 8,
        "images_per_s": 16.0,
        "seconds": step / 2,
        "progress": step / 20,
        "memory_bytes": 2**30,
    }
    return StepReport(**{**values, **changes})


@pytest.fixture
def scores() -> CocoReport:
    box = {"image_id": 1, "category_id": 1, "bbox": [1.0, 2.0, 30.0, 40.0]}
    truth = {"images": [{"id": 1}], "annotations": [{"id": 1, **box}], "categories": [{"id": 1, "name": "a"}]}
    return coco_report(truth, [{**box, "score": 0.9}])


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not valid JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_line_holds_the_means_since_the_line_before(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", log_every=3)
    for step, loss in enumerate([2.0, 4.0, 9.0, 1.0, math.nan, 2.0, 7.0], start=1):
        metrics.step(report(step, loss))
    first, second = lines(metrics.path)
    assert (first["step"], first["loss"], first["terms"]) == (3, 5.0, {"class": 1.25, "box": 2.5})
    assert (first["grad_norm"], first["skipped"], first["images_per_s"]) == (6.0, 0, 16.0)
    assert (second["step"], second["loss"], second["skipped"]) == (6, 1.5, 1)  # skipped steps do not count
    assert second["lr"] == 1e-3 / 6
    assert first["kind"] == "step" and first["seconds"] == 1.5 and first["epoch"] == 1


def test_all_steps_skipped_is_null_not_nan(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", log_every=1)
    metrics.step(report(1, math.nan))
    assert lines(metrics.path)[0]["loss"] is None


def test_evaluation_line_has_all_scores(tmp_path: Path, scores: CocoReport) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", log_every=10)
    metrics.step(report(1))
    metrics.evaluation(scores, step=1, epoch=1, seconds=0.5)
    step, evaluation = lines(metrics.path)
    assert (step["kind"], evaluation["kind"]) == ("step", "evaluation")
    assert evaluation["ap"] == pytest.approx(1.0) and evaluation["ap_large"] is None
    assert set(scores.scalars()) < set(evaluation)


def test_other_processes_write_nothing(tmp_path: Path, scores: CocoReport) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", log_every=1, writes=False)
    metrics.step(report(1))
    metrics.evaluation(scores, step=1, epoch=1, seconds=0.5)
    assert not metrics.path.exists()


@pytest.mark.parametrize("stop", range(1, 9))
@pytest.mark.parametrize("further", [0, 1, 4])
def test_resume_takes_back_what_came_after(tmp_path: Path, scores: CocoReport, stop: int, further: int) -> None:
    """A run saved after step ``stop`` and killed ``further`` steps later comes out as one that never stopped."""

    def run(metrics: Metrics, first: int, last: int) -> dict[str, Any]:
        for step in range(first, last + 1):
            metrics.step(report(step, loss=step**2))
            if step % 4 == 0:
                metrics.evaluation(scores, step=step, epoch=1, seconds=step)
        return metrics.state()

    expected = Metrics(tmp_path / "expected.jsonl", log_every=3)
    run(expected, 1, 12)

    killed = Metrics(tmp_path / "metrics.jsonl", log_every=3)
    state = json.loads(json.dumps(run(killed, 1, stop)))
    run(killed, stop + 1, stop + further)
    with killed.path.open("a") as file:
        file.write('{"kind": "step", "st')  # killed while writing

    resumed = Metrics(tmp_path / "metrics.jsonl", log_every=3)
    resumed.resume(state, stop, evaluated=stop % 4 == 0)
    run(resumed, stop + 1, 12)
    assert lines(resumed.path) == lines(expected.path)


@pytest.mark.parametrize(
    "damage",
    [
        bytes(4096),
        b"\xff\xfe\x00",
        b'{"kind": "st\n',
        b"[" * 10**5 + b"\n",
        b"7\n",
        b'{"kind": "step"}\n',
        b'{"step": 1}\n',
    ],
    ids=["zeros", "not UTF-8", "torn", "nested", "number", "no step", "no kind"],
)
@pytest.mark.parametrize("where", ["start", "end"])
def test_damaged_lines_are_removed_with_a_warning(
    damage: bytes, where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", log_every=1)
    for step in (1, 2, 3):
        metrics.step(report(step))
    expected = lines(metrics.path)[:2]
    whole = metrics.path.read_bytes()
    start = damage if damage.endswith(b"\n") else damage + b"\n"
    metrics.path.write_bytes(whole + damage if where == "end" else start + whole)
    resumed = Metrics(metrics.path, log_every=1)
    resumed.resume(json.loads(json.dumps(metrics.state())), 2, evaluated=True)
    assert lines(metrics.path) == expected
    assert "removed 1 damaged line," in caplog.text


def test_unfinished_evaluation_is_taken_back(tmp_path: Path, scores: CocoReport) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", log_every=3)
    metrics.step(report(1))
    state = json.loads(json.dumps(metrics.state()))
    metrics.evaluation(scores, step=1, epoch=1, seconds=1)
    metrics.resume(state, 1, evaluated=False)
    assert lines(metrics.path) == []
    metrics.evaluation(scores, step=1, epoch=1, seconds=1)
    assert [line["kind"] for line in lines(metrics.path)] == ["step", "evaluation"]


def test_plain_lines_where_there_is_no_terminal(scores: CocoReport) -> None:
    stream = io.StringIO()
    shown = Display(Console(file=stream, width=300))
    with shown.bar:
        for step in range(1, 13):
            shown.show(report(step, seconds=float(2 * step)))
        shown.show(report(13, math.nan))
        shown.show(report(14, evaluation=scores, is_best=True))
    text = stream.getvalue()
    assert "\x1b" not in text and "\r" not in text  # a log file stays readable
    progress = [line for line in text.splitlines() if "images/s" in line]
    assert 2 <= len(progress) <= 4  # one per ten seconds, not one per step
    assert "epoch 1/4" in progress[0] and "step 1/20" in progress[0] and "loss 2" in progress[0]
    assert "1.00 GiB" in progress[0] and "ETA 0:00:38" in progress[0]
    assert "step 13 skipped" in text
    assert "AP 1.0000  AP50 1.0000" in text and "best so far" in text


def test_a_run_that_its_minutes_end_does_not_promise_steps() -> None:
    stream = io.StringIO()
    Display(Console(file=stream, width=300)).show(report(3, progress=0.5))
    assert "epoch 1  step 3  loss" in stream.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_bar_and_evaluation_stay_on_one_line(width: int) -> None:
    shown = Display(Console(file=io.StringIO(), width=width, force_terminal=True))
    values = {"epoch": 123, "epochs": 500, "total_steps": 100_000, "seconds": 40_000.0, "images_per_s": 12.345}
    shown.show(report(12_345, loss=123.456, **{**values, "progress": 0.3, "total_steps": 30_000}))
    rendered = shown.console.render_lines(shown.bar.get_renderable(), pad=False)
    text = "".join(segment.text for segment in rendered[0]).rstrip()
    assert len(rendered) == 1 and "epoch 123/500" in text and text.endswith("ETA 1 day, 1:55:33")
    shown.show_evaluation(40, 200)
    rendered = shown.console.render_lines(shown.bar.get_renderable(), pad=False)
    assert "".join(segment.text for segment in rendered[0]).rstrip().endswith("30%  epoch 123/500  evaluating 40/200")


def test_evaluation_in_plain_lines() -> None:
    stream = io.StringIO()
    shown = Display(Console(file=stream, width=80))
    shown.show(report(7))
    for done in range(8, 201, 8):
        shown.show_evaluation(done, 200)
    assert stream.getvalue().splitlines()[1:] == ["epoch 2/4  evaluating 8/200"]  # not one line per batch


def test_summary_of_a_run() -> None:
    model = torch.nn.Linear(1000, 10)
    model.bias.requires_grad_(False)
    experiment = Experiment(name="deformable-detr-tiny", runtime=RuntimeConfig(threads=3, precision="fp32"))
    text = summary(experiment, model, (14, 5, 2), torch.device("cpu"), Path("runs/first"))
    assert text.splitlines() == [
        "device      cpu, 3 CPU threads, fp32",
        "preset      deformable-detr-tiny",
        "parameters  0.01 M, 0.01 M of them trained",
        "data        Python objects: 14 training images, 5 validation images, 2 classes",
        "output      runs/first",
    ]


def test_summary_of_a_run_with_one_of_each() -> None:
    text = summary(Experiment(), torch.nn.Linear(2, 2), (1, 1, 1), torch.device("cpu"), Path("runs/first"))
    assert "1 training image, 1 validation image, 1 class\n" in text


def test_terminal_gets_a_bar() -> None:
    stream = io.StringIO()
    shown = Display(Console(file=stream, width=160, force_terminal=True))
    with shown.bar:
        shown.show(report(5))
        shown.bar.refresh()
    assert "\x1b" in stream.getvalue() and "25%" in stream.getvalue()


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_keeps_warnings_only(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("detrs")
    with display(quiet=quiet) as shown:
        shown.show(report(1))
        logger.info("chatter [not markup]")
        logger.warning("trouble")
    logger.info("afterwards")
    out, err = capsys.readouterr()
    assert out == ""  # the standard output belongs to --json
    assert ("chatter [not markup]" in err) == ("loss 2" in err) == (not quiet)
    assert "trouble" in err and "afterwards" not in err
