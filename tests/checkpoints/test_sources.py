"""One entrance for every kind of checkpoint."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from detrs import models, presets
from detrs.checkpoints import TrainedDetector, hub, published, save_detector
from detrs.checkpoints.classes import coco_classes
from detrs.checkpoints.detector import preprocessing_of
from detrs.checkpoints.foreign.official_detr import official_state_dict
from detrs.checkpoints.foreign.transformers import save_transformers
from detrs.checkpoints.sources import FOLDER, OFFICIAL, OWN, open_detector, open_source
from detrs.cli.convert import WEIGHT_SUFFIXES
from detrs.engine.evaluate import evaluate_checkpoint
from detrs.errors import UserError
from detrs.predictor import load


@pytest.fixture(scope="module")
def detector() -> TrainedDetector:
    full = presets.preset("detr-r50")
    small = {"dim": 64, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 48, "num_queries": 7}
    experiment = replace(full, model=replace(full.model, **small))
    torch.manual_seed(0)
    return TrainedDetector(
        module=models.build(experiment.model).eval(),
        classes=coco_classes(experiment.model.num_classes),
        preprocessing=preprocessing_of(experiment),
        experiment=experiment,
        scores={"ap": 0.125},
        step=3,
        epoch=1,
    )


@pytest.fixture(scope="module")
def folder(detector: TrainedDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run``, ``transformers`` and ``official.pth`` with the same weights."""
    root = tmp_path_factory.mktemp("sources")
    (root / "run").mkdir()
    save_detector(root / "run/best.safetensors", detector)
    save_transformers(detector, root / "transformers")
    torch.save({"model": official_state_dict(detector)}, root / "official.pth")
    return root


def outputs(detector: TrainedDetector) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    padding = torch.zeros(1, 61, 97, dtype=torch.bool)
    with torch.no_grad():
        return tuple(detector.module.detect(torch.randn(1, 3, 61, 97), padding, 20))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("run", OWN),
        ("run/best.safetensors", OWN),
        ("transformers", FOLDER),
        ("transformers/model.safetensors", FOLDER),
        ("official.pth", OFFICIAL),
    ],
)
def test_every_kind_gives_the_same_detector(folder: Path, detector: TrainedDetector, name: str, kind: str) -> None:
    found = open_source(folder / name)
    assert found.kind == kind and not found.detector.module.training
    assert all(torch.equal(*pair) for pair in zip(outputs(found.detector), outputs(detector), strict=True))
    assert found.detector.classes == detector.classes
    assert found.detector.scores == ({"ap": 0.125} if kind == OWN else {})


def test_old_weights_of_transformers(folder: Path, detector: TrainedDetector, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(folder / "transformers" / name, tmp_path)
    torch.save(load_file(folder / "transformers/model.safetensors"), tmp_path / "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        found = open_detector(path)
        assert all(torch.equal(*pair) for pair in zip(outputs(found), outputs(detector), strict=True))


def test_the_suffix_does_not_decide(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "official.pth", tmp_path / "weights")
    assert open_source(tmp_path / "weights").kind == OFFICIAL
    shutil.copy(folder / "run/best.safetensors", tmp_path / "mine.st")
    assert open_source(tmp_path / "mine.st").kind == OWN


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module."])
def test_names_of_wrapped_models(detector: TrainedDetector, tmp_path: Path, prefix: str) -> None:
    state = official_state_dict(detector)
    torch.save({"model": {prefix + name: tensor for name, tensor in state.items()}}, tmp_path / "wrapped.pth")
    for mine, other in zip(outputs(open_detector(tmp_path / "wrapped.pth")), outputs(detector), strict=True):
        assert torch.equal(mine, other)


def test_scores_and_dilation_of_published_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The name gives the dilation of C5; the AP is promised only for the published bytes."""
    from detrs.checkpoints.foreign import official_detr

    seen = []
    read = official_detr.read
    monkeypatch.setattr(official_detr, "read", lambda *arguments: seen.append(arguments[2]) or read(*arguments))
    path = tmp_path / "detr-r50-dc5-f0fb7ef5.pth"
    shutil.copy(folder / "official.pth", path)
    found = open_source(path)
    assert seen == [{"dilation": True}] and found.detector.scores == {} and found.published is None
    assert "detr-r50-dc5-f0fb7ef5.pth' is not the published file" in caplog.text
    caplog.clear()
    shutil.copy(folder / "official.pth", tmp_path / "r50_deformable_detr-checkpoint (1).pth")
    assert open_detector(tmp_path / "r50_deformable_detr-checkpoint (1).pth").scores == {"ap": 0.445}
    assert not caplog.records


def test_predict_and_evaluate_use_it(folder: Path) -> None:
    found = load(str(folder / "official.pth"))(torch.zeros(3, 61, 97, dtype=torch.uint8), threshold=0.0)
    assert len(found) == 1
    with pytest.raises(UserError, match=r"path of a dataset, as published weights .*--data FOLDER"):
        evaluate_checkpoint(str(folder / "official.pth"))
    with pytest.raises(UserError, match="The data folder nowhere does not exist"):
        evaluate_checkpoint(str(folder / "official.pth"), data="nowhere")


def test_missing_paths(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that resembles an existing one is not looked up on the Hub."""
    monkeypatch.setattr(hub, "download", lambda repository: pytest.fail(f"looked up {repository}"))
    monkeypatch.chdir(folder)
    for source, message in [
        ("run/bst.safetensors", "There is no checkpoint .* Did you mean 'best.safetensors'"),
        ("transformers/model.safetensor", "Did you mean 'model.safetensors'"),
        ("offical.pth", r"There is no file or folder 'offical.pth'. Did you mean 'official.pth'\? Expected"),
        ("tranformers", "Did you mean 'transformers'"),
        ("detr-r50-e632da11", "Did you mean 'detr-r50-e632da11.pth'"),
        ("./owner/name", "There is no file or folder"),
        ("/owner/name", "There is no file or folder"),
        ("a/b/c", "There is no file or folder"),
        ("", "no best.safetensors"),
    ]:
        with pytest.raises(UserError, match=message):
            open_detector(source)


def test_incomplete_folders(folder: Path, tmp_path: Path) -> None:
    config, weights = folder / "transformers/config.json", folder / "transformers/model.safetensors"
    for name, files, message in [
        ("a", {"config.json": config}, "has config.json, but no weights"),
        ("b", {"model.safetensors": weights}, "has model.safetensors, but no config.json. Add config.json"),
        ("e", {"pytorch_model.bin": weights}, "has pytorch_model.bin, but no config.json. Add config.json"),
        ("b/model.safetensors", {}, "has no config.json beside it"),
        ("c", {"last.safetensors": weights}, "has no best.safetensors"),
        ("d", {"d.pth": folder / "official.pth"}, "Pass one of its files: d.pth"),
    ]:
        path = tmp_path / name
        for file, source in files.items():
            path.mkdir(exist_ok=True)
            shutil.copy(source, path / file)
        with pytest.raises(UserError, match=message):
            open_detector(path)


def test_settings_without_weights(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"config\.json' has settings, but no weights\. Pass its folder '.*transformers'"
    ):
        open_detector(folder / "transformers/config.json")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fc.weight", r"not of a supported detector: they begin with fc\.weight"),
        ("layer1.0.conv1.weight", r"weights of a ResNet, not of a detector.*--backbone"),
        ("mask_head.lay1.weight", "for segmentation.*Expected those of object detection"),
    ],
)
def test_weights_of_other_models(tmp_path: Path, name: str, message: str) -> None:
    torch.save({"model": {name: torch.ones(2)}}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        open_detector(tmp_path / "a.pth")


def test_a_file_without_tensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors' has no tensors\. Expected the weights of a detector"):
        open_detector(tmp_path / "a.safetensors")


def test_hub_ids(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A local folder of that name comes first; a revision promises no scores."""
    monkeypatch.chdir(tmp_path)
    downloaded = []

    def download(repository: hub.Repository) -> Path:
        downloaded.append(tuple(repository))
        return folder / "transformers"

    monkeypatch.setattr(hub, "download", download)
    assert open_detector("facebook/detr-resnet-50").scores == {"ap": 0.42}
    assert open_detector("facebook/detr-resnet-50@no_timm").scores == {}
    assert downloaded == [("facebook/detr-resnet-50", None), ("facebook/detr-resnet-50", "no_timm")]
    shutil.copytree(folder / "run", "facebook/detr-resnet-50")
    assert open_source("facebook/detr-resnet-50").kind == OWN
    assert len(downloaded) == 2


def answer(monkeypatch: pytest.MonkeyPatch, error: Exception | None, names: tuple[str, ...] = ()) -> list[object]:
    """Replace the two functions of huggingface_hub; returns the calls of ``snapshot_download``."""
    calls: list[object] = []

    def model_info(self: object, name: str, **options: object) -> SimpleNamespace:
        assert 0 < float(str(options["timeout"])) <= 10
        if error:
            raise error
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(name: str, **options: object) -> str:
        calls.append({"name": name, **options})
        if options.get("local_files_only"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        return "/cache/snapshot"

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def http_error(kind: str) -> Exception:
    """An error of huggingface_hub, whose arguments depend on its version."""
    error: type[Exception] = getattr(huggingface_hub.errors, kind)
    return error.__new__(error)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", r"no file or folder 'a/b', and no public repository.*hf auth login"),
        ("GatedRepoError", r"'a/b' \(revision 'c'\) is gated: accept its conditions at https://huggingface.co/a/b"),
        ("RevisionNotFoundError", "'a/b' has no revision 'c'"),
        (
            ConnectionError("x"),
            r"no file .*not in the cache, and the .* cannot be reached \(ConnectionError\)",
        ),
        (huggingface_hub.errors.OfflineModeIsEnabled("x"), r"cannot be reached \(HF_HUB_OFFLINE is set\)"),
    ],
)
def test_errors_of_the_hub(monkeypatch: pytest.MonkeyPatch, error: str | Exception, message: str) -> None:
    answer(monkeypatch, http_error(error) if isinstance(error, str) else error)
    with pytest.raises(UserError, match=message) as raised:
        open_detector("a/b@c")
    assert str(raised.value).count("\n") == 0


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("config.json", "model.safetensors", "pytorch_model.bin"), ["config.json", "model.safetensors"]),
        (
            ("pytorch_model.bin", "config.json", "preprocessor_config.json", "tf_model.h5"),
            ["config.json", "preprocessor_config.json", "pytorch_model.bin"],
        ),
        (("config.json", "best.safetensors", "model.safetensors"), ["best.safetensors"]),
        (
            ("config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors"),
            ["config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"],
        ),
    ],
)
def test_files_to_download(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], wanted: list[str]) -> None:
    calls = answer(monkeypatch, None, names)
    assert hub.download(hub.Repository("a/b", "c")) == Path("/cache/snapshot")
    assert [(call["name"], call["revision"], call["allow_patterns"]) for call in calls] == [("a/b", "c", wanted)]


def test_repositories_without_a_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, None, ("README.md", "model.safetensors"))
    with pytest.raises(UserError, match="has no weights of a detector. Expected best.safetensors, or config.json"):
        hub.download(hub.Repository("a/b", None))


def test_the_cache_is_used_without_network(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache laid out as huggingface_hub does, and a network that is not reachable."""
    commit = "a" * 40
    root = tmp_path / "models--facebook--detr-resnet-50"
    shutil.copytree(folder / "transformers", root / "snapshots" / commit)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: (_ for _ in ()).throw(OSError("down")))
    assert open_source("facebook/detr-resnet-50").detector.scores == {"ap": 0.42}
    assert open_source(f"facebook/detr-resnet-50@{commit}").detector.scores == {}
    with pytest.raises(UserError, match=r"not in the cache.*\(OSError\)"):
        open_detector("facebook/detr-resnet-50@other")


def test_ids() -> None:
    assert hub.parse("a/b") == ("a/b", None) and hub.parse("a/b.c@v1/x") == ("a/b.c", "v1/x")
    for source in ("a", "a/b/c", "/a/b", "../a", "./a/b", "a\\b", "https://a/b", "a/b@", "a /b", "-a/b"):
        assert hub.parse(source) is None, source
    for suffix in (*WEIGHT_SUFFIXES, ".PT2", ".json"):
        assert hub.parse(f"a/b{suffix}") is None, suffix


def test_the_table_of_published_checkpoints() -> None:
    """Presets exist, with the AP that their descriptions give; hashes are those in the names."""
    import inspect

    assert len({each.source for each in published.TABLE}) == len(published.TABLE)
    for each in published.TABLE:
        about = inspect.getdoc(presets.PRESETS[each.preset]) or ""
        if each.preset != "faster-rcnn-r50-fpn":  # of torchvision, with another recipe
            assert about.startswith(f"AP {100 * each.ap:.1f}"), each
        assert each.preprocessing.resize_to == (800, 1333)
        assert each.dilated == (getattr(presets.preset(each.preset).model, "backbone").dilated)  # noqa: B009
        assert each.sha256 is None or (each.source.endswith(f"-{each.sha256}.pth") and len(each.sha256) == 8)
        assert each.on_hub == (hub.parse(each.source) is not None)
