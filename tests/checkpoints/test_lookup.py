"""The checkpoint that a path or an id names; messages with what to pass instead."""

from pathlib import Path

import pytest

from detrs.checkpoints.hub import Repository
from detrs.checkpoints.lookup import find
from detrs.checkpoints.sources import open_detector
from detrs.errors import UserError


def test_files_folders_and_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, other = tmp_path / "run", tmp_path / "transformers"
    for folder, names in ((run, ["best.safetensors"]), (other, ["config.json", "model.safetensors"])):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        assert find(folder) == find(str(folder)) == folder
    assert find("run/best.safetensors") == Path("run/best.safetensors")
    assert find("facebook/detr-resnet-50@main") == Repository("facebook/detr-resnet-50", "main")
    (tmp_path / "facebook" / "detr-resnet-50").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has no best\.safetensors"):  # a folder of this name is not the repository
        find("facebook/detr-resnet-50")


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        (["a/best.safetensors"], "a/bset.safetensors", "Did you mean 'best.safetensors'?"),
        (["a/detr.pth"], "a/dert.pth", "Did you mean 'detr.pth'?"),
        ([], "facebook/detr-resnet-5.pth", "There is no file or folder 'facebook/detr-resnet-5.pth'. Did you mean"),
        (["a/last.safetensors"], "a", "best.safetensors is written by the first evaluation"),
        (["a/config.json"], "a", "has config.json, but no weights"),
        (["a/model.safetensors"], "a", "has model.safetensors, but no config.json"),
        (["a/x.pth", "a/y.txt"], "a", "Pass one of its files: x.pth."),
        (["runs/best.safetensors"], "runs/first", "There is no file or folder 'runs/first'"),
    ],
)
def test_a_missing_checkpoint_is_an_error(
    files: list[str], source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if source == "runs/first":  # an id, unless the folder has something similar
        (tmp_path / "runs" / "firts").mkdir()
    with pytest.raises(UserError) as caught:
        find(source)
    assert message in str(caught.value)


@pytest.mark.parametrize("source", ["a\0b", "a\0b/best.safetensors", "a/\0.pth"])
def test_a_null_character_is_not_in_a_path(source: str) -> None:
    with pytest.raises(UserError, match="^There is no (checkpoint|file or folder)"):
        open_detector(source)


@pytest.mark.parametrize("which", ["stat", "lstat"])
def test_a_checkpoint_without_permission(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(Path, which, fail)
    with pytest.raises(UserError, match=r"^Cannot read the checkpoint '.*run': Permission denied\.$"):
        find(tmp_path / "run")


def test_suggestions_are_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.listdir", fail)
    with pytest.raises(UserError, match=r"^There is no checkpoint best\.safetensors\.$"):
        find("best.safetensors")
    with pytest.raises(UserError, match="Did you mean 'facebook/detr-resnet-50'"):
        find("facebok/detr-resnet-50.pth")
