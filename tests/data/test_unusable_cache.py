"""Where the cache of checked annotations cannot be used, datasets open without it, and a warning gives the reason."""

import os
import pickle
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from detrs.data import FolderDataset, annotation_cache
from detrs.data.cache_folder import cache_folder
from detrs.data.detect import find_split
from detrs.errors import UserError

Change = Callable[[Any], object]


def opened(folder: Any, *, cached: bool = True) -> FolderDataset:
    return FolderDataset(find_split(folder.root, "train"), cache_annotations=cached)


def huge_id(folder: Any) -> None:
    folder.data["images"][2]["id"] = 2**63


def no_extension(folder: Any) -> None:
    path = folder.image()
    path.rename(path.with_suffix(".photo"))
    folder.data["images"][0]["file_name"] = path.with_suffix(".photo").name


OBSTACLES: dict[str, tuple[Change, str]] = {
    "id": (huge_id, "image ids of more than 64 bits"),
    "name": (no_extension, r"photo 0.photo has an unusual name"),
    "clock": (lambda _: None, "changed in the future"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_a_dataset_that_is_never_stored_is_reported_once(
    folder: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    change, reason = OBSTACLES[name]
    change(folder)
    folder.write()
    if name == "clock":
        now = time.time()
        monkeypatch.setattr("detrs.data.annotation_cache.time.time", lambda: now - 3600)
    opened(folder), opened(folder)
    (message,) = caplog.messages
    assert str(folder.root) in message and reason in message and caplog.records[0].levelname == "WARNING"
    assert not list(cache.glob("*.arrays"))


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("reason", ["a file", "full"])
def test_a_cache_that_cannot_be_written_is_reported_and_not_used(
    folder: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    expected = opened(folder, cached=False).fingerprint()
    if reason == "a file":
        cache.parent.write_text("not a folder")
    else:

        def full(*arguments: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("detrs.files.os.fsync", full)
    for _ in range(2):
        assert opened(folder).fingerprint() == expected
    (message,) = caplog.messages
    assert message.startswith(f"The checked dataset {folder.root}") and "Set DETRS_CACHE to a folder" in message
    assert not cache.is_dir() or not [path for path in cache.iterdir() if path.suffix != ".lock"]


@pytest.mark.skipif(os.name != "posix", reason="users of POSIX")
@pytest.mark.parametrize("given", [None, "~nobodyhere/x"])
def test_a_dataset_opens_without_a_home_folder(
    folder: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given: str | None
) -> None:
    """As a user without an entry in the list of users, in a container."""
    expected = opened(folder, cached=False).fingerprint()
    for name in ("HOME", "XDG_CACHE_HOME", "DETRS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv("DETRS_CACHE", given)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert opened(folder).fingerprint() == expected
    (message,) = caplog.messages
    assert "There is no cache folder" in message and (given or "") in message and "Set DETRS_CACHE" in message
    with pytest.raises(UserError, match=r"There is no cache folder.*Set DETRS_CACHE to a folder"):
        cache_folder("huggingface")


def test_a_process_that_waits_tells_so(
    folder: Any, cache: Path, checks: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(annotation_cache, "NOTICE_S", 0.05)
    expected = opened(folder).fingerprint()
    (stored,), kept = cache.glob("*.arrays"), cache / "kept"
    stored.rename(kept)
    lock = FileLock(stored.with_suffix(".lock"), thread_local=False)
    lock.acquire()

    def finish() -> None:
        while not caplog.messages:
            time.sleep(0.01)
        kept.rename(stored)
        lock.release()

    with ThreadPoolExecutor(1) as other:
        other.submit(finish)
        assert opened(folder).fingerprint() == expected
    path = folder.root / "annotations" / "train.json"
    assert caplog.messages == [f"Waiting for another process that checks the dataset {path}."] and len(checks) == 1
    assert caplog.records[0].levelname == "WARNING"  # visible without a handler


@pytest.mark.skipif(os.name != "posix", reason="users of POSIX")
def test_a_file_of_another_user_is_not_used(
    folder: Any, cache: Path, checks: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = opened(folder)
    expected = dataset.fingerprint()
    stored = pickle.dumps(dataset)
    (path,) = cache.glob("*.arrays")
    before, real = path.read_bytes(), os.fstat

    def other(descriptor: int) -> os.stat_result:
        status = list(real(descriptor))
        status[stat.ST_UID] = os.geteuid() + 1
        return os.stat_result(status)

    monkeypatch.setattr("detrs.data.array_file.os.fstat", other)
    assert opened(folder).fingerprint() == expected and opened(folder).fingerprint() == expected
    (message,) = caplog.messages
    assert f"{path} cannot be used: it belongs to another user. Set DETRS_CACHE" in message
    assert len(checks) == 3 and path.read_bytes() == before
    with pytest.raises(UserError, match="was removed or replaced"):
        pickle.loads(stored)


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_pipe_in_the_cache_does_not_block(folder: Any, cache: Path, checks: list[Path]) -> None:
    opened(folder)
    (path,) = cache.glob("*.arrays")
    path.unlink()
    os.mkfifo(path)
    opened(folder), opened(folder)
    assert len(checks) == 2 and path.is_file()
