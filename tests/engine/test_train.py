import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from run_tiny import Tiny, training

from detrs import config
from detrs.checkpoints import format
from detrs.classification import Softmax
from detrs.config import Experiment
from detrs.criterion import objective
from detrs.criterion.set_criterion import SetCriterion
from detrs.data import digits
from detrs.engine import clock, trainer
from detrs.engine import train as train_module
from detrs.engine.compatibility import check_divisible, for_data
from detrs.engine.evaluate import evaluate_checkpoint
from detrs.engine.interruption import Interrupted
from detrs.engine.journal import StepReport
from detrs.engine.saving import Saver
from detrs.engine.train import TrainResult, train
from detrs.engine.trainer import Trainer
from detrs.errors import UserError
from detrs.models.detr import DETRConfig
from detrs.predictor import Predictor
from detrs.structures import Losses, Totals

TIMES = ("seconds", "images_per_s")


def consume(experiment: Experiment, output: Path, **options: Any) -> list[StepReport]:
    return list(training(experiment, output, **options))


def splits() -> dict[str, Any]:
    """Both splits of the tiny dataset, as arguments of ``train``."""
    return {"train_set": Tiny("train"), "val_set": Tiny("val")}


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same_run(folder: Path, expected: Path) -> None:
    """Weights, average, moments, best weights, scores and metrics, all to the bit."""
    for name in ("last.safetensors", "best.safetensors"):
        ours, theirs = format.load(folder / name), format.load(expected / name)
        assert ours.tensors.keys() == theirs.tensors.keys()
        wrong = [key for key, tensor in ours.tensors.items() if not torch.equal(tensor, theirs.tensors[key])]
        assert not wrong, f"{name}: {len(wrong)} of {len(ours.tensors)} tensors differ, e.g. {wrong[:5]}"
        for meta in (ours.meta, theirs.meta):
            meta.pop("clock", None)
            for time_of in TIMES:
                meta.get("metrics", {}).pop(time_of, None)
        assert ours.meta == theirs.meta
    assert metrics(folder) == metrics(expected)


@pytest.fixture(scope="module")
def finished(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("save_training_batch", "save_predictions", "save_curves"):
            patch.setattr(trainer, name, lambda *arguments: None)
        consume(tiny.EXPERIMENT, output)
    return output


def test_run_leaves_its_files_and_one_report_per_step(tiny: ModuleType, tmp_path: Path, drawings: None) -> None:
    output = tmp_path / "deep" / "run"
    reports = consume(tiny.EXPERIMENT, output)
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert [report.epoch for report in reports] == [1, 1, 1, 2, 2, 2]
    assert [report.evaluation is not None for report in reports] == [False, False, True] * 2
    assert reports[-1].progress == 1 and not any(report.skipped for report in reports)
    assert {path.name for path in output.iterdir()} == {
        *("experiment.json", "metrics.jsonl", "results.png", "val_predictions.jpg"),
        *("best.safetensors", "last.safetensors", "previous.safetensors"),
        *("train_batch_0.jpg", "train_batch_1.jpg", "train_batch_2.jpg"),
    }
    saved = json.loads((output / "experiment.json").read_text())
    assert saved["model"]["num_classes"] == 10  # from the data
    assert [line["kind"] for line in metrics(output)] == ["step", "step", "evaluation", "step", "step", "evaluation"]


def test_train_returns_the_best_scores(tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = train(tiny.EXPERIMENT, tmp_path / "run", **splits())
    assert isinstance(result, TrainResult)
    meta = format.read_meta(result.checkpoint)
    assert result.scores == meta["scores"] and result.best_step == meta["step"] and result.steps == 6
    assert 0 < result.seconds < 600
    out, err = capsys.readouterr()
    assert (
        out == ""
        and "AP50" in err
        and "14 training images, 5 validation images, 10 classes" in err
        and "evaluating " in err
    )


def test_evaluations_count_steps_where_asked_to(tiny: ModuleType, tmp_path: Path) -> None:
    experiment = tiny.experiment(evaluation={"every_steps": 4, "every_epochs": 2})  # two epochs of three steps
    reports = consume(experiment, tmp_path / "run")
    assert [report.step for report in reports if report.evaluation] == [4, 6]


def test_loss_falls(tiny: ModuleType, tmp_path: Path) -> None:
    experiment = tiny.experiment(schedule={"epochs": 9}, evaluation={"every_epochs": 9}, data={"augment": "none"})
    losses = [report.loss for report in training(experiment, tmp_path / "run")]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])


def one_step(experiment: Experiment, output: Path, signum: int, split: str) -> None:
    """Start or resume a run that receives a signal while the first image of ``split`` is loaded."""
    sent = []

    def send(index: int) -> None:
        if not sent:
            sent.append(index)
            os.kill(os.getpid(), signum)
            time.sleep(0.01)

    with pytest.raises(SystemExit) as raised:
        consume(experiment, output, resume=output.exists(), **{f"{split}_set": Tiny(split, send)})
    assert raised.value.code == 128 + signum


def test_run_stopped_after_every_single_step_equals_the_undisturbed_one(
    tiny: ModuleType, finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    for step in range(1, 7):
        one_step(tiny.EXPERIMENT, output, (signal.SIGTERM, signal.SIGINT)[step % 2], "train")
        meta = format.read_meta(output / "last.safetensors")
        assert meta["step"] == step and meta["evaluated_step"] == (step - 1) // 3 * 3
    assert not (output / "run.lock").exists()
    consume(tiny.EXPERIMENT, output, resume=True)  # the last evaluation is still to be done
    assert_same_run(output, finished)


def test_run_stopped_in_its_evaluations_equals_the_undisturbed_one(
    tiny: ModuleType, finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    for step in (3, 3):  # stopped in the first evaluation, resumed, and stopped in it again
        one_step(tiny.EXPERIMENT, output, signal.SIGTERM, "val")
        assert format.read_meta(output / "last.safetensors")["step"] == step
        assert not (output / "best.safetensors").exists()
    consume(tiny.EXPERIMENT, output, resume=True)
    assert_same_run(output, finished)


def test_closing_the_generator_saves(tiny: ModuleType, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    steps = training(tiny.EXPERIMENT, output)
    for report in steps:
        if report.step == 4:
            break
    steps.close()
    torch.rand(17)  # the global random generators do not matter
    consume(tiny.EXPERIMENT, output, resume=True)
    assert_same_run(output, finished)


def test_process_stopped_by_sigterm_exits_143_and_resumes_exactly(
    tiny: ModuleType, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """As a scheduler does it: the signal goes to the loader's process, too."""
    settings: dict[str, Any] = {
        "schedule": {"epochs": 40},
        "evaluation": {"every_epochs": 40},
        "runtime": {"device": "cpu", "workers": 1, "log_every": 2},
    }
    output = tmp_path / "run"
    process = start(output, json.dumps(settings))
    deadline = time.monotonic() + 120
    while not (output / "metrics.jsonl").exists():  # it trains
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    stopped_at = format.read_meta(output / "last.safetensors")["step"]
    assert 2 <= stopped_at < 120
    expected = tmp_path / "expected"
    reports = []
    for report in training(tiny.experiment(**settings), expected):
        reports.append(report)
        if report.step == stopped_at + 3:
            break
    again = training(tiny.experiment(**settings), output, resume=True)
    resumed = [next(again) for _ in range(3)]
    again.close()
    del report
    assert [r.loss for r in resumed] == [r.loss for r in reports[-3:]]


def test_finished_run_resumes_to_nothing(tiny: ModuleType, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = train(tiny.EXPERIMENT, output, quiet=True, **splits())
    again = train(tiny.EXPERIMENT, output, resume=True, quiet=True, **splits())
    assert (again.scores, again.best_step, again.steps) == (result.scores, result.best_step, 6)
    assert_same_run(output, finished)


@pytest.mark.parametrize("runtime", [{"checkpoint_activations": True}, {"workers": 1}])
def test_runtime_settings_do_not_change_the_result(
    tiny: ModuleType, finished: Path, tmp_path: Path, runtime: dict[str, Any]
) -> None:
    consume(tiny.experiment(runtime=runtime), tmp_path / "run")
    assert metrics(tmp_path / "run") == metrics(finished)


def test_micro_batches_give_the_curve_of_the_whole_batch(tiny: ModuleType, tmp_path: Path) -> None:
    expected = consume(tiny.experiment(model={"dropout": 0.0}), tmp_path / "expected")
    experiment = tiny.experiment(model={"dropout": 0.0}, runtime={"accumulate": 2})
    reports = consume(experiment, tmp_path / "run")
    # Sums of other parts round differently: the last bits differ, and Adam amplifies them where gradients vanish.
    for ours, theirs in zip(reports, expected, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)
        assert ours.terms == pytest.approx(theirs.terms, rel=1e-3)


def detr(tiny: ModuleType, **runtime: Any) -> Experiment:
    """The tiny run with DETR in it, whose class loss is a weighted mean."""
    widths = {"dim": 32, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 48, "num_queries": 17}
    model = DETRConfig(backbone=dataclasses.replace(tiny.BACKBONE, stages=(5,)), dropout=0.0, **widths)
    return dataclasses.replace(tiny.experiment(runtime=runtime), model=model)


def test_weighted_means_are_over_the_whole_batch_too(tiny: ModuleType, tmp_path: Path) -> None:
    losses = []
    for accumulate in (1, 2, 4):
        steps = training(detr(tiny, accumulate=accumulate), tmp_path / str(accumulate))
        losses.append(next(steps).loss)
        steps.close()
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


def test_a_detector_with_a_row_for_no_object_is_trained_saved_and_predicts(tiny: ModuleType, tmp_path: Path) -> None:
    consume(detr(tiny), tmp_path)
    predictor = Predictor.load(tmp_path / "best.safetensors", device="cpu")
    detector = predictor.detector
    assert detector.experiment.model.classification == Softmax()
    assert detector.module.decoder.heads[0].classes.out_features == len(detector.classes.names) + 1
    (found,) = predictor(torch.zeros(3, 64, 96, dtype=torch.uint8), threshold=0.0)
    assert len(found) == 17 and found.labels.max() < len(detector.classes.names)  # one class per query
    scores = evaluate_checkpoint(tmp_path / "best.safetensors", data=Tiny("val"), device="cpu")
    assert len(scores.results) == 17 * 5


def test_objects_are_counted_over_the_whole_batch(tiny: ModuleType, tmp_path: Path) -> None:
    """Micro-batches with very different numbers of objects: a mean of means would differ."""
    losses = []
    for accumulate in (1, 2, 4):
        settings = tiny.experiment(model={"dropout": 0.0}, runtime={"accumulate": accumulate})
        steps = training(settings, tmp_path / str(accumulate))
        losses.append(next(steps).loss)
        steps.close()
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)


class Poisoned(SetCriterion):
    """A criterion that returns non-finite numbers in some calls."""

    loss_calls: tuple[int, ...] = ()
    gradient_calls: tuple[int, ...] = ()
    calls = 0

    def __call__(self, predictions: Any, targets: Any, totals: Totals) -> Losses:
        losses = super().__call__(predictions, targets, totals)
        type(self).calls += 1
        if self.calls in self.loss_calls:
            return losses._replace(total=losses.total * torch.nan)
        if self.calls in self.gradient_calls:  # the square root of 0 has an infinite slope, times 0
            return losses._replace(total=losses.total + (predictions.last.logits.sum() * 0).sqrt())
        return losses


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Poisoned]]:
    monkeypatch.setattr(objective, "SetCriterion", Poisoned)
    yield Poisoned
    Poisoned.loss_calls, Poisoned.gradient_calls, Poisoned.calls = (), (), 0


@pytest.mark.parametrize("kind", ["loss_calls", "gradient_calls"])
def test_step_that_is_not_finite_changes_nothing(
    tiny: ModuleType, tmp_path: Path, poisoned: type[Poisoned], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers: list[Trainer] = []
    build = Trainer.__init__

    def remember(self: Trainer, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        trainers.append(self)

    monkeypatch.setattr(Trainer, "__init__", remember)
    setattr(poisoned, kind, (3, 4, 6))
    states = []
    skipped = []
    for report in training(tiny.EXPERIMENT, tmp_path / "run"):
        states.append({key: tensor.clone() for key, tensor in trainers[0].state.tensors().items()})
        skipped.append(report.skipped)
    assert skipped == [False, False, True, True, False, True]
    for step in (3, 4, 6):  # counted from 1
        before, after = states[step - 2], states[step - 1]
        assert all(torch.equal(tensor, before[key]) for key, tensor in after.items()), step
    changed = {key.split("/")[0] for key, tensor in states[4].items() if not torch.equal(tensor, states[3][key])}
    assert changed == {"model", "average", "optimizer"}  # a good step changes everything
    for name in ("best.safetensors", "last.safetensors"):
        format.load(tmp_path / "run" / name)  # refuses NaN
    assert "NaN" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_third_step_in_a_row_that_is_not_finite_stops_the_run(
    tiny: ModuleType, tmp_path: Path, poisoned: type[Poisoned]
) -> None:
    poisoned.loss_calls = (1, 3, 4, 5)
    output = tmp_path / "run"
    with pytest.raises(UserError, match="Training diverged: 3 consecutive steps, the last one step 5") as raised:
        consume(tiny.EXPERIMENT, output)
    message = str(raised.value)
    assert "giou" in message and "learning rate" in message and "images [" in message
    assert format.load(output / "last.safetensors").meta["step"] == 3
    assert not (output / "run.lock").exists()


def test_resumed_run_still_counts_failures(tiny: ModuleType, tmp_path: Path, poisoned: type[Poisoned]) -> None:
    poisoned.loss_calls = tuple(range(3, 9))
    steps = training(tiny.EXPERIMENT, tmp_path / "run")
    for report in steps:
        if report.step == 4:
            break
    steps.close()
    with pytest.raises(UserError, match="the last one step 5"):
        consume(tiny.EXPERIMENT, tmp_path / "run", resume=True)


def test_number_of_threads_is_that_of_the_run_and_restored(tiny: ModuleType, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    experiment = tiny.experiment()
    runtime = dataclasses.replace(experiment.runtime, threads=before + 1)
    experiment = dataclasses.replace(experiment, runtime=runtime)
    steps = training(experiment, tmp_path / "run", **splits())
    next(steps)
    assert torch.get_num_threads() == before + 1
    steps.close()
    assert torch.get_num_threads() == before


def test_run_that_stops_improving_stops(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aps = iter([0.1, 0.3, 0.2, 0.3, 0.25, 0.9])
    evaluate = Trainer.evaluate

    def scripted(self: Trainer) -> Any:
        scores = evaluate(self)
        object.__setattr__(scores.report, "ap", next(aps))
        return scores

    monkeypatch.setattr(Trainer, "evaluate", scripted)
    experiment = tiny.experiment(schedule={"epochs": 6}, data={"batch_size": 14}, evaluation={"patience": 3})
    reports = consume(experiment, tmp_path / "run")
    assert [report.evaluation.ap for report in reports if report.evaluation] == [0.1, 0.3, 0.2, 0.3, 0.25]
    assert [report.is_best for report in reports] == [True, True, False, True, False]
    assert format.read_meta(tmp_path / "run" / "best.safetensors")["step"] == 4
    assert consume(experiment, tmp_path / "run", resume=True) == []


def test_time_budget_ends_a_run_with_a_low_learning_rate(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Time:
        """A clock that advances by a quarter of a second with every reading."""

        now = 0.0

        def monotonic(self) -> float:
            self.now += 0.25
            return self.now

    clocks = Time()
    for module in (clock, train_module):
        monkeypatch.setattr(module, "time", clocks)
    experiment = tiny.experiment(
        schedule={"epochs": 100_000, "max_minutes": 0.4}, evaluation={"every_epochs": 4}, optimizer={"lr": 1e-4}
    )
    reports = consume(experiment, tmp_path / "run")
    assert 20 < reports[-1].seconds <= clocks.now <= 26  # a few readings are not accounted for
    assert reports[-1].evaluation is not None and reports[-1].progress == 1
    assert reports[-1].lr < 0.1 * max(report.lr for report in reports)
    assert 10 < len(reports) < 50
    assert consume(experiment, tmp_path / "run", resume=True) == []


def test_augmentation_and_order_depend_on_the_seed(tiny: ModuleType, tmp_path: Path) -> None:
    first = []
    for seed in (42, 43):
        steps = training(dataclasses.replace(tiny.EXPERIMENT, seed=seed), tmp_path / str(seed))
        first.append(next(steps).loss)
        steps.close()
    assert first[0] != first[1]


def refused(experiment: Experiment, output: Path, match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match):
        consume(experiment, output, **options)


def test_more_objects_than_queries_is_refused_before_anything_is_written(tiny: ModuleType, tmp_path: Path) -> None:
    most = Tiny("train").max_objects
    experiment = tiny.experiment(model={"num_queries": most - 1})
    refused(experiment, tmp_path / "run", f"{most} objects.*has {most - 1} queries.*--model.num-queries {most} ")
    assert not (tmp_path / "run").exists()


def test_digits_are_not_mirrored(tiny: ModuleType) -> None:
    """Whatever the preset; other data are, unless disabled."""
    digits, other = Tiny("train"), Tiny("train")
    other.can_be_mirrored = True
    experiment = tiny.experiment(data={"augment": "flip"})
    assert experiment.data.mirror and not for_data(experiment, digits, digits).data.mirror
    assert for_data(experiment, other, other).data.mirror
    disabled = tiny.experiment(data={"mirror": False})
    assert not for_data(disabled, other, other).data.mirror


@pytest.mark.parametrize(("setting", "flag"), [("vertical_flip", "vertical-flip"), ("rotate90", "rotate90")])
def test_digits_are_not_turned(tiny: ModuleType, setting: str, flag: str) -> None:
    """A 6 would be a 9."""
    digits, other = Tiny("train"), Tiny("train")
    other.can_be_mirrored = True
    turned = tiny.experiment(data={setting: True})
    assert getattr(for_data(turned, other, other).data, setting)
    with pytest.raises(UserError, match=rf"data\.{setting} is True.*one orientation.*Leave out --data\.{flag}\."):
        for_data(turned, digits, digits)


def test_splits_of_other_classes_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    other = Tiny("val")
    other.classes = other.classes._replace(names=("zero", *other.classes.names[1:]))
    refused(tiny.EXPERIMENT, tmp_path / "run", "split 'train' has 0, 1.*split 'val' has zero, 1", val_set=other)
    assert not (tmp_path / "run").exists()


def test_changed_data_are_refused_on_resume(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = training(tiny.EXPERIMENT, tmp_path / "run")
    next(steps)
    steps.close()
    monkeypatch.setattr(Tiny, "fingerprint", lambda self: "0" * 64)
    refused(tiny.EXPERIMENT, tmp_path / "run", "The dataset has changed since the run", resume=True)
    assert not (tmp_path / "run" / "run.lock").exists()


def test_data_may_change_when_that_is_allowed_for_one_start(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "run"
    stopped_after(2, training(tiny.EXPERIMENT, output))
    monkeypatch.setattr(Tiny, "fingerprint", lambda self: "0" * 64)
    refused(tiny.EXPERIMENT, output, "'train' and 'val' differ.*--runtime.allow-changed-data True", resume=True)
    allowed = tiny.experiment(runtime={"allow_changed_data": True})
    with caplog.at_level("WARNING"):
        stopped_after(1, training(allowed, output, resume=True))
    assert "continuing with changed data ('train' and 'val')" in caplog.text
    assert not json.loads((output / "experiment.json").read_text())["runtime"]["allow_changed_data"]
    stopped_after(1, training(tiny.EXPERIMENT, output, resume=True))  # the run continues with it

    monkeypatch.setattr(Tiny, "fingerprint", lambda self: "1" * 64)
    init = Tiny.__init__

    def renamed(self: Any, split: str, *arguments: Any) -> None:
        init(self, split, *arguments)
        self.classes = self.classes._replace(names=("zero", *self.classes.names[1:]))

    monkeypatch.setattr(Tiny, "__init__", renamed)
    refused(allowed, output, "started with the classes 0, 1.*now has zero, 1", resume=True)


def stopped_after(steps: int, run: Any) -> list[StepReport]:
    """Take some steps of a run and close it."""
    reports = [next(run) for _ in range(steps)]
    run.close()
    return reports


def broken(split: str, from_load: int) -> dict[str, Tiny]:
    """A split with an image that cannot be read from load number ``from_load`` on, as an argument of ``training``."""
    loads: list[int] = []

    def load(index: int) -> None:
        loads.append(index)
        if len(loads) > from_load:
            raise UserError("image 7 is truncated")

    return {f"{split}_set": Tiny(split, load)}


@pytest.mark.parametrize(("split", "from_load", "step"), [("val", 2, 3), ("train", 4 * 4, 4), ("train", 2 * 4, 2)])
def test_unreadable_image_loses_nothing(
    tiny: ModuleType,
    finished: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    split: str,
    from_load: int,
    step: int,
) -> None:
    output = tmp_path / "run"
    refused(tiny.EXPERIMENT, output, "image 7 is truncated", **broken(split, from_load))
    meta = format.read_meta(output / "last.safetensors")
    assert meta["step"] == step and meta["evaluated_step"] == (3 if step == 4 else 0)
    with caplog.at_level("INFO", logger="detrs"):
        consume(tiny.EXPERIMENT, output, resume=True)
    assert ("step 3 evaluated: AP" in caplog.text) == (split == "val")
    assert_same_run(output, finished)


def test_state_is_saved_before_an_evaluation(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    def stop(self: Trainer) -> Any:
        steps.append(format.read_meta(self.folder.last)["step"])
        raise KeyboardInterrupt  # nothing after this is saved

    monkeypatch.setattr(Trainer, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        consume(tiny.EXPERIMENT, tmp_path / "run")
    assert steps == [3]


@pytest.mark.parametrize("place", ["save_curves", "save_predictions"])
def test_drawing_that_fails_loses_no_evaluation(
    tiny: ModuleType, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def fail(*arguments: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(trainer, place, fail)
        with pytest.raises(ZeroDivisionError):
            consume(tiny.EXPERIMENT, tmp_path / "run")
    assert format.read_meta(tmp_path / "run" / "last.safetensors")["evaluated_step"] == 3
    consume(tiny.EXPERIMENT, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", finished)


def test_full_disk_keeps_its_own_message_and_the_step(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Saver) -> None:
        raise UserError("no space for the state")

    class Full(type(Path())):  # type: ignore[misc]
        def open(self, *arguments: Any, **options: Any) -> Any:
            raise OSError(28, "No space left on device")

    run = training(tiny.EXPERIMENT, tmp_path / "run")
    next(run)
    journal = run.gi_frame.f_locals["trainer"].metrics
    journal.path = Full(journal.path)
    with pytest.raises(UserError, match="Cannot write to .*metrics.jsonl: No space left on device"):
        next(run)
    assert format.read_meta(tmp_path / "run" / "last.safetensors")["step"] == 2  # here there was space for it
    monkeypatch.setattr(Saver, "save", full)
    again = training(tiny.EXPERIMENT, tmp_path / "run", resume=True)
    monkeypatch.setattr(Trainer, "evaluate", lambda self: 1 / 0)
    monkeypatch.setattr(clock.Clock, "is_save_before_evaluation_due", lambda self, state: False)
    with caplog.at_level("WARNING"), pytest.raises(ZeroDivisionError):  # not the error of the save
        list(again)
    assert "step 3 could not be saved: no space for the state" in caplog.text


def test_run_stopped_by_a_signal_logs_how_to_resume(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(digits, "NUM_IMAGES", {"train": 4, "val": 2})
    experiment = tiny.experiment(data={"path": "digits"})
    with caplog.at_level("INFO", logger="detrs"):
        stopped_after(1, train_module.training(experiment, tmp_path / "my run"))
    assert f"stopped after step 1, saved; resume with: detrs train --resume '{tmp_path / 'my run'}'" in caplog.text


def scripted(monkeypatch: pytest.MonkeyPatch, aps: list[float]) -> None:
    """Evaluations with these APs."""
    evaluate, left = Trainer.evaluate, iter(aps)

    def evaluated(self: Trainer) -> Any:
        scores = evaluate(self)
        object.__setattr__(scores.report, "ap", next(left))
        return scores

    monkeypatch.setattr(Trainer, "evaluate", evaluated)


def test_better_weights_than_those_of_a_run_resumed_from_an_older_state_are_kept(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    experiment = tiny.experiment(schedule={"epochs": 4}, data={"batch_size": 14})
    with monkeypatch.context() as patch:
        scripted(patch, [0.1, 0.5])
        stopped_after(1, training(experiment, output))
        older = (output / "last.safetensors").read_bytes()
        stopped_after(1, training(experiment, output, resume=True))
    for state in ("last", "previous"):
        (output / f"{state}.safetensors").write_bytes(older)
    scripted(monkeypatch, [0.3, 0.4, 0.6])
    run = training(experiment, output, resume=True)
    assert [next(run).is_best, next(run).is_best] == [False, False]
    meta = format.read_meta(output / "best.safetensors")
    assert meta["step"] == 2 and meta["scores"]["ap"] == 0.5
    assert next(run).is_best
    assert format.read_meta(output / "best.safetensors")["scores"]["ap"] == 0.6
    run.close()


def test_lost_best_is_written_anew(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "run"
    experiment = tiny.experiment(schedule={"epochs": 3}, data={"batch_size": 14})
    scripted(monkeypatch, [0.5, 0.5, 0.2, 0.1])
    stopped_after(1, training(experiment, output))
    (output / "best.safetensors").unlink()
    assert [report.is_best for report in training(experiment, output, resume=True)] == [False, False]
    assert format.read_meta(output / "best.safetensors")["step"] == 1  # evaluated again


def test_batch_that_cannot_be_divided_is_refused_before_anything_is_written(tiny: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 processes with 2 micro-batches each.*choose a multiple of 6"):
        check_divisible(4, 3, 2)
    check_divisible(12, 3, 2)
    run = training(tiny.EXPERIMENT, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "check_divisible", lambda *arguments: refuse())
        with pytest.raises(UserError, match="indivisible"):
            next(run)
    assert not (tmp_path / "run").exists()


def refuse() -> None:
    raise UserError("indivisible")


def test_start_that_failed_before_its_first_step_can_be_repeated(tiny: ModuleType, tmp_path: Path) -> None:
    refused(tiny.EXPERIMENT, tmp_path / "run", "image 7 is truncated", **broken("train", 0))
    assert (tmp_path / "run" / "experiment.json").exists()
    assert len(consume(tiny.EXPERIMENT, tmp_path / "run")) == 6


def test_statistics_of_micro_batches_are_warned_about_once(
    tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for norm, accumulate, times in (("batch", 2, 1), ("batch", 1, 0), ("frozen", 2, 0)):
        caplog.clear()
        experiment = tiny.experiment(model={"backbone": {"norm": norm}}, runtime={"accumulate": accumulate})
        stopped_after(1, training(experiment, tmp_path / f"{norm}{accumulate}"))
        assert caplog.text.count("statistics of each micro-batch") == times


def test_resuming_with_other_initial_weights_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    stopped_after(1, training(tiny.EXPERIMENT, tmp_path / "run"))
    other = dataclasses.replace(tiny.EXPERIMENT, initial=str(tmp_path / "other.safetensors"))
    refused(other, tmp_path / "run", 'other settings: initial: null -> ".*other.safetensors"', resume=True)


def test_training_starts_from_the_weights_of_a_trained_detector(
    tiny: ModuleType, finished: Path, tmp_path: Path
) -> None:
    best = finished / "best.safetensors"
    experiment = dataclasses.replace(
        tiny.experiment(model={"dropout": 0.0}, optimizer={"lr": 1e-12, "ema_decay": None}), initial=str(best)
    )
    list(training(experiment, tmp_path / "run"))
    ours, theirs = format.load(tmp_path / "run" / "best.safetensors"), format.load(best)
    for name, tensor in ours.tensors.items():
        torch.testing.assert_close(tensor, theirs.tensors[name], atol=1e-6, rtol=1e-4)
    assert ours.meta["experiment"]["initial"] == str(best)


def test_initial_weights_that_are_missing_are_reported_before_data_are_loaded(tiny: ModuleType, tmp_path: Path) -> None:
    experiment = dataclasses.replace(
        tiny.experiment(data={"path": "/nowhere"}), initial=str(tmp_path / "missing.safetensors")
    )
    with pytest.raises(UserError, match="missing.safetensors"):
        next(train_module.training(experiment, tmp_path / "run"))


def test_resume_advice_fits_data_in_python(tiny: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="detrs"):
        stopped_after(1, training(tiny.EXPERIMENT, tmp_path / "run"))
    assert "resume=True) with the same train_set and val_set" in caplog.text
    saved = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert saved["data"]["path"] is None  # "tiny" was not used


def test_data_in_python_are_needed_again_to_resume(tiny: ModuleType, tmp_path: Path) -> None:
    stopped_after(1, training(tiny.EXPERIMENT, tmp_path / "run"))
    experiment = config.load(tmp_path / "run" / "experiment.json")
    with pytest.raises(UserError, match="data in Python: resume it with .* the same train_set and val_set"):
        next(train_module.training(experiment, tmp_path / "run", resume=True))
    with pytest.raises(UserError, match="No val_set was given"):
        next(train_module.training(experiment, tmp_path / "other", train_set=Tiny("train")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("deformable-detr-tiny", "runs/x"), "expected an Experiment"),
        ((Experiment(), None), "output: expected the path"),
    ],
)
def test_arguments_of_another_type(arguments: tuple[Any, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(train_module.training(*arguments))


def test_invalid_settings_are_refused_first(tiny: ModuleType, tmp_path: Path) -> None:
    refused(tiny.experiment(optimizer={"lr": -1.0}), tmp_path / "run", "optimizer.lr")


def test_interrupted_is_a_system_exit() -> None:
    assert issubclass(Interrupted, SystemExit)  # no traceback, and every "finally" on the way
