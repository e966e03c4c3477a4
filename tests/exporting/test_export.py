"""``detrs export``: from a checkpoint to a file that predicts the same."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrs import cli
from detrs.checkpoints.detector import TrainedDetector, preprocessing_of, save_detector
from detrs.checkpoints.exported import ExportInfo
from detrs.checkpoints.sources import open_detector
from detrs.data.preprocessing import resized_size
from detrs.errors import UserError
from detrs.exporting import program
from detrs.exporting.export import compared, default_path, export
from detrs.models import build
from detrs.predictor import Predictor
from detrs.presets import preset
from detrs.structures import Classes

DOCS = Path(__file__).parents[2] / "docs" / "export.md"


def save_checkpoint(folder: Path) -> Path:
    """A small DETR with random weights, whose scores depend on the image."""
    experiment = preset("detr-tiny")
    backbone = replace(experiment.model.backbone, name="test_resnet", weights="none")
    model: Any = replace(
        experiment.model, num_classes=2, backbone=backbone, dim=32, num_heads=2, encoder_layers=1, decoder_layers=1
    )
    experiment = replace(
        experiment,
        model=model,
        data=replace(experiment.data, resize_to=(64, 96)),
        evaluation=replace(experiment.evaluation, nms=None),  # its boxes are almost equal
    )
    torch.manual_seed(0)
    module = build(experiment.model).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    detector = TrainedDetector(
        module=module,
        classes=Classes(("cat", "dog"), (1, 18)),
        preprocessing=preprocessing_of(experiment),
        experiment=experiment,
        scores={},
        step=1,
        epoch=1,
        threshold=0.0,
    )
    path = folder / "best.safetensors"
    save_detector(path, detector)
    return path


@pytest.fixture(scope="session")
def files(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder with a checkpoint, its export with pre- and post-processing, and an image."""

    def fill(folder: Path) -> None:
        checkpoint = save_checkpoint(folder)
        source = Path(__file__).parents[2] / "src"
        code = "import sys; from detrs.cli import main; sys.exit(main(sys.argv[1:]))"
        words = ["export", str(checkpoint), "--preprocess", "--postprocess", "--json"]
        done = subprocess.run(  # Dynamo cannot trace the type checks that tests install
            [sys.executable, "-c", code, *words],
            env={**os.environ, "PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        (folder / "stdout.txt").write_text(done.stdout)
        (folder / "stderr.txt").write_text(done.stderr)
        noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((137, 71)).save(folder / "image.png")

    return once("export", fill)


def test_an_exported_file_predicts_as_its_checkpoint(files: Path) -> None:
    for name in ("best.safetensors", "best.onnx"):
        assert (files / name).exists()
    [expected], [found] = (
        Predictor.load(files / name, "cpu")([str(files / "image.png")]) for name in ("best.safetensors", "best.onnx")
    )
    assert len(found) == len(expected) > 10
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-2, rtol=1e-4)
    assert found.names == expected.names


def test_nothing_of_the_exporter_is_printed(files: Path) -> None:
    values = json.loads((files / "stdout.txt").read_text())
    assert values["path"] == str(files / "best.onnx") and values["preprocess"] and values["parity"]
    assert not re.search("(?i)warn|torch|skip|constant", (files / "stderr.txt").read_text())


def test_a_file_has_no_paths_of_the_machine(files: Path) -> None:
    content = (files / "best.onnx").read_bytes()
    assert b"site-packages" not in content and b".py" not in content
    assert [entry.name for entry in files.iterdir() if entry.name.startswith(".")] == []


@pytest.fixture(scope="module")
def script() -> str:
    """The script of the documentation that uses ONNX Runtime without detrs."""
    blocks = re.findall(r"```py\n(.*?)```", DOCS.read_text(), re.DOTALL)
    [script] = [block for block in blocks if "onnxruntime" in block]
    return script


@pytest.mark.parametrize("width", [*range(500, 1301, 13), 640])
def test_the_script_of_the_documentation_resizes_as_detrs(width: int, script: str) -> None:
    [lines] = re.findall(r"^small, large = .*?^size = .*?$", script, re.DOTALL | re.MULTILINE)
    for size in ((width, 640), (640, width), (width, 480)):
        values = {"image": SimpleNamespace(size=size), "short": 800, "long": 1333}
        exec(lines, values)
        assert tuple(values["size"][::-1]) == resized_size(size[::-1], (800, 1333)), size


def test_the_script_of_the_documentation_runs_without_detrs(files: Path, script: str) -> None:
    script = script.replace("image.jpg", "image.png") + "\nimport sys\nassert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=files, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [expected] = Predictor.load(files / "best.safetensors", "cpu")([str(files / "image.png")])
    lines = [line.replace("[", "").replace("]", "").replace(",", "").split() for line in done.stdout.splitlines()]
    assert len(lines) == len(expected)
    assert abs(float(lines[0][1]) - float(expected.scores[0])) < 0.02
    for score, box in zip(expected.scores, expected.boxes_xyxy, strict=True):  # equal scores in any order
        near = [[float(x) for x in line[2:]] for line in lines if abs(float(line[1]) - float(score)) < 0.02]
        assert min(max(abs(a - b) for a, b in zip(each, box.tolist(), strict=True)) for each in near) < 2


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda d: {"classes": Classes(("dog", "cat"), (1, 18))}, "classes"),
        (lambda d: {"classes": Classes(("cat", "dog"), (18, 1))}, "classes"),
        (lambda d: {"threshold": 0.1}, "threshold"),
        (lambda d: {"class_thresholds": {"cat": 0.5}}, "class_thresholds"),
        (lambda d: {"preprocessing": replace(d.preprocessing, mean=(0.0, 0.0, 0.0))}, "preprocessing"),
        (
            lambda d: {"experiment": replace(d.experiment, evaluation=replace(d.experiment.evaluation, clip=False))},
            "experiment",
        ),
    ],
)
def test_a_file_with_other_metadata_is_not_written(
    change: Callable[[TrainedDetector], dict[str, Any]], name: str, files: Path
) -> None:
    """Predictions depend on it, and the comparison of boxes and scores does not show it."""
    original = open_detector(files / "best.safetensors")
    with pytest.raises(UserError, match=rf"differs from the checkpoint in: {name}\. The file was not written"):
        compared(replace(original, **change(original)), files / "best.onnx", None, score=False)


def test_an_exported_file_is_not_exported_again(files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"best\.onnx' is an exported file\. Export its checkpoint"):
        export(files / "best.onnx", tmp_path / "new.onnx")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "model.pt"}, r"Expected an output file \*\.onnx"),
        ({"path": "missing/model.onnx"}, "folder 'missing' does not exist"),
        ({"half": True, "int8": True}, "exclude each other"),
        ({"int8": True}, r"Pass data=\.\.\. \(--data\)"),
        ({"format": "torch", "half": True}, "apply to the format onnx only"),
        ({"format": "tflite"}, "must be one of onnx, torch"),
        ({"opset": 17}, "opset is 17, but must be in 18"),
        ({"static": (31, 64)}, "static is 31 x 64, but both sides must be in 32"),
        ({"data": "missing"}, "missing"),
        ({"nms": 70}, "nms is 70, but must be an IoU above 0 and at most 1"),
        ({"format": "torch", "path": "model.pt2"}, "to 64 pixels on the short side, but .* take at least 65"),
    ],
)
def test_arguments_that_are_refused(settings: dict[str, Any], message: str, files: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        export(files / "best.safetensors", **{"path": tmp_path / "model.onnx", **settings})
    assert not [*tmp_path.iterdir()]


def test_another_suppression_is_exported(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trace(detector: TrainedDetector, info: ExportInfo) -> None:
        raise UserError(f"traced with {detector.experiment.evaluation.nms}")

    monkeypatch.setattr(program, "trace", trace)
    with pytest.raises(UserError, match="^traced with 0.4$"):
        export(files / "best.safetensors", tmp_path / "model.onnx", nms=0.4)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_an_error_before_the_work(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before the checkpoint is read."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*pip install 'detrs\[export\]'"):
        export("missing.safetensors", "x.onnx")


def test_where_a_file_is_written_by_default(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").touch()
    assert default_path(tmp_path, "onnx") == tmp_path / "best.onnx"
    assert default_path(tmp_path / "best.safetensors", "torch") == tmp_path / "best.pt2"
    assert default_path("facebook/detr-resnet-50@main", "onnx") == Path("detr-resnet-50.onnx")
    folder = tmp_path / "det-v1.5"  # of transformers
    folder.mkdir()
    assert default_path(folder, "onnx") == folder / "det-v1.5.onnx"


def test_errors_of_the_command_have_exit_code_2(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(files / "best.safetensors"), "--opset", "3"]) == 2
    assert "opset is 3" in capsys.readouterr().err
    assert open_detector(files / "best.onnx").threshold == 0.0
