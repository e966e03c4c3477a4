"""PyTorch's weight files: both formats are read, and everything else is rejected before it is loaded."""

import argparse
import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrs.checkpoints.foreign.torch_file import read_torch_file
from detrs.errors import UserError

WEIGHTS = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.tensor([5.0, 7.0, 11.0]))


def save(path: Path, value: Any, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def assert_same(found: dict[str, Tensor]) -> None:
    assert list(found) == list(WEIGHTS)
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("entry", [None, "model", "state_dict", "model_state"])
def test_state_dicts_are_read(tmp_path: Path, entry: str | None, legacy: bool) -> None:
    path = save(tmp_path / "a.pth", {entry: WEIGHTS, "epoch": 3} if entry else WEIGHTS, legacy=legacy)
    assert_same(read_torch_file(path).tensors)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_training_checkpoint_of_the_authors(tmp_path: Path, legacy: bool) -> None:
    """``args`` is an argparse.Namespace; optimizer and schedule are beside the weights. No allow-list stays changed."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3])
    args = argparse.Namespace(
        lr=1e-4, masks=False, data=Path("x").name, lr_names=["a", "b"], device=torch.device("cpu")
    )
    values = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict()}
    path = save(tmp_path / "a.pth", {**values, "args": args, "meta": {"CLASSES": ("cat", "dog")}}, legacy=legacy)
    before = set(torch.serialization.get_safe_globals())
    tensors, found = read_torch_file(path)
    assert set(torch.serialization.get_safe_globals()) == before
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())
    settings = {"lr": 1e-4, "masks": False, "data": "x", "lr_names": ["a", "b"], "device": "device"}
    assert found == {**settings, "meta": {"CLASSES": ["cat", "dog"]}}


def test_an_allow_list_of_the_program_is_kept(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"model": WEIGHTS, "args": argparse.Namespace()})
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_torch_file(path)
        assert argparse.Namespace in torch.serialization.get_safe_globals()


def test_parameters_and_other_dtypes(tmp_path: Path) -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8)
    values = {str(dtype): torch.ones(2, 3).to(dtype) for dtype in dtypes}
    found = read_torch_file(save(tmp_path / "a.pth", {**values, "p": nn.Parameter(torch.ones(3))})).tensors
    assert all(torch.equal(found[name], value) for name, value in values.items())
    assert type(found["p"]) is Tensor and not found["p"].requires_grad


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (nn.Linear(2, 3), r"contains code: 'torch\.nn\.modules\.linear\.Linear'.*state_dict"),
        ({"w": torch.zeros(1).expand(10**9)}, "tensor of 1000000000 elements in a storage of 1"),
        ({"w": torch.tensor([1.0, float("nan")])}, "NaN or infinity in w"),
        ({"w": torch.tensor([1.0, float("inf")])}, "NaN or infinity in w"),
        ({"w": torch.eye(3).to_sparse()}, "sparse tensors"),
        ({"w": torch.empty(3, device="meta")}, "without values"),
        ({"w": torch.ones(2), "x": [1]}, "entry 'x' of type list"),
        ({"w": torch.ones(2), ("a", 1): torch.ones(2)}, "key of type tuple"),
        ({"model": {"a": 1}}, "no weights"),
        ({}, "no weights"),
        ([torch.ones(2)], "no weights"),
        ({"model": WEIGHTS, "args": {"a": list(range(20_000))}}, "too large"),
        ({"model": dict.fromkeys(map(str, range(99)), torch.ones(9999))}, "in the same memory"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_other_content(tmp_path: Path, value: Any, message: str, legacy: bool) -> None:
    path = save(tmp_path / "a.pth", value, legacy=legacy)
    with pytest.raises(UserError, match=message):
        read_torch_file(path)


def test_models_of_ultralytics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "ultralytics.nn.tasks"
    model = type("DetectionModel", (nn.Sequential,), {"__module__": name})
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(DetectionModel=model))
    for parent in ("ultralytics", "ultralytics.nn"):
        monkeypatch.setitem(sys.modules, parent, SimpleNamespace())
    path = save(tmp_path / "best.pt", {"model": model(nn.Linear(2, 3)), "epoch": -1})
    with pytest.raises(
        UserError, match=r"contains code: 'ultralytics\..* is of Ultralytics, whose architectures"
    ) as caught:
        read_torch_file(path)
    assert "torch.save" not in str(caught.value)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for content, message in [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (pickle.dumps({"a": 1}, 2), "a Python pickle without tensors"),
        (pickle.dumps({"a": 1}, 4), "pickle protocol 4"),
        (b"\x80\x02ctorch._utils\n_rebuild_qtensor\n.", "quantized tensors"),
        (b"\x80\x02}q\x00", "damaged"),
        (bytes(100), "not a PyTorch file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_torch_file(path)
    (tmp_path / "link.pth").symlink_to("gone")
    for other, message in [
        (tmp_path / "none.pth", "There is no file"),
        (tmp_path / "link.pth", "a dangling link to gone"),
        (tmp_path, "cannot be read"),
    ]:
        with pytest.raises(UserError, match=message):
            read_torch_file(other)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_truncation_is_detected(tmp_path: Path, legacy: bool) -> None:
    path = save(tmp_path / "a.pth", WEIGHTS, legacy=legacy)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged|empty|not a PyTorch|pickle"):
            read_torch_file(path)


def test_compressed_and_ambiguous_archives(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pth", WEIGHTS)
    with zipfile.ZipFile(source) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    path = tmp_path / "b.pth"
    for kind, extra, message in [
        (zipfile.ZIP_DEFLATED, "", "compressed entry"),
        (zipfile.ZIP_STORED, "b/DATA.pkl", "ambiguous"),
        (zipfile.ZIP_STORED, "a/data.PKL", "ambiguous"),
        (zipfile.ZIP_STORED, "a/code/x.py", "TorchScript"),
    ]:
        with zipfile.ZipFile(path, "w", kind) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
            if extra:
                archive.writestr(extra, b"x")
        with pytest.raises(UserError, match=message):
            read_torch_file(path)


def test_two_archives_one_after_the_other(tmp_path: Path) -> None:
    """Python would inspect the second, and PyTorch would read the first."""
    first = save(tmp_path / "a.pth", WEIGHTS).read_bytes()
    second = save(tmp_path / "a.pth", OrderedDict(weight=torch.zeros(2, 3), bias=torch.zeros(3))).read_bytes()
    assert len(first) == len(second)
    (tmp_path / "a.pth").write_bytes(first + second)
    with pytest.raises(UserError, match="damaged or truncated ZIP archive"):
        read_torch_file(tmp_path / "a.pth")
