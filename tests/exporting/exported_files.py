"""Exported files of a program with three boxes for every image, which are written in a moment."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from detrs.checkpoints.detector import TrainedDetector, preprocessing_of
from detrs.checkpoints.exported import ExportInfo, signature
from detrs.exporting import onnx_file
from detrs.models import build
from detrs.presets import preset
from detrs.structures import Classes

INFO = ExportInfo(
    format="onnx",
    opset=18,
    precision="float32",
    static=None,
    min_size=1,
    gather=False,
    preprocess=False,
    postprocess=False,
    padding=False,
    max_detections=3,
)


def checkpoint() -> TrainedDetector:
    experiment = preset("detr-tiny")
    experiment = replace(experiment, model=replace(experiment.model, num_classes=2))
    return TrainedDetector(
        module=build(experiment.model).eval(),
        classes=Classes(("cat", "dog"), (1, 18)),
        preprocessing=replace(preprocessing_of(experiment), resize_to=(40, 64)),
        experiment=experiment,
        scores={"ap": 0.5},
        step=7,
        epoch=1,
        threshold=0.25,
    )


def model_of(info: ExportInfo) -> onnx.ModelProto:
    """A program with three boxes for every image: the sum of the first one's coordinates is the mean of the image."""
    own = signature(info)
    types = {
        "images": (TensorProto.UINT8 if info.preprocess else TensorProto.FLOAT, ("batch", 3, "height", "width")),
        "padding": (TensorProto.BOOL, ("batch", "height", "width")),
        "image_sizes": (TensorProto.INT64, ("batch", 2)),
        own.outputs[0]: (TensorProto.FLOAT, ("batch", 3, 4)),
        "scores": (TensorProto.FLOAT, ("batch", 3)),
        "labels": (TensorProto.INT64, ("batch", 3)),
    }
    constants = {
        "boxes0": (TensorProto.FLOAT, [1, 3, 4], [0.5, 0.25, 0.5, 0.25] * 3),
        "scores0": (TensorProto.FLOAT, [1, 3], [0.9, 0.5, 0.1]),
        "labels0": (TensorProto.INT64, [1, 3], [1, 0, 1]),
    }
    nodes = [
        helper.make_node("Shape", ["images"], ["batch"], end=1),
        helper.make_node("Constant", [], ["three"], value_ints=[3]),
        helper.make_node("Constant", [], ["four"], value_ints=[4]),
        helper.make_node("Concat", ["batch", "three", "four"], ["of_boxes"], axis=0),
        helper.make_node("Concat", ["batch", "three"], ["of_scores"], axis=0),
        helper.make_node("Expand", ["boxes0", "of_boxes"], [own.outputs[0]]),
        helper.make_node("Expand", ["scores0", "of_scores"], ["scores"]),
        helper.make_node("Expand", ["labels0", "of_scores"], ["labels"]),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info(name, *types[name]) for name in own.inputs],
        [helper.make_tensor_value_info(name, *types[name]) for name in own.outputs],
        [helper.make_tensor(name, *value) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def written(folder: Path, change: Callable[[onnx.ModelProto], object] = lambda model: None, **settings: Any) -> Path:
    """A file with the metadata of a checkpoint; ``change`` is applied before its digest is computed."""
    info = replace(INFO, **settings)
    model = model_of(info)
    change(model)
    onnx_file.add_metadata(model, checkpoint(), info)
    path = folder / "model.onnx"
    onnx_file.save(model, path)
    return path
