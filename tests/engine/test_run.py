import logging
import os
import stat
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from detrs import config
from detrs.checkpoints import format
from detrs.engine.run import RunFolder
from detrs.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "first")


def state(step: int, evaluated_step: int = 0) -> dict[str, Any]:
    """The metadata by which a training state is recognized."""
    return {"step": step, "evaluated_step": evaluated_step, "fingerprints": {}}


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3, 5), value)}


def test_new_or_empty_folder_is_accepted_and_made(folder: RunFolder) -> None:
    folder.check(resume=False)
    with folder.open(resume=False):
        assert folder.path.is_dir()
    folder.check(resume=False)


def test_folder_that_holds_something_is_refused_and_left_alone(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty.*--resume"):
        folder.check(resume=False)
    assert [path.name for path in folder.path.iterdir()] == ["thesis.tex"]


def test_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "file").check(resume=False)


def test_nothing_to_resume(folder: RunFolder, tiny: ModuleType) -> None:
    with pytest.raises(UserError, match="no run to resume"):
        folder.check(resume=True)
    with folder.open(resume=False):
        config.save(tiny.EXPERIMENT, folder.experiment)
        with pytest.raises(UserError, match="before its first checkpoint"):
            folder.check(resume=True)


@pytest.mark.skipif(os.name != "posix", reason="modes are a matter of POSIX")
def test_folder_without_permission_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    user = os.geteuid()
    if user == 0:  # everything is writable for root
        os.seteuid(65534)
    try:
        expected = pytest.raises(UserError, match="^Cannot write to the output folder .*: Permission denied")
        with expected, RunFolder(tmp_path / "run").open(resume=False):
            pass
    finally:
        os.seteuid(user)


def test_what_a_killed_save_left_is_removed(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / ".last.safetensors.0123456789ab.tmp").write_bytes(b"half")
    with folder.open(resume=False):
        assert not list(folder.path.glob("*.tmp")) and not list(folder.path.glob(".*.tmp"))


def test_newest_whole_state_is_loaded(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with folder.open(resume=False):
        for step in (1, 2, 3):
            folder.save_last(tensors(step), state(step))
        assert folder.load_last().meta["step"] == 3
        damage(folder.last)
        with caplog.at_level(logging.WARNING):
            checkpoint = folder.load_last()
        assert checkpoint.meta["step"] == 2 and torch.equal(checkpoint.tensors["weight"], tensors(2)["weight"])
        assert "last.safetensors" in caplog.text and "previous.safetensors" in caplog.text  # and it says so
        damage(folder.previous)
        with pytest.raises(UserError, match="cannot be resumed"):
            folder.load_last()


def test_a_state_evaluated_is_newer_than_the_same_one_before(folder: RunFolder) -> None:
    with folder.open(resume=False):
        for evaluated_step in (2, 4):
            folder.save_last(tensors(evaluated_step), state(4, evaluated_step))
        assert folder.load_last().meta["evaluated_step"] == 4
        damage(folder.last)
        assert folder.load_last().meta["evaluated_step"] == 2


def test_a_rename_that_fails_is_one_sentence(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.replace

    def refuse(source: Path, target: Path) -> None:
        if Path(target).name == "previous.safetensors":
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    with folder.open(resume=False):
        folder.save_last(tensors(1), state(1))
        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(UserError, match=r"Cannot rename .*last.safetensors to previous.safetensors: Permission"):
            folder.save_last(tensors(2), state(2))


def test_start_that_failed_before_its_first_checkpoint_can_be_repeated(folder: RunFolder, tiny: ModuleType) -> None:
    with folder.open(resume=False):
        config.save(tiny.EXPERIMENT, folder.experiment)
        folder.metrics.write_text('{"kind": "step"}\n')
        for name in ("train_batch_0.jpg", ".best.safetensors.0123456789ab.tmp"):
            (folder.path / name).write_bytes(b"x")
    folder.check(resume=False)
    with folder.open(resume=False):
        assert {path.name for path in folder.path.iterdir()} == {"run.lock", "run.owner"}


@pytest.mark.parametrize(
    "name", ["best.safetensors", "last.safetensors", "next.safetensors", "results.png", "notes.txt", "metrics.jsonl"]
)
def test_run_with_results_is_never_overwritten(folder: RunFolder, tiny: ModuleType, name: str) -> None:
    with folder.open(resume=False):
        config.save(tiny.EXPERIMENT, folder.experiment)
        (folder.path / name).write_text('{"kind": "evaluation"}\n')  # someone keeps its curve
    for attempt in (lambda: folder.check(resume=False), folder.open(resume=False).__enter__):
        with pytest.raises(UserError, match="not empty"):
            attempt()
    assert (folder.path / name).exists() and folder.experiment.exists()
    assert not (folder.path / "run.lock").exists()


def test_experiment_is_not_written_again_unless_it_changed(folder: RunFolder, tiny: ModuleType) -> None:
    with folder.open(resume=False):
        folder.save_experiment(tiny.EXPERIMENT)
        before = folder.experiment.stat().st_ino
        folder.save_experiment(tiny.EXPERIMENT)
        assert folder.experiment.stat().st_ino == before
        folder.save_experiment(tiny.experiment(schedule={"epochs": 9}))
        assert config.load(folder.experiment).schedule.epochs == 9


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("moment", [0, 1])
def test_the_newest_state_is_loaded_whenever_a_save_was_killed(
    folder: RunFolder, moment: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Killed(BaseException):
        pass

    renames = 0
    rename = os.replace

    def killed_rename(source: Path, target: Path) -> None:
        nonlocal renames
        if Path(source).parent == folder.path and not Path(source).name.startswith("."):
            if renames == moment:
                raise Killed
            renames += 1
        rename(source, target)

    with folder.open(resume=False):
        folder.save_last(tensors(1), state(1))
        monkeypatch.setattr(os, "replace", killed_rename)
        with pytest.raises(Killed):
            folder.save_last(tensors(2), state(2))
        monkeypatch.undo()
        with caplog.at_level(logging.WARNING):
            assert folder.load_last().meta["step"] == 2
        assert "next.safetensors" in caplog.text
        folder.save_last(tensors(3), state(3))  # and the run goes on
        assert folder.load_last().meta["step"] == 3
        assert {path.name for path in folder.path.glob("*.safetensors")} == {"last.safetensors", "previous.safetensors"}


def test_resume_refuses_other_settings_and_names_them(
    folder: RunFolder, tiny: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    with folder.open(resume=False):
        config.save(tiny.EXPERIMENT, folder.experiment)
        folder.check_unchanged(tiny.EXPERIMENT)
        with pytest.raises(UserError, match="other settings") as raised:
            folder.check_unchanged(tiny.experiment(optimizer={"lr": 2e-3}, data={"batch_size": 2}))
        assert "optimizer.lr: 0.001 -> 0.002" in str(raised.value)
        assert "data.batch_size: 4 -> 2" in str(raised.value)
        with caplog.at_level(logging.WARNING):
            runtime = {"workers": 1, "precision": "bf16"}
            folder.check_unchanged(tiny.experiment(schedule={"epochs": 9}, runtime=runtime))
        assert "schedule.epochs: 2 -> 9" in caplog.text and "workers" not in caplog.text
        assert 'runtime.precision: "auto" -> "bf16"' in caplog.text


def test_a_detector_in_place_of_the_training_state_is_skipped(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    with folder.open(resume=False):
        folder.save_last(tensors(1), {"step": 1})
        folder.save_last(tensors(2), {"step": 2})
        format.save(folder.last, tensors(3), {"step": 9, "classes": {}, "scores": {}})  # cp best last
        assert folder.load_last().meta["step"] == 1
        assert "last.safetensors' is a detector, not a training state" in caplog.text
        assert "resuming from previous.safetensors" in caplog.text
        folder.previous.unlink()
        with pytest.raises(UserError, match="cannot be resumed. .*is a detector, not a training state"):
            folder.load_last()
        format.save(folder.best, tensors(3), {"step": 9})  # cp last best
        with pytest.raises(UserError, match="is not a detector"):
            folder.read_best()
        assert format.load(folder.best).meta["step"] == 9


def test_a_damaged_metrics_file_of_a_failed_start_can_be_replaced(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    folder.metrics.write_bytes(b"\xff\x00")
    folder.check(resume=False)
