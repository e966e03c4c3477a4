"""Uploads to the Hub, which is faked."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

import detrs
from detrs import models
from detrs.backbones.timm import BackboneConfig
from detrs.checkpoints.detector import TrainedDetector, load_detector, preprocessing_of, save_detector
from detrs.checkpoints.publishing import local_name, push_to_hub
from detrs.config import Experiment
from detrs.data.transforms import DataConfig
from detrs.errors import UserError
from detrs.models.anchor_detr import AnchorDETRConfig
from detrs.models.detr import DETRConfig
from detrs.structures import Classes


def run_folder(root: Path, model: Any) -> Path:
    """What a run leaves: an untrained detector, and curves."""
    experiment = Experiment(
        model=model,
        data=DataConfig(path=str(root / "secret" / "my-data")),
        initial=str(root / "secret" / "a.safetensors"),
    )
    detector = TrainedDetector(
        module=models.build(model),
        classes=Classes(("a", "b"), (1, 2)),
        preprocessing=preprocessing_of(experiment),
        experiment=experiment,
        scores={"ap": 0.5},
        step=3,
        epoch=1,
    )
    root.mkdir()
    save_detector(root / "best.safetensors", detector)
    (root / "results.png").write_bytes(b"png")
    (root / "metrics.jsonl").write_text(
        '{"kind": "evaluation", "step": 3, "per_class": {"a": '
        '{"num_objects": 9, "ap": 0.125, "ap50": 0.5, "ar": 0.5}}}\n'
    )
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DETR with a backbone that ``transformers`` has."""
    torch.manual_seed(0)
    backbone = BackboneConfig(name="resnet18.tv_in1k", weights="/secret/resnet.safetensors", stages=(5,))
    config = DETRConfig(num_classes=2, backbone=backbone, dim=32, num_heads=2, encoder_layers=1, decoder_layers=1)
    return run_folder(tmp_path_factory.mktemp("runs") / "first", config)


class FakeApi:
    """``HfApi`` that keeps what would be uploaded."""

    calls: list[dict[str, Any]]
    error: Exception | None

    def __init__(self, **options: Any) -> None:
        pass

    def create_repo(self, repo_id: str, **options: Any) -> str:
        type(self).calls.append({"repo_id": repo_id, **options})
        if self.error is not None:
            raise self.error
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> None:
        files = {path.name: path.stat().st_size for path in Path(folder_path).iterdir()}
        type(self).calls.append({"repo_id": repo_id, "files": files})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    FakeApi.calls, FakeApi.error = [], None
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    return FakeApi


def test_a_run_is_uploaded(run: Path, hub: type[FakeApi]) -> None:
    assert detrs.push_to_hub(run, "me/cells", private=True) == "https://huggingface.co/me/cells"
    created, uploaded = hub.calls
    assert created == {"repo_id": "me/cells", "private": True, "exist_ok": True}
    assert uploaded["files"].keys() == {
        *("best.safetensors", "README.md", "results.png"),
        *("config.json", "model.safetensors", "preprocessor_config.json"),
    }


def test_the_folder_is_what_load_opens(run: Path, hub: type[FakeApi], tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    assert push_to_hub(run / "best.safetensors", "me/cells", license="mit", dry_run=folder) == str(folder)
    assert hub.calls == []
    detector = detrs.load(folder, device="cpu").detector
    before = load_detector(run)
    given = before.module.state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in detector.module.state_dict().items())
    assert (detector.classes, detector.scores, detector.step) == (before.classes, before.scores, before.step)
    card = (folder / "README.md").read_text()
    assert "license: mit" in card and "| a | 9 | 0.125 | 0.500 | 0.500 |" in card
    assert (folder / "results.png").read_bytes() == b"png"


def test_no_path_of_the_machine_is_published(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    push_to_hub(run, "me/cells", dry_run=folder)
    for path in folder.iterdir():
        assert b"secret" not in path.read_bytes(), path.name
    experiment = load_detector(folder).experiment
    assert (experiment.data.path, experiment.initial) == ("my-data", "a.safetensors")
    assert experiment.model.backbone.weights == "resnet.safetensors"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (None, None),
        ("digits", "digits"),
        ("hf:keremberke/blood-cell", "hf:keremberke/blood-cell"),
        ("owner/name@v1.0", "owner/name@v1.0"),
        ("owner/name@refs/pr/7", "owner/name@refs/pr/7"),
        ("runs/best.safetensors", "best.safetensors"),
        ("data/my/images", "images"),
        ("folder/with@sign", "with@sign"),
        ("hf:a/b", "b"),
        ("~/data", "data"),
    ],
)
def test_names_on_the_hub_are_no_paths(
    value: str | None, kept: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for existing in ("folder/with@sign", "hf:a/b"):
        Path(existing).mkdir(parents=True)
    assert local_name(value) == kept


def test_a_repository_named_like_a_folder_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.stat", fail)
    assert local_name("owner/name") == "owner/name"
    assert local_name("/data/images") == "images"


def test_a_detector_that_transformers_does_not_have(tmp_path: Path) -> None:
    backbone = BackboneConfig(name="test_resnet", weights="none", stages=(5,))
    config = AnchorDETRConfig(num_classes=2, backbone=backbone, dim=32, num_heads=2, encoder_layers=1, decoder_layers=1)
    push_to_hub(run_folder(tmp_path / "run", config), "me/cells", dry_run=tmp_path / "folder")
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {"best.safetensors", "README.md", "results.png"}
    assert "from_pretrained" not in (tmp_path / "folder" / "README.md").read_text()


def test_a_copied_checkpoint_has_no_curves(run: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    shutil.copyfile(run / "best.safetensors", tmp_path / "copy" / "cells.safetensors")
    push_to_hub(tmp_path / "copy" / "cells.safetensors", "me/cells", dry_run=tmp_path / "folder")
    assert not (tmp_path / "folder" / "results.png").exists()
    assert "results.png" not in (tmp_path / "folder" / "README.md").read_text()


@pytest.mark.parametrize("name", ["cells", "me/cells/x", "/cells", "me/", "me/ce lls", "me/-cells", "me/a..b", ""])
def test_names_of_repositories(name: str, run: Path) -> None:
    with pytest.raises(UserError, match="Expected a repository as owner/name"):
        push_to_hub(run, name)


def test_arguments_are_checked_first(
    run: Path, tmp_path: Path, hub: type[FakeApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"license identifier .* got 'My license'"):
        push_to_hub(run, "me/cells", license="My license")
    with pytest.raises(UserError, match=r"nowhere"):
        push_to_hub(tmp_path / "nowhere.safetensors", "me/cells")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match=r"full' exists"):
        push_to_hub(run, "me/cells", dry_run=tmp_path / "full")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"no token .* hf auth login, or set HF_TOKEN .* --dry-run"):
        push_to_hub(run, "me/cells")
    assert hub.calls == []


def rejected(status: int, text: str = "") -> Exception:
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, text)
    error.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (rejected(401), "rejected 'me/cells': the token is invalid. Log in again"),
        (rejected(403), "the token has no write access to 'me'"),
        (rejected(507, "The disk is full\nat once"), "rejected 'me/cells': The disk is full"),
        (ConnectionError("no route"), r"cannot be reached \(ConnectionError\). Repeat the command with network"),
        (OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set: unset it"),
    ],
)
def test_faults_of_the_upload(error: Exception, message: str, run: Path, hub: type[FakeApi]) -> None:
    hub.error = error
    with pytest.raises(UserError, match=message) as caught:
        push_to_hub(run, "me/cells")
    assert "\n" not in str(caught.value)
