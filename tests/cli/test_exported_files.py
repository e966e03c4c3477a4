"""Exported files in every command: it has a correct result, or one sentence and exit code 2."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_files import checkpoint as original
from exported_files import written

from detrs.errors import UserError
from detrs.explanation.explain import explain
from detrs.predictor import Predictor


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("explain", "FILE", "IMAGE", "--output", "pages"), "which does not have the layers of the model"),
        (("push", "FILE", "me/it", "--dry-run", "new"), "has no weights to train, convert or upload"),
        (("convert", "FILE", "new", "--to", "detrs"), "has no weights to train, convert or upload"),
        (("convert", "FILE", "new", "--to", "transformers"), "has no weights to train, convert or upload"),
        (("convert", "FILE", "new", "--to", "coco"), "is a checkpoint. --to coco converts datasets"),
        (("train", "--weights", "FILE", "--data", "digits", "--output", "new"), "has no weights to train"),
        (("train", "detr-tiny", "--weights", "FILE", "--data", "digits", "--output", "new"), "has no weights to train"),
        (("export", "FILE", "--output", "new.onnx"), "is an exported file"),
        (("checkpoint", "inspect", "FILE", "--tensors"), "does not have the tensors of the detector by name"),
    ],
    ids=lambda value: " ".join(value[::3]) if isinstance(value, tuple) else "",
)
def test_commands_that_need_a_checkpoint(
    words: tuple[str, ...],
    message: str,
    detrs: Callable,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"FILE": written(tmp_path).name, "IMAGE": next(data.rglob("*.png"))}
    done = detrs(*(names.get(word, word) for word in words))
    assert done.code == 2 and message in done.message and len(done.message.splitlines()) == 1
    assert [entry.name for entry in tmp_path.rglob("*") if entry.is_file()] == ["model.onnx"]


def test_explain_of_a_loaded_file(tmp_path: Path) -> None:
    predictor = Predictor.load(written(tmp_path), "cpu")
    for detector in (predictor, predictor.detector):
        with pytest.raises(UserError, match="is an exported file"):
            explain(detector, torch.zeros(3, 40, 40, dtype=torch.uint8), device="cpu")


def test_inspect(detrs: Callable, tmp_path: Path) -> None:
    path = written(tmp_path, static=(96, 128), padding=True, postprocess=True)
    values = detrs("checkpoint", "inspect", path, "--json").json
    assert values["kind"] == "exported file"
    assert values["num_parameters"] == sum(each.numel() for each in original().module.parameters()) > 0
    assert values["export"]["inputs"] == ["images", "padding", "image_sizes"]
    assert values["export"]["static"] == [96, 128] and values["export"]["max_detections"] == 3
    table = detrs("checkpoint", "inspect", path).out
    for text in (
        "onnx, opset 18, float32, --postprocess, --padding",
        "images, padding, image_sizes",
        "boxes_xyxy, scores, labels; at most 3 detections per image",
        "96 x 128 (aspect ratio kept, padded)",
        f"{values['num_parameters']:,}",
    ):
        assert text in table
    assert "shortest side 40" in detrs("checkpoint", "inspect", written(tmp_path)).out
