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
from detrs.engine.run import RunFolder
from detrs.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "first")


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((3, 5), value)}


def test_new_or_empty_folder_is_accepted_and_made(folder: RunFolder) -> None:
    folder.check(resume=False)
    with folder.open():
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
    with folder.open():
        config.save(tiny.EXPERIMENT, folder.experiment)
        with pytest.raises(UserError, match="before its first checkpoint"):
            folder.check(resume=True)


def test_second_run_in_one_folder_is_refused(folder: RunFolder) -> None:
    with folder.open():
        for attempt in (RunFolder(folder.path).open().__enter__, lambda: RunFolder(folder.path).check(resume=False)):
            with pytest.raises(UserError, match=f"process {os.getpid()} is running"):
                attempt()
        assert (folder.path / "run.lock").exists()  # the refused one did not take it away
    assert not (folder.path / "run.lock").exists()
    with RunFolder(folder.path).open():
        pass


def lock(folder: RunFolder, **owner: Any) -> None:
    folder.path.mkdir(parents=True)
    process = psutil.Process()
    this = {"pid": process.pid, "started": process.create_time(), "host": socket.gethostname()}
    (folder.path / "run.lock").write_text(json.dumps({**this, **owner}))


def test_lock_of_a_dead_process_is_taken_over(folder: RunFolder) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock(folder, pid=dead.pid)
    with folder.open():
        assert json.loads((folder.path / "run.lock").read_text())["pid"] == os.getpid()


def test_lock_of_a_dead_process_whose_number_lives_on_is_taken_over(folder: RunFolder) -> None:
    lock(folder, started=psutil.Process().create_time() - 3600)  # in containers every run is process 1
    with folder.open():
        pass


def test_lock_of_another_machine_is_respected(folder: RunFolder) -> None:
    lock(folder, host="elsewhere")
    with pytest.raises(UserError, match="machine 'elsewhere'.*delete run.lock"), folder.open():
        pass


def test_torn_lock_is_taken_over(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / "run.lock").write_text('{"pid": 1')
    with folder.open():
        pass


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything is writable for root")
def test_folder_without_permission_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="cannot be written"), RunFolder(tmp_path / "run").open():
        pass


def test_what_a_killed_save_left_is_removed(folder: RunFolder) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / ".last.safetensors.0123456789ab.tmp").write_bytes(b"half")
    with folder.open():
        assert not list(folder.path.glob("*.tmp")) and not list(folder.path.glob(".*.tmp"))


def test_newest_whole_state_is_loaded(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with folder.open():
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


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("moment", [0, 1])
def test_a_state_is_there_whenever_a_save_is_killed(
    folder: RunFolder, moment: int, monkeypatch: pytest.MonkeyPatch
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

    with folder.open():
        folder.save_last(tensors(1), {"step": 1})
        monkeypatch.setattr(os, "replace", killed_rename)
        with pytest.raises(Killed):
            folder.save_last(tensors(2), {"step": 2})
        assert folder.load_last().meta["step"] in (1, 2)


def test_resume_refuses_other_settings_and_names_them(
    folder: RunFolder, tiny: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    with folder.open():
        config.save(tiny.EXPERIMENT, folder.experiment)
        folder.check_unchanged(tiny.EXPERIMENT)
        with pytest.raises(UserError, match="other settings") as raised:
            folder.check_unchanged(tiny.experiment(optimizer={"lr": 2e-3}, data={"batch_size": 2}))
        assert "optimizer.lr: 0.001 -> 0.002" in str(raised.value)
        assert "data.batch_size: 4 -> 2" in str(raised.value)
        with caplog.at_level(logging.WARNING):
            folder.check_unchanged(tiny.experiment(schedule={"epochs": 9}, runtime={"workers": 1}))
        assert "schedule.epochs: 2 -> 9" in caplog.text and "workers" not in caplog.text
