import os
import zlib
from pathlib import Path

import pytest

from detrs import files
from detrs.errors import UserError


def test_text_replaces_text_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("old", "new: 血小板"):
        files.write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_keeps_the_old_text_and_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.json"
    files.write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(UserError, match=r"Cannot write the file .*a.json: No space left on device \([\d,]+ bytes"):
            files.write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot rename .*a to b: No such file"):
        files.rename(tmp_path / "a", tmp_path / "b")


def test_an_error_of_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_remove_partial_touches_nothing_else(tmp_path: Path) -> None:
    keep = {"best.safetensors", ".hidden", "notes.tmp", ".best.safetensors", ".swap.tmp"}
    partial = (".last.safetensors.0123456789ab.tmp", ".best.safetensors.9.tmp", ".results.png.0123456789ab.tmp")
    for name in (*keep, *partial):
        (tmp_path / name).write_bytes(b"x")
    assert files.remove_partial(tmp_path) == 3
    assert {path.name for path in tmp_path.iterdir()} == keep


def test_checksum_is_that_of_the_contents_in_their_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"one"), second.write_bytes(b"two")
    before = files.checksum([first, second])
    assert before == files.checksum([str(first), str(second)]) == zlib.crc32(b"onetwo")
    second.write_bytes(b"twp")
    assert before != files.checksum([first, second])
