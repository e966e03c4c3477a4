"""``detrs convert``: datasets and checkpoints; wrong combinations are errors of one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detrs import models
from detrs.backbones.timm import BackboneConfig
from detrs.checkpoints.detector import TrainedDetector, load_detector, preprocessing_of, save_detector
from detrs.checkpoints.foreign.official_detr import official_state_dict
from detrs.config import Experiment
from detrs.data.transforms import DataConfig
from detrs.engine import trainer
from detrs.models.deformable_detr import DeformableDETRConfig
from detrs.structures import Classes

SMALL = (
    "--device cpu --batch-size 2 --image-size 61 83 --quiet --model.dim 64 --model.num-heads 4 --model.ffn-dim 48 "
    "--model.decoder-layers 2 --model.encoder-layers 1 --model.num-queries 17 "
    "--model.backbone.name test_efficientnet --model.backbone.weights none"
)


def test_training_from_yolo_data(detrs: Callable, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "save_curves", lambda *arguments: None)  # slow, and tested elsewhere
    assert detrs("convert", data, "--to", "yolo", "yolo").code == 0
    command = ["train", "deformable-detr-tiny", *SMALL.split(), "--epochs", 1, "--json", "--data"]
    coco, yolo = (detrs(*command, path, "--output", name) for path, name in ((data, "a"), ("yolo/data.yaml", "b")))
    assert yolo.code == 0, yolo.err
    assert yolo.json["steps"] == coco.json["steps"] == 2
    trained = load_detector(Path(yolo.json["checkpoint"]))
    assert trained.classes.names == ("dark", "bright")  # in the order of the category ids
    scored = detrs("evaluate", yolo.json["checkpoint"], "--data", "yolo", "--device", "cpu", "--json")
    assert scored.code == 0, scored.err


def test_the_report(detrs: Callable, data: Path) -> None:
    done = detrs("convert", data, "out", "--to", "coco", "--json")
    expected = {"images": 4, "objects": 8, "notes": []}
    assert done.code == 0 and done.json["splits"]["train"] == expected and done.json["format"] == "coco"
    assert Path(done.json["output"], "annotations", "instances_val.json").is_file()
    done = detrs("convert", "out", "--to", "yolo", "again", "--split", "val", "--copy")
    assert done.code == 0 and done.out.splitlines()[-1] == "Written to again. To use it: --data again"
    assert [path.name for path in Path("again", "images").iterdir()] == ["val"]


def test_checkpoints(detrs: Callable, checkpoint: Path) -> None:
    done = detrs("convert", checkpoint, "--to", "detrs", "new.safetensors", "--json")
    assert done.code == 0, done.err
    assert done.json == {"output": "new.safetensors", "format": "detrs"}
    before, after = (load_detector(path).module.state_dict() for path in (checkpoint, Path("new.safetensors")))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def two_stage() -> TrainedDetector:
    """Random weights, with the classes of the dataset."""
    backbone = BackboneConfig(name="resnet18.tv_in1k", weights="none")
    small: dict[str, Any] = {"dim": 64, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 48, "num_queries": 300}
    model = DeformableDETRConfig(num_classes=2, backbone=backbone, reference="refine", queries="proposals", **small)
    experiment = Experiment(model=model, data=DataConfig(resize_to=(61, 113)))
    torch.manual_seed(0)
    module = models.build(model).eval()
    for parameter in module.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    parts = {"preprocessing": preprocessing_of(experiment), "experiment": experiment}
    classes = Classes(("bright", "dark"), (7, 3))
    return TrainedDetector(module=module, classes=classes, scores={}, step=1, epoch=1, **parts)


def test_every_command_accepts_every_source(detrs: Callable, data: Path) -> None:
    """A run, its file, a folder of transformers and an official file with the same weights."""
    transformers = pytest.importorskip("transformers")
    detector = two_stage()
    Path("run").mkdir()
    save_detector(Path("run/best.safetensors"), detector)
    torch.save({"model": official_state_dict(detector)}, "official.pth")
    assert detrs("convert", "run/best.safetensors", "--to", "transformers", "theirs").code == 0
    pixels = torch.randn(1, 3, 97, 131)
    theirs = transformers.AutoModelForObjectDetection.from_pretrained("theirs").eval()
    with torch.no_grad():
        expected = theirs(pixels, pixel_mask=torch.ones(1, 97, 131))
        found = detector.module(pixels, torch.zeros(1, 97, 131, dtype=torch.bool)).layers[-1]
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes, expected.pred_boxes, atol=3e-6, rtol=0)
    scores = []
    sources = ("run", "run/best.safetensors", "theirs", "theirs/model.safetensors", "official.pth")
    for number, source in enumerate(sources):
        image, output = data / "images" / "val-0.png", f"out{number}"
        commands: list[tuple[Any, ...]] = [
            ("predict", source, image, "--output", output, "--device", "cpu"),
            ("checkpoint", "inspect", source, "--json"),
            ("push", source, "owner/name", "--dry-run", f"{output}-hub"),
            ("convert", source, "--to", "detrs", f"{output}.safetensors"),
        ]
        for command in commands:
            done = detrs(*map(str, command))
            assert done.code == 0, (command, done.err)
        tensors = load_detector(Path(f"{output}.safetensors")).module.state_dict()
        assert all(torch.equal(tensors[name], value) for name, value in detector.module.state_dict().items())
        if source != "official.pth":  # without the names of classes
            done = detrs("evaluate", source, "--data", data, "--device", "cpu", "--json")
            assert done.code == 0, done.err
            scores.append(done.json["ap"])
    assert len(scores) == 4 and len(set(scores)) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("DATA --to yolo", "Missing argument OUTPUT"),
        ("DATA out", "Missing argument --to"),
        ("DATA out --to voc", "--to"),
        ("DATA out --to transformers", "is a dataset. --to transformers converts checkpoints: use --to coco"),
        ("DATA/annotations/train.json out --to detrs", "is a dataset. --to detrs converts checkpoints"),
        ("CHECKPOINT out --to yolo", "is a checkpoint. --to yolo converts datasets: use --to transformers"),
        ("CHECKPOINT/.. out --to coco", "is a checkpoint. --to coco converts datasets"),
        ("CHECKPOINT out --to detrs --copy", "--split and --copy apply to datasets"),
        ("nowhere out --to coco", "nowhere does not exist"),
        ("digits out --to coco", "'digits' is generated in memory"),
        ("DATA DATA --to coco", "is not empty: choose another one"),
        ("DATA out --to coco --split test", "has no split 'test'. Available splits: train, val."),
    ],
)  # fmt: skip
def test_bad_input(detrs: Callable, data: Path, checkpoint: Path, words: str, message: str) -> None:
    places: dict[str, Any] = {"DATA": str(data), "CHECKPOINT": str(checkpoint)}
    for name, path in places.items():
        words = words.replace(name, path)
    done = detrs("convert", *words.replace("best.safetensors/..", "").split())
    assert done.code == 2 and message in done.message and "\n" not in done.message
    assert not Path("out").exists()


def test_a_folder_that_may_not_be_read(detrs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "locked").mkdir()
    for name in ("iterdir", "glob"):
        monkeypatch.setattr(Path, name, fail)
    monkeypatch.setattr("os.listdir", fail)
    outcome = detrs("convert", "locked", "out", "--to", "coco")
    assert outcome.code == 2
    assert outcome.message == "The data folder 'locked' cannot be read: Permission denied."
