"""The entrance for backbone weights: only complete safetensors files with finite values, never a pickle."""

import ast
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save, save_file

import detrs
from detrs.backbones import weight_file
from detrs.backbones.timm import BackboneConfig, TimmBackbone, with_weights
from detrs.errors import UserError

TINY = BackboneConfig(name="test_resnet", norm="batch", freeze_stem=False)
WEIGHTS = {"conv1.weight": torch.ones(2, 3)}


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def forged(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(10**7))


def entry(*offsets: int) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": list(offsets)}}


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Canary(path.parent / "canary"))), "Python pickle"),
    "torch": (lambda path: torch.save({"a": Canary(path.parent / "canary")}, path), "ZIP archive"),
    "legacy torch": (
        lambda path: torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False),
        "Python pickle",
    ),
    "bomb": (zipped, "ZIP archive"),
    "web page": (lambda path: path.write_text("<!doctype html><html>"), "web page"),
    "LFS pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
    "empty": (lambda path: path.touch(), "an empty file"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), "not a .safetensors file"),
    "header of 2**60 bytes": (lambda path: path.write_bytes(b"\0" * 7 + b"\x10{}"), "not a .safetensors file"),
    "brackets": (lambda path: path.write_bytes(forged({})[:8] + b"[[" * 99), "not a .safetensors file"),
    "truncated": (lambda path: path.write_bytes(save(WEIGHTS)[:-7]), "bytes, but should have"),
    "trailing bytes": (lambda path: path.write_bytes(save(WEIGHTS) + b"PK"), "bytes, but should have"),
    "no tensors": (lambda path: path.write_bytes(save({})), "contains no tensors"),
    "overlap": (lambda path: path.write_bytes(forged({**entry(0, 4), "b": entry(0, 4)["a"]}, bytes(4))), "not a valid"),
    "type": (lambda path: path.write_bytes(forged({"a": {**entry(0, 4)["a"], "dtype": "Q"}}, bytes(4))), "not a valid"),
    "metadata": (lambda path: path.write_bytes(forged({"__metadata__": {"a": {}}})), "not a .safetensors file"),
    "NaN": (lambda path: save_file({"a.b": torch.tensor([1, torch.nan])}, path), "NaN or infinity in 'a.b'"),
    "FIFO": (os.mkfifo, "is a named pipe"),
    "folder": (os.mkdir, "Is a directory"),
    "link": (lambda path: path.symlink_to("nowhere"), "a dangling link to nowhere"),
    "missing": (lambda path: None, "There is no file"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
@pytest.mark.parametrize("kind", FILES)
def test_other_files_are_rejected_by_content(kind: str, suffix: str, tmp_path: Path) -> None:
    write, message = FILES[kind]
    path = tmp_path / f"weights{suffix}"
    write(path)
    with pytest.raises(UserError, match=message) as raised:
        TimmBackbone(with_weights(TINY, str(path)), pretrained=True)
    with pytest.raises(UserError, match=message):
        TimmBackbone(replace(TINY, weights=str(path)), pretrained=True)
    assert str(path) in str(raised.value) and "weights_only" not in str(raised.value)
    assert not (tmp_path / "canary").exists()


def test_a_safetensors_file_may_have_any_name(tmp_path: Path) -> None:
    weights = timm.create_model("test_resnet").state_dict()
    save_file(weights, tmp_path / "weights.bin")
    body = TimmBackbone(with_weights(TINY, str(tmp_path / "weights.bin")), pretrained=True).body
    torch.testing.assert_close(body.state_dict()["layer1.0.conv1.weight"], weights["layer1.0.conv1.weight"])
    descriptions = [getattr(module, "pretrained_cfg", {}) for module in body.modules()]
    assert not any("state_dict" in (description or {}) for description in descriptions)


@pytest.mark.parametrize("change", ["shape", "missing stem", "names"])
def test_tensors_of_another_model_are_named(change: str, tmp_path: Path) -> None:
    weights = timm.create_model("test_resnet").state_dict()
    if change == "shape":
        weights["conv1.0.weight"] = torch.zeros(7)
    elif change == "missing stem":
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith("conv1")}
    else:
        weights = {f"module.{name}": tensor for name, tensor in weights.items()}
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"other\.safetensors' (does not fit|is missing)"):
        TimmBackbone(replace(TINY, weights=str(tmp_path / "other.safetensors")), pretrained=True)


@pytest.mark.parametrize("mean", ["", "1,2", "a,b,c", "1,2,3,4"])
def test_metadata_of_the_preprocessing_are_checked(mean: str, tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "a.safetensors", {"mean": mean})
    with pytest.raises(UserError, match=r"a\.safetensors': expected three numbers as 'mean'"):
        with_weights(TINY, str(tmp_path / "a.safetensors"))


def test_downloaded_weights_pass_the_same_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, name: str, revision: str | None) -> str:
        asked.append((repository, name, revision))
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    config = replace(TINY, name="resnet18.a1_in1k")
    weights = timm.create_model("resnet18").state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    body = TimmBackbone(config, pretrained=True).body
    torch.testing.assert_close(body.state_dict()["conv1.weight"], weights["conv1.weight"])
    assert asked == [("timm/resnet18.a1_in1k", "model.safetensors", None)]
    torch.save(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="ZIP archive"):
        TimmBackbone(config, pretrained=True)
    with pytest.raises(UserError, match="no weights of 'legacy_senet154.in1k' in safetensors format"):
        TimmBackbone(replace(TINY, name="legacy_senet154.in1k"), pretrained=True)


def test_unreachable_weights_name_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(UserError, match=r"could not be downloaded \(ConnectionError\): connect once"):
        TimmBackbone(replace(TINY, name="resnet18.a1_in1k"), pretrained=True)


def test_a_stem_that_cannot_be_frozen_is_reported() -> None:
    with pytest.raises(UserError, match="--model.backbone.freeze-stem False"):
        TimmBackbone(replace(TINY, name="sam2_hiera_tiny", freeze_stem=True))


def test_an_unknown_tag_is_rejected() -> None:
    with pytest.raises(UserError, match=r"timm has no weights called 'resnet18.a1_in1kk'.*Did you mean"):
        TimmBackbone(replace(TINY, name="resnet18.a1_in1kk"))


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
FORBIDDEN_CALLS = {"torch.load", "torch.hub.load", "torch.jit.load", "np.load", "numpy.load", "eval", "exec"}
FORBIDDEN_NAMES = {"load_state_dict_from_url", "load_checkpoint", "load_pretrained", "checkpoint_path"}


def test_no_source_file_can_unpickle() -> None:
    """No unpickling function is imported or called, except one that is restricted to tensors.

    timm receives tensors, never a path or a URL.
    """
    sources = sorted(Path(detrs.__file__).parent.rglob("*.py"))
    creations, loads = 0, []
    for source in sources:
        text = source.read_text()
        uses_timm = re.search(r"^ *(import|from) timm\b", text, flags=re.MULTILINE)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES, source
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES, source
                assert not {alias.name for alias in node.names} & FORBIDDEN_NAMES, source
                assert node.module != "torch" or "load" not in {alias.name for alias in node.names}, source
            elif isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name == "torch.load" and source.name == "torch_file.py":  # after an inspection of the file
                    loads.append({keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords})
                    continue
                assert name not in FORBIDDEN_CALLS and name.split(".")[-1] not in FORBIDDEN_NAMES, (source, name)
                if name.startswith("timm.") and name.endswith("create_model"):
                    creations += 1
                    assert not {keyword.arg for keyword in node.keywords} & {"checkpoint_path", "pretrained_cfg"}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and uses_timm:
                assert node.value not in ("file", "url", "hf_hub_id", "custom_load"), (source, node.value)
    assert len(sources) > 50 and creations == 1
    assert loads == [{"map_location": "'cpu'", "weights_only": "True"}]
    assert weight_file.read.__module__ == "detrs.backbones.weight_file"
