"""The tail of a detector in an ONNX graph: what needs full precision in files of less precision."""

import ast
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

TAIL_MODULES = ("heads", "head", "rpn", "sampling_offsets", "attention_weights", "queries", "proposals")
"""Names of modules: heads and box coders, and layers whose output is a position in the image or a weight there."""
TAIL_CLASSES = ("ExactLinear",)
"""Classes of layers that are in full precision also within autocast."""
SCOPES, CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"


def in_tail(node: "onnx.NodeProto") -> bool:
    """Whether a node of the exporter belongs to the tail.

    Raises:
        ValueError: the exporter did not name the module of a node with weights.
    """
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    if SCOPES not in metadata:
        return True
    parts = {part for scope in ast.literal_eval(metadata[SCOPES]) for part in scope.split(".")}
    classes = {name.rpartition(".")[2] for name in ast.literal_eval(metadata.get(CLASSES, "[]"))}
    return not parts.isdisjoint(TAIL_MODULES) or not classes.isdisjoint(TAIL_CLASSES)
