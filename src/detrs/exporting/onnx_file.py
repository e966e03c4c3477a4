"""Writes a program in the format of ONNX."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.export import ExportedProgram

from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.exported import KEY, ExportInfo, metadata, signature
from detrs.checkpoints.onnx_file import DIGEST_KEY, MAX_BYTES, digest, packages
from detrs.errors import UserError
from detrs.exporting.onnx_operators import translations

if TYPE_CHECKING:
    import onnx

LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")
"""Loggers of the exporter, which report what it could not simplify."""
AXES = {
    "images": ("batch", "3", "height", "width"),
    "padding": ("batch", "height", "width"),
    "image_sizes": ("batch", "2"),
    "boxes": ("batch", "detections", "4"),
    "boxes_xyxy": ("batch", "detections", "4"),
    "scores": ("batch", "detections"),
    "labels": ("batch", "detections"),
}
"""Names of the axes of each input and output."""


def check_packages() -> None:
    """Check that ONNX files can be written and read here.

    Raises:
        UserError: a package is not installed.
    """
    packages()
    try:
        import onnxscript  # noqa: F401 (used by torch.onnx)
    except ImportError as error:
        raise UserError(
            f"Exports to ONNX need the package onnxscript ({error}): pip install 'detrs[export]'"
        ) from error


def convert(program: ExportedProgram, info: ExportInfo) -> "onnx.ModelProto":
    """A program as ONNX, in float32, with the exporter's metadata of each node."""
    names = signature(info)
    with quiet(), torch.no_grad():
        converted = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=info.opset,
            input_names=names.inputs,
            output_names=names.outputs,
            custom_translation_table=translations(),
            verbose=False,
        )
    assert converted is not None
    model: onnx.ModelProto = converted.model_proto
    name_axes(model)
    return model


def strip(model: "onnx.ModelProto") -> None:
    """Remove what describes the process of the export, such as the paths of source files."""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            del node.metadata_props[:]
            node.doc_string = ""
    for message in (model, model.graph, *model.functions, *model.graph.initializer):
        message.doc_string = ""
        del message.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]


def name_axes(model: "onnx.ModelProto") -> None:
    """Name the axes of dynamic size; the exporter names them by expressions of symbols."""
    for value in (*model.graph.input, *model.graph.output):
        for axis, dim in zip(AXES[value.name], value.type.tensor_type.shape.dim, strict=True):
            if not dim.HasField("dim_value"):
                dim.dim_param = axis


def add_metadata(model: "onnx.ModelProto", detector: TrainedDetector, info: ExportInfo) -> None:
    """Set the metadata of the file: ``detrs``, and the names of the classes for other programs."""
    entries = {
        KEY: metadata(detector, info),
        DIGEST_KEY: digest(model),
        "names": str(dict(enumerate(detector.classes.names))),
        "stride": "1",
    }
    del model.metadata_props[:]
    for key, value in entries.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def save(model: "onnx.ModelProto", path: Path) -> None:
    """Write a model as a single file.

    Raises:
        UserError: it is larger than a file of ONNX can be.
        OSError: the file cannot be written.
    """
    size = model.ByteSize()
    if size > MAX_BYTES:
        raise UserError(f"The model has {size:,} bytes. An ONNX file in one part can have {MAX_BYTES:,}.")
    path.write_bytes(model.SerializeToString())


@contextmanager
def quiet() -> Iterator[None]:
    """Discards warnings and log messages of the exporter, which are about its own code."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
