import errno
import gc
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest

from detrs.engine import lock as lock_module
from detrs.engine.lock import FolderLock
from detrs.engine.run import RunFolder
from detrs.errors import UserError

HOLDER = """
import os, sys
from pathlib import Path
import filelock
from detrs.engine import lock as lock_module
lock_module.FileLock = getattr(filelock, sys.argv[2])
lock = lock_module.FolderLock(Path(sys.argv[1]))
lock.acquire()
print("locked", flush=True)
sys.stdin.read()
os._exit(0)
"""
"""Holds the lock of a folder until its standard input is closed, then ends without releasing it."""
HERE = {"pid": 1, "host": socket.gethostname()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(params=["native", "soft"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With locks of the operating system, and as on file systems that have none."""
    if request.param == "soft":
        monkeypatch.setattr(lock_module, "FileLock", filelock.SoftFileLock)
    return str(request.param)


def owner(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.owner").read_text()))


def in_child(work: Callable[[], None]) -> int:
    """The exit status of a forked process that runs ``work``."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        FolderLock(folder).acquire()
    return str(caught.value)


def test_a_second_run_is_refused_until_the_first_one_ends(folder: Path, kind: str) -> None:
    first = RunFolder(folder / "run")
    with first.open(resume=False):
        second = RunFolder(first.path)
        for attempt in (second.open(resume=True).__enter__, lambda: second.check(resume=False)):
            with pytest.raises(UserError, match=rf"Another run is using .*process {os.getpid()} on '"):
                attempt()
        assert (first.path / "run.lock").exists()  # still locked by the first run
        assert owner(first.path) == {**HERE, "pid": os.getpid()}
    assert list(first.path.iterdir()) == []
    with RunFolder(first.path).open(resume=False):
        pass


@pytest.mark.parametrize("end", ["killed", "exited"])
def test_the_lock_of_a_dead_process_is_free(folder: Path, kind: str, end: str) -> None:
    command = [sys.executable, "-c", HOLDER, str(folder), "FileLock" if kind == "native" else "SoftFileLock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        assert f"process {holder.pid} on '{socket.gethostname()}'" in refused(folder)
        with pytest.raises(UserError, match=f"process {holder.pid} "):
            FolderLock(folder).raise_if_held()
        if end == "killed":
            holder.kill()
    assert (folder / "run.lock").exists() and (folder / "run.owner").exists()
    FolderLock(folder).raise_if_held()
    lock = FolderLock(folder)
    lock.acquire()
    assert owner(folder)["pid"] == os.getpid()
    lock.release()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("text", ["", '{"pid": 1', "{}", "[]", '{"pid": 1}', '{"host": "elsewhere"}'])
def test_a_damaged_owner_file_does_not_matter(folder: Path, text: str) -> None:
    (folder / "run.lock").write_text("")
    (folder / "run.owner").write_text(text)
    FolderLock(folder).raise_if_held()
    lock = FolderLock(folder)
    lock.acquire()
    assert owner(folder) == {**HERE, "pid": os.getpid()}
    (folder / "run.owner").write_text(text)
    assert "Another run is using the folder" in refused(folder)
    lock.release()


def test_files_left_by_a_run_on_another_host_do_not_block(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A restarted container has another host name, but the lock is free."""
    (folder / "run.lock").write_text("")
    (folder / "run.owner").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    FolderLock(folder).raise_if_held()
    lock = FolderLock(folder)
    with caplog.at_level(logging.WARNING):
        lock.acquire()
    assert "host 'elsewhere'" in caplog.text and owner(folder)["host"] == socket.gethostname()
    lock.release()


def test_a_held_lock_of_another_host_can_be_removed_by_hand(folder: Path) -> None:
    lock = FolderLock(folder)
    lock.acquire()
    (folder / "run.owner").write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    assert "process 7 on 'elsewhere'). Choose another folder, or delete run.lock if" in refused(folder)
    lock.release()


def test_a_lock_file_removed_while_it_is_opened_is_not_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner removes the file after this process opened it; a lock on a removed file does not exclude other runs."""
    import fcntl

    flock, calls = fcntl.flock, []

    def slowly(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            (folder / "run.lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", slowly)
    lock = FolderLock(folder)
    lock.acquire()
    monkeypatch.undo()
    assert len(calls) >= 2 and (folder / "run.lock").exists()
    assert "Another run" in refused(folder)
    lock.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_processes_neither_hold_nor_release_the_lock(folder: Path) -> None:
    lock = FolderLock(folder)
    lock.acquire()

    def release() -> None:
        lock.release()

    def drop() -> None:
        nonlocal lock
        del lock
        gc.collect()

    for work in (release, drop, lambda: None):
        assert in_child(work) == 0
        assert owner(folder)["pid"] == os.getpid() and "Another run" in refused(folder)

    child = os.fork()  # as a loader process that is still there when the run ends
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        lock.release()
        other = FolderLock(folder)
        other.acquire()
        other.release()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_full_disk_leaves_the_folder_unlocked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise UserError("disk full")

    lock = FolderLock(folder)
    with monkeypatch.context() as patch:
        patch.setattr(lock_module, "write_text", fail)
        with pytest.raises(UserError, match="disk full"):
            lock.acquire()
    assert list(folder.iterdir()) == []
    other = FolderLock(folder)
    other.acquire()
    other.release()


def test_a_folder_that_becomes_read_only_does_not_hide_the_error_of_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FolderLock(folder)
    lock.acquire()

    def read_only(self: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", read_only)
    lock.release()
    monkeypatch.undo()
    FolderLock(folder).acquire()  # it is unlocked, although its files remain
