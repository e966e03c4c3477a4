"""Every detector's tiny preset passes the gate in ONNX with a dynamic size and batch; wrong exports do not."""

from collections.abc import Callable
from pathlib import Path

import jaxtyping
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from trained import experiment, trained

from detrs.checkpoints.detector import save_detector
from detrs.checkpoints.exported import ExportedModel
from detrs.checkpoints.sources import open_detector
from detrs.errors import UserError
from detrs.exporting import onnx_file, program
from detrs.exporting.export import export
from detrs.presets import PRESETS

EXAMPLE = "deformable-detr-tiny"
PARAMETERS = [
    name if name == EXAMPLE else pytest.param(name, marks=pytest.mark.slow)
    for name in PRESETS
    if name.endswith("-tiny")
]
"""An export takes half a minute; all of them run with ``-m slow``."""
Once = Callable[[str, Callable[[Path], object]], Path]


def exported(name: str, folder: Path) -> None:
    """Export a preset with initial weights, through the gate; also keep the graph with its metadata."""
    convert = onnx_file.convert

    def kept(*arguments):
        model = convert(*arguments)
        onnx.save(model, folder / "raw.onnx")
        return model

    save_detector(folder / "best.safetensors", trained(experiment(name)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # symbolic sizes are not of type int
        patch.setattr(onnx_file, "convert", kept)
        export(folder / "best.safetensors", folder / "model.onnx")


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_tiny_preset_passes_the_gate_with_dynamic_size_and_batch(name: str, once: Once) -> None:
    folder = once(f"exported-{name}", lambda folder: exported(name, folder))
    detector = open_detector(folder / "model.onnx")
    assert isinstance(detector.module, ExportedModel)
    assert detector.module.export.static is None and detector.module.export.precision == "float32"
    parity = detector.module.export.parity
    assert parity is not None and parity["num_inputs"] >= 20 and len(parity["sizes"]) >= 15
    assert parity["num_agreeing"] >= 0.999 * parity["num_detections"] > 0
    assert parity["relative_difference"] < 0.01 and parity["max_box_difference"] <= 1e-4
    axes = [dim.dim_param for dim in onnx.load(folder / "model.onnx").graph.input[0].type.tensor_type.shape.dim]
    assert [bool(axis) for axis in axes] == [True, False, True, True]
    boxes = detector.module.detect(torch.zeros(5, 3, 71, 103), torch.zeros(5, 71, 103, dtype=torch.bool))
    assert len(boxes.scores) == 5


def swapped(model: onnx.ModelProto) -> None:
    """x and y of the sampling locations are swapped."""
    model.graph.initializer.append(numpy_helper.from_array(torch.tensor([1, 0]).numpy(), "y_x"))
    for index, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type == "GridSample":
            swap = helper.make_node("Gather", [node.input[1], "y_x"], [f"{node.name}_swapped"], axis=-1)
            node.input[1] = swap.output[0]
            model.graph.node.insert(index, swap)


def border(model: onnx.ModelProto) -> None:
    """Samples outside a level are those of its border instead of zero."""
    for node in samplers(model):
        for attribute in node.attribute:
            if attribute.name == "padding_mode":
                attribute.s = b"border"


def dropped(model: onnx.ModelProto) -> None:
    """The last level is not sampled: its locations are outside."""
    levels = experiment(EXAMPLE).model.num_levels
    model.graph.initializer.append(numpy_helper.from_array(torch.tensor(9.0).numpy(), "outside"))
    last = [node.name for node in samplers(model)][levels - 1 :: levels]
    for index, node in reversed(list(enumerate(model.graph.node))):
        if node.name in last:
            move = helper.make_node("Add", [node.input[1], "outside"], [f"{node.name}_outside"])
            node.input[1] = move.output[0]
            model.graph.node.insert(index, move)


def samplers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "GridSample"]


@pytest.fixture
def raw(once: Once, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, onnx.ModelProto]:
    """The checkpoint, and the graph that its export writes instead of tracing again."""
    folder = once(f"exported-{EXAMPLE}", lambda folder: exported(EXAMPLE, folder))
    model = onnx.load(folder / "raw.onnx")
    monkeypatch.setattr(program, "trace", lambda *_: None)
    monkeypatch.setattr(onnx_file, "convert", lambda *_: model)
    return folder / "best.safetensors", model


@pytest.mark.parametrize("change", [swapped, border, dropped], ids=lambda change: change.__name__)
def test_wrong_exports_are_refused_and_nothing_is_written(
    change: Callable[[onnx.ModelProto], None], raw: tuple[Path, onnx.ModelProto], tmp_path: Path
) -> None:
    checkpoint, model = raw
    before = model.SerializeToString()
    assert len(samplers(model)) >= 2 * experiment(EXAMPLE).model.num_levels
    change(model)
    assert model.SerializeToString() != before
    with pytest.raises(UserError, match="does not give the detections of the checkpoint: [1-9].* detections differ"):
        export(checkpoint, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_float16_passes_the_gate_and_is_smaller(raw: tuple[Path, onnx.ModelProto], tmp_path: Path) -> None:
    checkpoint, _ = raw
    report = export(checkpoint, tmp_path / "half.onnx", half=True)
    assert report.export.precision == "float16" and report.parity.precision == "float16"
    assert report.num_bytes < 0.75 * (checkpoint.parent / "model.onnx").stat().st_size
    assert report.parity.max_score_difference > 1e-7  # not float32 under another name
