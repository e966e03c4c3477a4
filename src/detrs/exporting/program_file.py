"""Writes a program of ``torch.export``."""

import io
import warnings
from pathlib import Path

import torch
from torch.export import ExportedProgram

from detrs.checkpoints.detector import TrainedDetector
from detrs.checkpoints.exported import KEY, ExportInfo, metadata


def strip(program: ExportedProgram) -> None:
    """Remove what describes the process of the export, such as the paths of source files, and what needs a pickle.

    Also the guards of sizes, which are Python code: ``ExportedModel`` checks sizes.
    """
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta = {name: value for name, value in node.meta.items() if name == "val"}
    program._example_inputs = None
    program._guards_code = []


def save(program: ExportedProgram, path: Path, detector: TrainedDetector, info: ExportInfo) -> None:
    """Write a program with its metadata.

    Raises:
        OSError: the file cannot be written.
    """
    content = io.BytesIO()  # torch.export.save accepts names that end in .pt2 only
    with warnings.catch_warnings():
        # Weights of convolutions are stored with the channels last; the file has their strides.
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        torch.export.save(program, content, extra_files={KEY: metadata(detector, info)})
    path.write_bytes(content.getvalue())
