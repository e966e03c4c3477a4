import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accuracy
import accuracy_peers
import accuracy_run
import page
import pytest
import torch
from accuracy_peers import BUILDERS, Found, Peer, Settings
from accuracy_trainers import NotInstalledError, write_yolo
from torch import nn

from detrs.data import digits
from detrs.engine import accuracy_run as engine

MARKS = "<!-- accuracy: begin --><!-- accuracy: end -->"
TINY = ["--data", "digits", "--presets", "deformable-detr-tiny", "--image-size", "64", "96", "--minutes", "0.02"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for results, page and figures; no run is trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(accuracy, "RESULTS", tmp_path / "results" / "accuracy.jsonl")
    monkeypatch.setattr(accuracy, "FIGURES", tmp_path / "docs" / "figures")
    monkeypatch.setattr(accuracy, "PAGE", tmp_path / "docs" / "accuracy.md")
    (tmp_path / "docs").mkdir()
    accuracy.PAGE.write_text(MARKS)
    monkeypatch.setattr(digits, "NUM_IMAGES", {"train": 6, "val": 2})
    monkeypatch.setattr(engine, "measure_alone", lambda experiment: result(experiment.seed / 100))
    return tmp_path


def result(ap: float) -> dict[str, Any]:
    point = {"images": 80, "seconds": 9.0, "ap": ap, "ap50": 2 * ap}
    return {**engine.scores([point]), "images": 80, "seconds": 9.0, "peak_mib": 900, "versions": {"torch": "2.15"}}


def peers(values: dict[str, dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    return lambda command, text, name: values[json.loads(text)["peer"]]


def test_the_page_has_every_run_and_every_reason(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = "torchvision Faster R-CNN", "RF-DETR"
    found = {first: result(0.2), other: {"failed": "rfdetr is not installed"}}
    monkeypatch.setattr(engine, "result_of", peers(found))
    assert accuracy.main([*TINY, "--seeds", "2", "--peers", first, other]) == 0
    text = accuracy.PAGE.read_text()
    assert "| deformable-detr-tiny | 2 | 0.425<br>0.420-0.430 | 0.850<br>0.840-0.860 |" in text
    assert f"| {first} | 2 | 0.200<br>0.200-0.200 |" in text and f"- {other}: rfdetr is not installed" in text
    assert "**digits (6 training images, 2 of validation) at 64 x 96, 0.02 minutes each, CPU, 1 thread**" in text
    assert "detrs fp32, torchvision fp32; commit" in text and "![AP of every run](figures/accuracy_digits.svg)" in text
    assert (accuracy.FIGURES / "accuracy_digits.svg").stat().st_size > 5_000
    lines = accuracy.RESULTS.read_text()
    assert len(lines.splitlines()) == 5  # what is not installed is tried once
    monkeypatch.setattr(engine, "measure_alone", lambda experiment: pytest.fail("repeated"))
    assert accuracy.main([*TINY, "--seeds", "2", "--peers", first, other]) == 0
    assert accuracy.RESULTS.read_text() == lines
    accuracy.PAGE.write_text(MARKS)
    assert accuracy.main(["--draw"]) == 0 and accuracy.PAGE.read_text() == text


def test_presets_that_do_not_fit_are_named_on_the_page(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "MAX_OBJECTS", 51)
    words = ["--presets", "deformable-detr-small", "deformable-detr-tiny", "--no-peers", "--seeds", "1"]
    assert accuracy.main([*TINY[:2], *TINY[4:], *words]) == 0
    text = accuracy.PAGE.read_text()
    assert "| deformable-detr-small | 1 | 0.420 |" in text
    assert "- deformable-detr-tiny: deformable-detr-tiny cannot be trained on 'digits'" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--minutes", "0"], "--minutes must be above 0"),
        (["--peers", "RF-DTR"], "Did you mean 'RF-DETR'?"),
        (["--presets", "detr-tinny"], "Did you mean 'detr-tiny'?"),
        (["--data", "nowhere"], "nowhere"),
        (["--backbone", "nothing.safetensors", "--presets", "deformable-detr-small"], "nothing.safetensors"),
    ],
)
def test_faults_are_reported_before_training(
    home: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert accuracy.main([*TINY, "--no-peers", *words]) == 2
    assert message in capsys.readouterr().err and not accuracy.RESULTS.exists()


def settings(**changes: Any) -> Settings:
    usual = {"peer": "x", "data": "digits", "minutes": 0.02, "image_size": (64, 96), "batch_size": 2, "seed": 1}
    return Settings(**{**usual, "threads": torch.get_num_threads(), "backbone": None, **changes})


@pytest.mark.parametrize("name", BUILDERS)
def test_a_peer_trains_and_is_scored(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights of the backbone, since nothing is downloaded."""
    create = accuracy_peers.create
    monkeypatch.setattr(accuracy_peers, "create", lambda config, pretrained: create(config, pretrained=False))
    found = accuracy_run.measure(settings(peer=name))
    assert found["images"] == found["last"]["images"] >= 2 and found["images"] % 2 == 0
    assert 0 <= found["best"]["ap"] <= 1 and found["peak_mib"] > 100 and "torch" in found["versions"]


@pytest.mark.parametrize("name", BUILDERS)
def test_backbones_of_peers_are_frozen_as_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create = accuracy_peers.create
    monkeypatch.setattr(accuracy_peers, "create", lambda config, pretrained: create(config, pretrained=False))
    model = BUILDERS[name](settings(peer=name), 3).model
    (features,) = (module for module in model.modules() if isinstance(module, accuracy_peers.Features))
    assert not [m for m in features.modules() if isinstance(m, nn.BatchNorm2d)]
    is_trained = {path: p.requires_grad for path, p in features.named_parameters()}
    assert not is_trained["body.conv_stem.weight"] and any(is_trained.values()) and not all(is_trained.values())
    assert any(type(module).__name__ == "ReLU6" for module in features.modules())


class Perfect(nn.Module):
    """Detects what ``detect`` is given as targets."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


def test_perfect_detections_have_an_ap_of_1(home: Path) -> None:
    from torchvision.ops import box_convert

    from detrs.data import open_dataset

    def detect(batch: Any) -> list[Found]:
        return [
            Found(box_convert(t.boxes, "cxcywh", "xyxy"), torch.ones(len(t.labels)), t.labels) for t in batch.targets
        ]

    peer = Peer(Perfect(), lambda batch: torch.zeros(()), detect)
    ap, ap50 = accuracy_run.evaluate(peer, open_dataset("digits", "val"), settings())
    assert ap == pytest.approx(1) and ap50 == pytest.approx(1)
    twice = peer._replace(
        detect=lambda batch: [
            Found(*(values.repeat(2, *[1] * (values.ndim - 1)) for values in found)) for found in detect(batch)
        ]
    )
    assert (accuracy_run.evaluate(twice, open_dataset("digits", "val"), settings())[0] or 0) < 0.96
    assert accuracy_run.evaluate(twice, open_dataset("digits", "val"), settings(), 0.8) == (ap, ap50)


def test_only_our_recipe_has_suppression() -> None:
    found = {name: recipe(settings()).nms for name, recipe in accuracy_peers.RECIPES.items()}
    assert found.pop(accuracy_peers.OUR_RECIPE) == 0.8 and set(found.values()) == {None}


def test_a_missing_package_is_a_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import io

    def missing(*_: Any) -> Any:
        raise NotInstalledError("ultralytics")

    monkeypatch.setitem(accuracy_run.OTHERS, "RF-DETR", missing)
    text = json.dumps({**vars(settings(peer="RF-DETR")), "image_size": [64, 96]})
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert accuracy_run.main() == 0
    assert json.loads(capsys.readouterr().out) == {"failed": "ultralytics is not installed"}


def test_labels_of_yolo(home: Path) -> None:
    from detrs.data import open_dataset

    dataset = open_dataset("digits", "val")
    write_yolo({"val": dataset}, home / "yolo")
    (home / "yolo" / "classes.txt").write_text("\n".join(dataset.classes.names))
    written = open_dataset(str(home / "yolo"), "val")
    for ours, theirs in zip(dataset, written, strict=True):
        assert torch.equal(ours.image, theirs.image) and torch.equal(ours.labels, theirs.labels)
        assert (ours.boxes - theirs.boxes).abs().max() < 1e-3


def test_the_page_of_the_documentation_has_its_markers() -> None:
    text = (page.HERE.parent / "docs" / "accuracy.md").read_text()
    assert text.count("<!-- accuracy: begin -->") == text.count("<!-- accuracy: end -->") == 1
