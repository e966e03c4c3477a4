import json
import logging
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

from detrs import config
from detrs.engine import lock as lock_module
from detrs.engine.run import RunFolder
from detrs.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "first")


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


def lock(folder: RunFolder, **owner: Any) -> None:
    folder.path.mkdir(parents=True)
    process = psutil.Process()
    this = {"pid": process.pid, "started": process.create_time(), "host": socket.gethostname()}
    (folder.path / "run.lock").write_text(json.dumps({**this, **owner}))


@pytest.fixture(params=["flock", "file"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernel's locks, and where there are none."""
    if request.param == "file":
        monkeypatch.setattr(lock_module, "fcntl", None)
    elif lock_module.fcntl is None:
        pytest.skip("no flock here")
    return str(request.param)


def test_second_run_in_one_folder_is_refused(folder: RunFolder, kind: str) -> None:
    with folder.open(resume=False):
        other = RunFolder(folder.path)
        for attempt in (other.open(resume=True).__enter__, lambda: other.check(resume=False)):
            with pytest.raises(UserError, match=f"process {os.getpid()} is running"):
                attempt()
        assert (folder.path / "run.lock").exists()  # the refused one did not take it away
    assert not (folder.path / "run.lock").exists()
    with RunFolder(folder.path).open(resume=False):
        pass


def test_lock_of_a_dead_process_is_taken_over(folder: RunFolder, kind: str) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock(folder, pid=dead.pid)
    with folder.open(resume=False):
        assert json.loads((folder.path / "run.lock").read_text())["pid"] == os.getpid()


def test_lock_of_a_dead_process_whose_number_lives_on_is_taken_over(folder: RunFolder, kind: str) -> None:
    lock(folder, started=psutil.Process().create_time() - 3600)  # in containers every run is process 1
    with folder.open(resume=False):
        pass


@pytest.mark.parametrize("text", ["", '{"pid": 1', "{}", "[]", '{"pid": 1}', '{"host": "elsewhere"}'])
def test_torn_lock_is_taken_over(folder: RunFolder, kind: str, text: str) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / "run.lock").write_text(text)
    folder.check(resume=False)
    with folder.open(resume=False):
        assert json.loads((folder.path / "run.lock").read_text())["pid"] == os.getpid()


@pytest.mark.skipif(lock_module.fcntl is None, reason="no flock here")
def test_run_of_a_container_that_is_gone_does_not_block(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    """A restarted container has another host name; the kernel knows that nobody holds the lock."""
    lock(folder, host="elsewhere")
    folder.check(resume=False)
    with caplog.at_level(logging.WARNING), folder.open(resume=False):
        assert json.loads((folder.path / "run.lock").read_text())["host"] == socket.gethostname()
    assert "machine 'elsewhere'" in caplog.text


def test_without_flock_the_lock_of_another_machine_is_respected(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "fcntl", None)
    lock(folder, host="elsewhere")
    for attempt in (folder.open(resume=False).__enter__, lambda: folder.check(resume=False)):
        with pytest.raises(UserError, match="machine 'elsewhere'.*delete run.lock"):
            attempt()


@pytest.mark.skipif(lock_module.fcntl is None, reason="no flock here")
def test_lock_is_held_by_a_process_not_by_what_the_file_says(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('locked', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder.path / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match="other process is running"), folder.open(resume=False):
            pass
        holder.kill()
    with folder.open(resume=False):
        pass


@pytest.mark.skipif(lock_module.fcntl is None, reason="no flock here")
def test_lock_taken_away_while_it_is_opened_is_not_held(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner unlinks its file after the next one opened it: that one must not lock a file without a name."""
    folder.path.mkdir(parents=True)
    path = folder.path / "run.lock"
    locked, calls = lock_module._locked, []

    def slowly(descriptor: int) -> bool | None:
        calls.append(descriptor)
        if len(calls) == 1:
            path.unlink()
        return locked(descriptor)

    monkeypatch.setattr(lock_module, "_locked", slowly)
    with folder.open(resume=False):
        assert len(calls) == 2 and json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything is writable for root")
def test_folder_without_permission_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="cannot be written"), RunFolder(tmp_path / "run").open(resume=False):
        pass


def test_what_a_killed_save_left_is_removed(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / ".last.safetensors.0123456789ab.tmp").write_bytes(b"half")
    with folder.open(resume=False):
        assert not list(folder.path.glob("*.tmp")) and not list(folder.path.glob(".*.tmp"))


def test_newest_whole_state_is_loaded(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with folder.open(resume=False):
        for step in (1, 2, 3):
            folder.save_last(tensors(step), {"step": step})
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
            folder.save_last(tensors(evaluated_step), {"step": 4, "evaluated_step": evaluated_step})
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
        folder.save_last(tensors(1), {"step": 1})
        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(UserError, match=r"Cannot rename .*last.safetensors to previous.safetensors: Permission"):
            folder.save_last(tensors(2), {"step": 2})


def test_start_that_failed_before_its_first_checkpoint_can_be_repeated(folder: RunFolder, tiny: ModuleType) -> None:
    with folder.open(resume=False):
        config.save(tiny.EXPERIMENT, folder.experiment)
        folder.metrics.write_text('{"kind": "step"}\n')
        for name in ("train_batch_0.jpg", ".best.safetensors.0123456789ab.tmp"):
            (folder.path / name).write_bytes(b"x")
    folder.check(resume=False)
    with folder.open(resume=False):
        assert [path.name for path in folder.path.iterdir()] == ["run.lock"]


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
        folder.save_last(tensors(1), {"step": 1})
        monkeypatch.setattr(os, "replace", killed_rename)
        with pytest.raises(Killed):
            folder.save_last(tensors(2), {"step": 2})
        monkeypatch.undo()
        with caplog.at_level(logging.WARNING):
            assert folder.load_last().meta["step"] == 2
        assert "next.safetensors" in caplog.text
        folder.save_last(tensors(3), {"step": 3})  # and the run goes on
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
            folder.check_unchanged(tiny.experiment(schedule={"epochs": 9}, runtime={"workers": 1}))
        assert "schedule.epochs: 2 -> 9" in caplog.text and "workers" not in caplog.text
