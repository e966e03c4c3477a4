"""Reading exported files: what a file takes and returns, and files that are refused."""

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from exported_files import INFO, checkpoint, model_of, written
from onnx import TensorProto, helper
from torch import Tensor, nn

from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.exported import ExportedModel
from detrs.checkpoints.onnx_file import DIGEST_KEY, digest
from detrs.checkpoints.sources import EXPORTED, open_detector, open_source
from detrs.data.preprocessing import FixedSize
from detrs.errors import UserError
from detrs.exporting import program_file
from detrs.predictor import Predictor


def image(height: int = 50, width: int = 70) -> Tensor:
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_a_file_is_a_detector_with_the_settings_of_its_checkpoint(tmp_path: Path) -> None:
    source = open_source(written(tmp_path))
    found, expected = source.detector, checkpoint()
    assert source.kind == EXPORTED
    assert isinstance(found.module, ExportedModel) and found.module.export == INFO
    assert found.classes == expected.classes and found.preprocessing == expected.preprocessing
    assert (found.scores, found.step, found.epoch, found.threshold) == ({"ap": 0.5}, 7, 1, 0.25)
    assert found.experiment.model == expected.experiment.model
    assert found.experiment.evaluation.max_detections == 3


def test_a_predictor_uses_threshold_classes_and_sizes_of_the_file(tmp_path: Path) -> None:
    [found] = Predictor.load(written(tmp_path), device="cpu")([image()])
    assert found.names == ["dog", "cat"]  # 0.1 is below 0.25
    torch.testing.assert_close(found.boxes_xyxy[0], torch.tensor([17.5, 6.25, 52.5, 18.75]))


def test_a_file_has_its_own_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETRS_PRECISION", "bf16")  # what auto means for checkpoints
    path = written(tmp_path)
    for precision in ("auto", "fp32"):
        predictor = Predictor.load(path, "cpu", precision=precision)  # type: ignore[arg-type]
        assert (predictor.precision, predictor.detector.precision) == ("fp32", "fp32")
    with pytest.raises(UserError, match=r"precision .* is 'bf16', but an exported file has its own, fp32: omit it"):
        Predictor.load(path, "cpu", precision="bf16")
    half = open_detector(written(tmp_path, precision="float16"))
    assert half.on(torch.device("cpu")).arithmetic == "fp16"
    with pytest.raises(UserError, match=r"'fp32', but an exported file has its own, fp16"):
        half.on(torch.device("cpu"), "fp32")


def test_max_detections_can_be_lowered_but_not_raised(tmp_path: Path) -> None:
    path = written(tmp_path)
    [found] = Predictor.load(path, "cpu", max_detections=1)([image()], threshold=0.0)
    assert len(found) == 1
    with pytest.raises(UserError, match="at most 3 detections per image, but 4"):
        Predictor.load(path, "cpu", max_detections=4)([image()])


def test_the_file_is_recognized_by_its_content(tmp_path: Path) -> None:
    path = written(tmp_path).rename(tmp_path / "model.bin")
    assert open_source(path).kind == EXPORTED


class Recorder:
    """A runner that keeps its inputs."""

    def __init__(self, **outputs: Tensor) -> None:
        self.outputs, self.inputs = outputs, dict[str, Tensor]()

    def check_device(self, device: torch.device) -> None:
        pass

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self.inputs = inputs
        return self.outputs


def exported(runner: Recorder, **settings: Any) -> TrainedDetector:
    info, original = replace(INFO, **settings), checkpoint()
    evaluation = replace(original.experiment.evaluation, max_detections=3)
    fixed = FixedSize(*info.static, keep_ratio=info.padding) if info.static else None
    preprocessing = replace(original.preprocessing, fixed=fixed)
    return replace(
        original,
        module=ExportedModel(info, preprocessing, runner, "m.onnx"),
        preprocessing=preprocessing,
        experiment=replace(original.experiment, evaluation=evaluation),
        own_nms=evaluation.nms,
    )


OUTPUTS = {"boxes": torch.rand(1, 3, 4), "scores": torch.tensor([[0.9, 0.5, 0.1]]), "labels": torch.tensor([[1, 0, 1]])}


def test_autocast_around_a_file_does_not_change_it(tmp_path: Path) -> None:
    detector = open_detector(written(tmp_path))
    assert detector.own_nms == detector.experiment.evaluation.nms == 0.8
    types: list[torch.dtype] = []

    class Multiplying(Recorder):
        def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            types.append((torch.ones(3, 5) @ torch.ones(5, 2)).dtype)  # as in a program of torch.export
            return super().__call__(inputs)

    outputs = {"boxes": torch.rand(1, 3, 4), "scores": torch.rand(1, 3), "labels": torch.zeros(1, 3, dtype=torch.long)}
    module = ExportedModel(INFO, detector.preprocessing, Multiplying(**outputs), "test").eval()
    with torch.autocast("cpu", torch.bfloat16):
        Predictor(replace(detector, module=module), "cpu")(image())
        assert torch.is_autocast_enabled("cpu")
    assert types == [torch.float32]


def test_pixels_are_exact_where_the_graph_normalizes() -> None:
    """All values of all channels, through normalization and back."""
    runner = Recorder(**OUTPUTS)
    pixels = torch.arange(256).repeat(3, 2, 1).to(torch.uint8).view(3, 16, 32)
    detector = exported(runner, preprocess=True)
    detector = replace(detector, preprocessing=replace(detector.preprocessing, resize_to=(16, 32)))
    Predictor(detector, "cpu")([pixels])
    assert runner.inputs["images"].dtype == torch.uint8
    assert torch.equal(runner.inputs["images"][0], pixels)


def test_boxes_in_pixels_are_normalized_by_the_size_that_the_graph_receives() -> None:
    pixels = torch.tensor([[[10.0, 5.0, 30.0, 25.0]] * 3])
    runner = Recorder(boxes_xyxy=pixels, scores=OUTPUTS["scores"], labels=OUTPUTS["labels"])
    [found] = Predictor(exported(runner, postprocess=True), "cpu")([image(80, 128)], threshold=0.0)
    assert runner.inputs["image_sizes"].tolist() == [[40, 64]]
    torch.testing.assert_close(found.boxes_xyxy, pixels[0] * 2)


@pytest.mark.parametrize(("padding", "size"), [(False, (48, 96)), (True, (48, 67))], ids=["distorted", "padded"])
def test_images_of_a_static_size(padding: bool, size: tuple[int, int]) -> None:
    """50 x 70 pixels in 48 x 96: with padding, the aspect ratio is kept."""
    runner = Recorder(**OUTPUTS)
    Predictor(exported(runner, static=(48, 96), padding=padding), "cpu")([image(50, 70)])
    assert runner.inputs["images"].shape == (1, 3, 48, 96)
    if padding:
        real = ~runner.inputs["padding"][0]
        assert (int(real[:, 0].sum()), int(real[0].sum())) == size and int(real.sum()) == size[0] * size[1]
        assert not runner.inputs["images"][0][:, ~real].any()


def test_images_share_a_batch_if_they_have_equal_size_within_the_static_one() -> None:
    """At ``resize_to``, the first two have 40 x 56 pixels; within 48 x 96, 48 x 67 and 48 x 68."""
    for padding, sizes, expected in (
        (True, [(50, 70), (100, 141)], [1, 1]),
        (False, [(50, 70), (80, 60)], [2]),
    ):
        counts: list[int] = []

        class Counter(Recorder):
            def __call__(self, inputs: dict[str, Tensor], counts: list[int] = counts) -> dict[str, Tensor]:
                counts.append(len(inputs["images"]))
                return {name: value.expand(counts[-1], *value.shape[1:]) for name, value in OUTPUTS.items()}

        Predictor(exported(Counter(), static=(48, 96), padding=padding), "cpu")([image(*size) for size in sizes])
        assert counts == expected


def test_images_run_one_by_one_in_int8() -> None:
    """Activations of a batch have one scale: detections would depend on the other images."""

    def scaled_by_batch(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        scores = inputs["images"].mean((1, 2, 3)) / inputs["images"].abs().max()  # (B,)
        counts.append(len(scores))
        return {
            "boxes": OUTPUTS["boxes"].expand(len(scores), -1, -1),
            "scores": scores[:, None].expand(-1, 3),
            "labels": OUTPUTS["labels"].expand(len(scores), -1),
        }

    images, padding = torch.rand(4, 3, 50, 70), torch.zeros(4, 50, 70, dtype=torch.bool)
    for precision, expected in (("float32", [4]), ("int8", [1, 1, 1, 1])):
        counts: list[int] = []
        module = exported(Recorder(), precision=precision).module
        module.runner = scaled_by_batch
        scores = module.detect(images, padding, 3).scores
        assert counts == expected and scores.shape == (4, 3)
    alone = [module.detect(images[i : i + 1], padding[:1], 3).scores for i in range(4)]
    torch.testing.assert_close(scores, torch.cat(alone), rtol=0, atol=0)


def test_inputs_that_the_file_does_not_take() -> None:
    images, padding = torch.zeros(2, 3, 50, 70), torch.zeros(2, 50, 70, dtype=torch.bool)
    padding[1, 40:] = True
    with pytest.raises(UserError, match="without --padding"):
        exported(Recorder()).module.detect(images, padding, 3)
    for settings, message in (
        ({"static": (48, 70), "padding": True}, "takes images of at most 48 x 70 pixels, got 50 x 70"),
        ({"static": (50, 71)}, "takes images of 50 x 71 pixels, got 50 x 70"),
        ({"min_size": 65}, "takes images of at least 65 x 65 pixels, got 50 x 70"),
    ):
        with pytest.raises(UserError, match=message):
            exported(Recorder(), **settings).module.detect(images, padding.zero_(), 3)


def test_an_exported_file_is_not_trained() -> None:
    from detrs.criterion.set_criterion import CriterionConfig

    with pytest.raises(UserError, match=r"'m\.onnx' is an exported file, which cannot be trained"):
        exported(Recorder()).module.objective(CriterionConfig())


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret"


def external_in_a_branch(model: onnx.ModelProto) -> None:
    inner = model_of(INFO)
    external(inner)
    node = helper.make_node("If", ["three"], ["unused"], then_branch=inner.graph, else_branch=inner.graph)
    model.graph.node.append(node)


def foreign_operators(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("evil.example", 1))


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[1].name = "score"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "refers to external data"),
        (external_in_a_branch, "refers to external data"),
        (foreign_operators, "needs operators of 'evil.example'"),
        (other_output, "has other inputs or outputs"),
        (lambda model: setattr(model.graph.node[0], "op_type", "NoSuchOperator"), "ONNX Runtime cannot use"),
    ],
    ids=["external", "external-nested", "operators", "outputs", "unknown-operator"],
)
def test_files_that_are_refused(change: Callable[[onnx.ModelProto], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_detector(written(tmp_path, change))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    """Every 97th byte flipped, and truncations: no other error, and no detector of a changed graph."""
    path = written(tmp_path)
    content = path.read_bytes()
    changed = [content[: len(content) * part // 8] for part in range(1, 8)]
    for at in range(0, len(content), 97):
        changed.append(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
    expected = digest(onnx.load_model_from_string(content))
    for each in changed:
        path.write_bytes(each)
        try:
            open_detector(path)
        except UserError:
            continue
        assert digest(onnx.load_model_from_string(each)) == expected  # a byte of the names for other programs


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("detrs", None, "has no metadata of detrs"),
        ("detrs", "{", "metadata of '.*' is damaged"),
        ("detrs", "[]", "metadata of '.*' is damaged"),
        ("detrs", "[" * 100_000, "metadata of '.*' is damaged"),
        ("detrs", "{}", "missing or malformed metadata: 'experiment'"),
        (DIGEST_KEY, "0" * 64, "another program changed it"),
    ],
)
def test_metadata_that_is_refused(key: str, value: str | None, message: str, tmp_path: Path) -> None:
    model = onnx.load(written(tmp_path))
    entries = {entry.key: entry.value for entry in model.metadata_props}
    del model.metadata_props[:]
    for name, text in {**entries, key: value}.items():
        if text is not None:
            entry = model.metadata_props.add()
            entry.key, entry.value = name, text
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=message):
        open_detector(tmp_path / "model.onnx")


class Boxes3(nn.Module):
    """The program of ``model_of`` in PyTorch, with what detectors have: a mask, and weights with the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3).to(memory_format=torch.channels_last)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        (images,) = inputs
        batch, mean = images.shape[0], self.conv(images).mean((1, 2, 3))[:, None]
        boxes = images.new_tensor([0.5, 0.25, 0.5, 0.25]).expand(batch, 3, 4) + 0 * mean[:, None]
        scores = images.new_tensor([0.9, 0.5, 0.1]).expand(batch, 3).masked_fill(mean.isnan(), float("-inf"))
        return {"boxes": boxes, "scores": scores, "labels": torch.tensor([1, 0, 1]).expand(batch, 3) + 0}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    dims = {axis: torch.export.Dim(name, min=size) for axis, name, size in ((0, "b", 1), (2, "h", 9), (3, "w", 9))}
    example = (torch.rand(2, 3, 40, 50),)
    program = torch.export.export(Boxes3(), example, dynamic_shapes={"inputs": (dims,)}, strict=False)
    program_file.strip(program)
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    program_file.save(program, path, checkpoint(), replace(INFO, format="torch", opset=None, min_size=9))
    return path.read_bytes()


def test_a_program_of_torch_export_is_a_detector(archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(archive)
    assert open_source(path).kind == EXPORTED
    found = Predictor.load(path, "cpu")([image(), image(60, 40)])
    assert [each.names for each in found] == [["dog", "cat"]] * 2
    torch.testing.assert_close(found[0].boxes_xyxy[0], torch.tensor([17.5, 6.25, 52.5, 18.75]))


def rewritten(content: bytes, changes: dict[str, bytes | Callable[[bytes], bytes]]) -> bytes:
    """An archive with other or more parts."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        parts = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
        for name, change in changes.items():
            parts[name] = change(parts[name]) if callable(change) else change
        for name, data in parts.items():
            new.writestr(f"{root}/{name}", data)
    return result.getvalue()


def with_value(find: str, replacement: str) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        assert find.encode() in data, find
        return data.replace(find.encode(), replacement.encode())

    return change


def with_guard(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "guards_code": ["__import__('os')"]}).encode()


HOSTILE: dict[str, dict[str, Any]] = {
    "pickled constant": {"data/constants/custom_obj_0": b"x"},
    "pickled weights": {"data/weights/model.pt": b"x"},
    "compiled code": {"data/aotinductor/model/code.so": b"x"},
    "pickled inputs": {"data/sample_inputs/model.pt": b"x"},
    "second model": {"models/other.json": b"{}"},
    "guard": {"models/model.json": with_guard},
    "function": {"models/model.json": with_value("torch.ops.aten.mean.dim", "torch.os.system")},
    "module": {"models/model.json": with_value("torch.ops.aten.mean.dim", "torch.hub.load")},
    "file": {"models/model.json": with_value("torch.ops.aten.mean.dim", "torch.ops.aten.from_file.default")},
    "name": {"models/model.json": with_value('"inputs_0"', '"inputs_0=print(1)"')},
    "expression": {"models/model.json": with_value("Symbol('", "__import__('os').system('")},
    "pytree": {"models/model.json": with_value("builtins.dict", "collections.defaultdict")},
    "pickled tensor": {
        "data/constants/model_constants_config.json": with_value('"use_pickle": false', '"use_pickle": true')
    },
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_a_program_that_could_run_code_is_not_loaded(
    changes: dict[str, Any], archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("loaded"))
    path = tmp_path / "model.pt2"
    path.write_bytes(rewritten(archive, changes))
    with pytest.raises(UserError, match=r"could run code\. It was not loaded"):
        open_detector(path)


def test_a_damaged_program_is_refused(archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    for at in range(64, len(archive), len(archive) // 23):
        path.write_bytes(archive[:at])
        with pytest.raises(UserError, match="damaged"):
            open_detector(path)
