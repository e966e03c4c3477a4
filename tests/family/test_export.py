"""Every detector of the family compiles without graph breaks and is exported for images of any size.

As a script: compiles each.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import pytest
import torch
from shrunk import EVERY_TRANSFORMER, TRANSFORMERS, batch, exported_for_any_size, shallow
from torch import Tensor, nn

from detrs import ops
from detrs.models import ModelConfig
from detrs.models.detector import Detector
from detrs.structures import Boxes, Predictions

DETECTIONS = 7


@pytest.fixture(scope="session")
def traced(once: Callable[[str, Callable[[Path], object]], Path]) -> dict[str, str]:
    """Results of ``trace`` by preset, from a subprocess: Dynamo cannot trace the type checks that tests install."""

    def run(folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (folder / "traced.json").write_text(done.stdout)

    results: dict[str, str] = json.loads((once("traced", run) / "traced.json").read_text())
    return results


@torch.no_grad()
def trace(config: ModelConfig) -> str:
    """``same``, or the error."""
    detector, inputs = shallow(config), batch()
    expected = detector(*inputs)
    torch.compiler.reset()
    try:
        found = torch.compile(detector, fullgraph=True, backend="eager")(*inputs)
        torch.testing.assert_close(found.layers, expected.layers)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "same"


@pytest.mark.parametrize("name", TRANSFORMERS.values())
def test_compiles_without_graph_breaks(name: str, traced: dict[str, str]) -> None:
    """And the compiled detector predicts the same."""
    assert traced[name] == "same"


@EVERY_TRANSFORMER
@torch.no_grad()
def test_an_exported_program_equals_eager(config: ModelConfig) -> None:
    detector, inputs = shallow(config), batch()
    with ops.use("reference"):
        expected = detector(*inputs)
        found = torch.export.export(detector, inputs, strict=False).module()(*inputs)
    torch.testing.assert_close(found.layers, expected.layers)


class Detect(nn.Module):
    """Calls ``detect``; returns its result, and the predictions that it is made from."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, padding: Tensor) -> tuple[Boxes, Predictions]:
        predictions: list[Predictions] = []
        hook = self.detector.register_forward_hook(lambda module, inputs, output: predictions.append(output))
        boxes = self.detector.detect(images, padding, max_detections=DETECTIONS)
        hook.remove()
        return boxes, *predictions


@EVERY_TRANSFORMER
@torch.no_grad()
def test_an_exported_program_accepts_images_of_other_sizes(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions and detections equal those of eager mode on portrait and landscape batches with padding."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # symbolic sizes are not of type int
    module = Detect(shallow(config))
    with ops.use("reference"):
        exported = exported_for_any_size(module)
        for inputs in (batch(), batch((203, 141), (77, 141)), batch((74, 167), (74, 90))):
            (boxes, predictions), (expected_boxes, expected) = exported(*inputs), module(*inputs)
            torch.testing.assert_close(predictions.layers, expected.layers, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(predictions.proposals, expected.proposals, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(boxes, expected_boxes, atol=1e-5, rtol=1e-5)


if __name__ == "__main__":
    with ops.use("reference"):
        print(json.dumps({name: trace(config) for config, name in TRANSFORMERS.items()}))
